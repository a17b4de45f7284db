"""Recognise a folder's format, and convert from one to another."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError
from transformers import AutoModel

from ..io.errors import Damaged, Refused, one_line
from ..io.file_names import CONFIG, FINGERPRINT, WEIGHTS, WEIGHTS_INDEX
from ..io.files import open_to_readers, read_json
from ..models import SAE
from ..models.base import refuse_unknown_variant
from . import (
    circuit_tracer,
    cross_layer,
    crosscoders,
    dictionary_learning,
    gemma_scope,
    openai,
    saelens,
    sparsify,
)
from .build import Format


def load_own(folder: Path, source: str) -> SAE:
    """The SAE in `folder`, in hfsae's format or as crosscoders' library uploads them.

    Raises:
        ValueError: no variant of hfsae has the config's `model_type`.
    """
    config = read_json(folder / CONFIG)
    if crosscoders.is_uploaded(config):  # the same two names of files
        return crosscoders.load(folder, source)
    refuse_unknown_variant(config.get("model_type"), source)
    return AutoModel.from_pretrained(folder).eval()


# The first format whose files are all there is taken.
FORMATS = {
    "hfsae": Format(
        files=(CONFIG, f"{WEIGHTS}|{WEIGHTS_INDEX}"),
        load=load_own,
        save=lambda sae, folder: sae.folded().save_pretrained(folder),
        config=CONFIG,
        about=lambda c: crosscoders.about(c) if crosscoders.is_uploaded(c) else c,
        optional=(FINGERPRINT,),
    ),
    "gemma_scope": gemma_scope.FORMAT,
    "gemma_scope_2": gemma_scope.FORMAT_2,
    "gemma_scope_2_layers": cross_layer.GEMMA_SCOPE,
    "saelens": saelens.FORMAT,
    "sparsify": sparsify.FORMAT,
    "dictionary_learning": dictionary_learning.FORMAT,
    "crosscoder": crosscoders.FORMAT,
    "model_diff": crosscoders.OF_TWO_MODELS,
    "circuit_tracer": circuit_tracer.FORMAT,
    "circuit_tracer_clt": cross_layer.CIRCUIT_TRACER,
    "openai": openai.FORMAT,
}


def find(paths: Iterable[str]) -> dict[str, str]:
    """From the paths of all files, {path of an SAE: name of its format}.

    The path is a folder's ("" for the top), or for formats of one file an SAE, the file's.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        pure = PurePosixPath(path)
        parent = "" if str(pure.parent) == "." else str(pure.parent)
        names.setdefault(parent, set()).add(pure.name)
    formats: dict[str, str] = {}
    for folder, files in names.items():
        for name, form in FORMATS.items():
            marks = [matching(files, pattern) for pattern in form.files]
            if not all(marks):
                continue
            if not form.is_file:
                formats[folder] = name
                break
            formats |= {f"{folder}/{file}".lstrip("/"): name for file in marks[0]}
    folders = {path for path, name in formats.items() if not FORMATS[name].is_file}
    parents = {p: {str(f) for f in PurePosixPath(p).parents} for p in formats}
    is_inside = {
        p for p in formats if p not in folders and {f or "." for f in folders} & parents[p]
    }
    return {p: formats[p] for p in sorted(formats) if p not in is_inside}  # no checkpoints of one


def matching(names: Iterable[str], patterns: str) -> list[str]:
    """The names that fit one of the patterns in "a|b", in their order."""
    return [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns.split("|"))]


def load_folder(path: Path, format_name: str, source: str, **options: object) -> SAE:
    """The SAE at a path that `find` returned.

    Raises:
        ValueError: its files are damaged.
    """
    try:
        return FORMATS[format_name].load(path, source, **options)
    except Exception as error:  # readers of damaged files raise whatever they meet
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
    form = _format(to)
    if form.save is None:
        raise Refused(f"files of {to!r} are read and not written; write hfsae's own format")
    with new_path(Path(destination), form.is_file and form.save_set is None) as written:
        form.save(sae, written)
    return Path(destination)


def save_set_as(
    saes: Mapping[str, SAE] | Sequence[SAE], destination: str | Path, to: str = "circuit_tracer"
) -> Path:
    """Write several SAEs, as `hfsae.load_set` returns them, to one folder of a format that is made
    for sets; a failure leaves nothing behind.

    Raises:
        ValueError: the format holds one SAE a folder or is unknown, an SAE of these does not fit,
            or the destination is taken.
    """
    save_set = _format(to).save_set
    if save_set is None:
        sets = ", ".join(name for name, form in FORMATS.items() if form.save_set)
        raise Refused(f"a folder of {to!r} holds one SAE; write each by save_as, or to {sets}")
    with new_path(Path(destination), is_file=False) as folder:
        save_set(list(saes.values() if isinstance(saes, Mapping) else saes), folder)
    return Path(destination)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise Refused(f"format {name!r} is unknown; known: {', '.join(FORMATS)}")
    return FORMATS[name]


@contextmanager
def new_path(destination: Path, is_file: bool) -> Iterator[Path]:
    """A temporary path to write to, which becomes the destination unless the block fails."""
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise Refused(f"{destination} already exists; give another path, or remove it")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        why = error.strerror or error
        raise Refused(f"{destination} cannot be created ({why}); give another path") from error
    try:
        written = temporary / "sae" if is_file else temporary
        yield written
        for path in [written] if is_file else temporary.iterdir():
            open_to_readers(path)
        if not is_file:
            temporary.chmod(0o755)
        os.replace(written, destination)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(destination.parent).free / 1e6
        raise Refused(
            f"{destination} cannot be written ({error}; the disk has {free:,.0f} MB free); make "
            "room or give another path"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
