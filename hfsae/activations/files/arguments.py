"""The section `activations` of a recipe, and the files that it names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from ...machine.bounds import check_least, check_most, check_seed
from ...machine.files import passes, refuse_special
from ...machine.refused import Refused

DOCUMENTS = "document"
"""The usual name of the tensor or column that holds each row's document."""
_MOST_IN_A_BLOCK = 2**24


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
        self.files = _listed(self.files)
        for name in ("documents", "labels"):
            if not isinstance(getattr(self, name), str):
                raise Refused(
                    f"activations.{name} is {getattr(self, name)!r}; give a name, or '' for none"
                )
        for name in ("held_out_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise Refused(
                    f"activations.{name} is {getattr(self, name)}; use a fraction, 0 to 1"
                )
        check_least(self, "activations.", block=1)
        check_most("activations.block", self.block, _MOST_IN_A_BLOCK)
        check_seed("activations.seed", self.seed)


def _listed(given: object) -> str | list[str]:
    """Paths as texts."""
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if not isinstance(given, Sequence) or not given:
        raise Refused(f"activations.files is {given!r}; name a file, a folder, a glob, or a list")
    for one in given:
        if not isinstance(one, str | os.PathLike):
            raise Refused(f"activations.files holds {one!r}; name files, folders or globs")
    return [os.fspath(one) for one in given]


def paths_of(args: ActivationArguments) -> list[Path]:
    """All files, in their order; the table of labels is none of them.

    Raises:
        ValueError: a path, folder or glob names no file, or two name the same.
    """
    names = [args.files] if isinstance(args.files, str) else args.files
    labels = os.path.realpath(Path(args.labels).expanduser()) if args.labels else None
    paths: dict[str, Path] = {}
    for path in (path for name in names for path in _named(name)):
        whole = os.path.realpath(path)
        if whole in paths:
            raise Refused(f"activations.files names {path} twice; name each file once")
        if whole != labels:
            paths[whole] = path
    return list(paths.values())


def _named(name: str) -> list[Path]:
    """The files that one path, folder or glob names, in natural order."""
    from .containers import natural, refuse_other_formats  # imports torch

    if not name.strip():
        raise Refused("activations.files is empty; name a file, a folder, a glob, or a list")
    path = Path(name).expanduser()
    if path.is_dir():
        return _inside(path)
    found = [path] if path.exists() else map(Path, glob(str(path), recursive=True))
    files = sorted((file for file in found if not file.is_dir()), key=natural)
    if not files:
        raise Refused(f"no file is at {name!r} (activations.files); check the path")
    for file in files:
        refuse_other_formats(file)
        refuse_special(file)
    return files


def _inside(folder: Path) -> list[Path]:
    """The shards in a folder and those below it; other files are passed over."""
    from .containers import CONVERTIBLE, SUFFIXES, natural, refuse_other_formats  # as above

    every = [file for file in folder.rglob("*") if file.is_file() and not passes(file)]
    files = [file for file in every if file.suffix.lower() in SUFFIXES]
    if not files:
        for file in every:
            if file.suffix.lower() in CONVERTIBLE:
                refuse_other_formats(file)
        raise Refused(
            f"folder {folder} holds no .safetensors, .npy or .parquet file (activations.files); "
            "check the path"
        )
    return sorted(files, key=natural)
