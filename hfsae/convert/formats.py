"""Recognise a folder's format, and convert from one to another."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import BadZipFile

from safetensors import SafetensorError
from transformers import AutoModel

from ..machine.files import open_to_readers, read_json
from ..machine.names import CONFIG, WEIGHTS, WEIGHTS_INDEX
from ..machine.refused import Damaged, Refused, one_line
from ..models import SAE
from ..models.registry import refuse_unknown_variant
from . import dictionary_learning, gemma_scope, gemma_scope_2, openai, saelens, sparsify


class Format(NamedTuple):
    """A file format of SAEs."""

    files: tuple[str, ...]
    """the file names that mark a folder (with a star: a single file) as this format; a|b: either"""
    load: Callable[..., SAE]
    save: Callable[[SAE, Path], None]
    config: str | None = None
    """the JSON file among these that describes the SAE, where paths leave that out"""
    about: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """site (or a hook, which names the layer), d_sae, k and target_l0 in that file's content"""


def _load_own(folder: Path, source: str) -> SAE:
    refuse_unknown_variant(read_json(folder / CONFIG).get("model_type"), source)
    return AutoModel.from_pretrained(folder).eval()


def _save_own(sae: SAE, folder: Path) -> None:
    sae.folded().save_pretrained(folder)


# The first format whose files are all there is taken.
FORMATS = {
    "hfsae": Format((CONFIG, f"{WEIGHTS}|{WEIGHTS_INDEX}"), _load_own, _save_own, CONFIG),
    "gemma_scope": Format(gemma_scope.FILES, gemma_scope.load, gemma_scope.save),
    "gemma_scope_2": Format(gemma_scope_2.FILES, gemma_scope_2.load, gemma_scope_2.save),
    **{
        name: Format(module.FILES, module.load, module.save, module.FILES[1], module.about)
        for name, module in {
            "saelens": saelens,
            "sparsify": sparsify,
            "dictionary_learning": dictionary_learning,
        }.items()
    },
    "openai": Format(openai.FILES, openai.load, openai.save),
}


def find(paths: Iterable[str]) -> dict[str, str]:
    """From the paths of all files, {path of an SAE: name of its format}.

    The path is a folder's ("" for the top), or for a single-file format, the file's.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        pure = PurePosixPath(path)
        parent = "" if str(pure.parent) == "." else str(pure.parent)
        names.setdefault(parent, set()).add(pure.name)
    formats: dict[str, str] = {}
    for folder, files in names.items():
        for name, form in FORMATS.items():
            single = form.files[0].startswith("*")
            if not single and all(files.intersection(n.split("|")) for n in form.files):
                formats[folder] = name
                break
            if single:
                suffix = form.files[0].removeprefix("*")
                matching = [f for f in files if f.endswith(suffix)]
                formats |= {f"{folder}/{f}".lstrip("/"): name for f in matching}
    folders = {path for path, name in formats.items() if not FORMATS[name].files[0].startswith("*")}
    is_inside = {p for p in formats if p not in folders and folders.intersection(_above(p))}
    return {
        p: formats[p] for p in sorted(formats) if p not in is_inside
    }  # not an SAE's checkpoints


def _above(path: str) -> list[str]:
    return ["" if str(p) == "." else str(p) for p in PurePosixPath(path).parents]


# Exceptions of readers on damaged or hostile files; RuntimeError comes from torch, zipfile, and
# deep nesting.
_OF_FILES = (OSError, SafetensorError, LookupError, TypeError, AttributeError, ValueError)
_OF_FILES += (RuntimeError, ArithmeticError, EOFError, MemoryError, BadZipFile, UnpicklingError)


def load_folder(path: Path, format_name: str, source: str, **options: object) -> SAE:
    """The SAE at a path that `find` returned.

    Raises:
        ValueError: its files are damaged or hostile.
    """
    try:
        return FORMATS[format_name].load(path, source, **options)
    except _OF_FILES as error:
        reason = one_line(error)
        if isinstance(error, KeyError):
            reason = f"it lacks {reason}"
        if isinstance(error, Refused) and source in reason:
            raise
        raise Damaged(f"{source} cannot be read as {format_name}: {reason}") from error


def save_as(sae: SAE, destination: str | Path, to: str) -> Path:
    """Write `sae` in another format; a failure leaves nothing behind.

    Args:
        destination: a folder that does not hold anything yet, or for "openai" a file.
        to: one of `FORMATS`.

    Raises:
        ValueError: the format is unknown, cannot hold this SAE, or the destination is taken.
    """
    destination = Path(destination)
    if to not in FORMATS:
        raise Refused(f"format {to!r} is unknown; known: {', '.join(FORMATS)}")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise Refused(f"{destination} already exists; give another path, or remove it")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        why = error.strerror or error
        raise Refused(f"{destination} cannot be created ({why}); give another path") from error
    try:
        if FORMATS[to].files[0].startswith("*"):
            FORMATS[to].save(sae, temporary / "sae")
            open_to_readers(temporary / "sae")
            os.replace(temporary / "sae", destination)
        else:
            FORMATS[to].save(sae, temporary)
            for path in temporary.iterdir():
                open_to_readers(path)
            temporary.chmod(0o755)
            os.replace(temporary, destination)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(destination.parent).free / 1e6
        raise Refused(
            f"{destination} cannot be written ({error}; the disk has {free:,.0f} MB free); make "
            "room or give another path"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return destination
