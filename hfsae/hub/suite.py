"""SAEs by name: in a folder or a repository, one or many, in any format of `hfsae.convert`.

A suite is a folder of many SAEs, whose paths name layer, width and L0: `layers.12/width_8k/l0_50`,
or in Gemma Scope `layer_12/width_16k/average_l0_82`. So one listing is enough; where the path of a
single SAE names nothing, its config and metrics are read.
"""

import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from ..convert.formats import FORMATS, find, load_folder, matching
from ..io.errors import Refused, refuse_absent_source
from ..io.file_names import CHECKPOINTS, CONFIG, EVALUATION, STEPS, WEIGHTS_INDEX
from ..io.files import read_json
from ..io.processor import refuse_absent
from ..models import SAE
from ..models.config import l0_goal
from .download import Listing, fetch, list_files

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"(?:^|[/_.])(?:layers?|blocks|h)[._](\d+)")
_WIDTH = re.compile(r"width_(\d+)([km]?)", re.IGNORECASE)
_WORDS = ("small", "medium", "big")  # for an L0, in Gemma Scope 2
_L0 = re.compile(rf"l0_(\d+(?:\.\d+)?|{'|'.join(_WORDS)})")
_UNITS = {"": 1, "k": 2**10, "m": 2**20}
_SHOWN = 20
_LEVELS = 4  # of folders below the given one: a suite's SAEs lie three deep
_MAX_FETCHED = 2**24  # bytes of a JSON file, to load or list an SAE; a config is a few thousand


class SAEEntry(NamedTuple):
    """One SAE, as its path describes it; None for what the path does not name."""

    path: str
    """subfolder, or for single-file formats the file; "" if the whole folder is the SAE"""
    format: str
    layer: int | None
    width: int | None
    l0: int | float | str | None
    """a number, or Gemma Scope 2's "small", "medium", "big". For a single SAE whose path names
    nothing: the measured L0, else the target, to a tenth"""


def list_saes(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> list[SAEEntry]:
    """All SAEs in a folder or a repository on the Hub, from one listing.

    In a folder, each SAE's config and evaluation.json supply what the paths leave out. In a
    repository these two small files are fetched only for a single SAE whose path names nothing; if
    that fails, the reason is logged.

    Raises:
        ValueError: the source does not exist, is not allowed, or is unreachable.
    """
    how: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
    how["local_files_only"] = local_files_only
    listing = _list(source, revision, **how)
    entries = _entries(listing.files)
    is_single = len(entries) == 1 and _names_nothing(entries[0])
    if listing.commit is not None and not is_single:
        return entries
    for i, entry in enumerate(entries):
        form = FORMATS[entry.format]
        if form.config is None or None not in entry[2:]:
            continue
        prefix = f"{entry.path}/" if entry.path else ""
        listed = (form.config, EVALUATION)  # which have what a path leaves out
        there = [name for name in listed if prefix + name in listing.files]
        names = [name for name in there if (listing.files[prefix + name] or 0) < _MAX_FETCHED]
        try:
            folder = _folder_with(names, entry, listing, how)
            records = {n: read_json(folder / n) for n in names if folder is not None}
            config, evaluation = (records.get(name, {}) for name in listed)
            about = form.about(config)
            layer, width = _LAYER.search(about.get("site") or ""), about.get("d_sae")
            measured = evaluation.get("metrics", {}).get("l0", {}).get("value")
            l0 = l0_goal(about) if measured is None else measured
            facts = {
                "layer": int(layer[1]) if layer else None,
                "width": None if width is None else int(width),
                "l0": None if l0 is None else round(float(l0), 1),
            }
            facts = {name: fact for name, fact in facts.items() if getattr(entry, name) is None}
            entries[i] = entry._replace(**facts)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            logger.warning("layer, width and L0 of %s are unknown: %s", listing.repo_id, error)
    return entries


def formats_in(folder: Path) -> set[str]:
    """The formats of the SAEs in a folder, from the names of its files alone."""
    return {entry.format for entry in _entries(_local_files(folder))}


def load(
    source: str | Path,
    *,
    subfolder: str = "",
    layer: int | None = None,
    width: str | int | None = None,
    l0: int | float | str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | torch.device | None = None,
    norm_gain: Float[Tensor, " d_in"] | None = None,
) -> SAE:
    """The SAE in a folder or a repository, in any known format; of a suite, the chosen one.

    Args:
        source: a folder, a file, or a repository's id.
        subfolder: the folder of one SAE, or of several, among which the next arguments choose.
        layer: block of the language model.
        width: number of latents, written as in the path ("16k") or as a number (16384).
        l0: of several, the SAE with the nearest L0 (by ratio) is taken; the log names it.
        revision, token, cache_dir, local_files_only: as in `huggingface_hub`.
        dtype: to cast to, for example "bfloat16"; thresholds stay float32.
        device: to move it to.
        device_map: the same as `device`, as transformers calls it; "auto": an accelerator, or else
            the CPU.
        norm_gain: for transcoders of Gemma Scope, see `hfsae.convert.gemma_scope`.

    Raises:
        ValueError: no SAE or several fit (the sentence lists them), files are damaged or hostile,
            there is no such device, or as for `list_saes`.
    """
    if isinstance(dtype, str):
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise Refused(f"dtype must be 'float32', 'bfloat16' or 'float16', got {dtype!r}")
        dtype = kind
    if device_map is not None and device is not None:
        raise Refused(f"device={device!r} and device_map={device_map!r} are one thing; give device")
    if device_map == "auto":
        device_map = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    device = device_map if device is None else device
    refuse_absent(device)
    how: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
    how["local_files_only"] = local_files_only
    listing = _list(source, revision, **how)
    entries = _entries(listing.files)
    entry = _pick(entries, listing, str(source), subfolder, layer, width, l0)
    where = f"{source}/{entry.path}".rstrip("/")
    root = Path(source) if Path(source).is_dir() else Path(source).parent
    if listing.commit is not None:
        root = fetch(listing, _needed(entry, listing), whole=True, **how)
    options = {} if norm_gain is None else {"norm_gain": norm_gain}
    sae = load_folder(root / entry.path, entry.format, where, **options)
    if _names_nothing(entry):  # the only SAE may be of another layer or width
        site, d_sae = str(sae.config.site), sae.config.d_sae
        if layer is not None and (at := _LAYER.search(site)) and int(at[1]) != layer:
            raise Refused(f"{where} was trained at {site}, not at layer {layer}")
        if width is not None and d_sae != width_of(width):
            raise Refused(f"{where} has {d_sae:,} latents, not {width_of(width):,}")
    return sae.to(device=device, dtype=dtype)


def load_set(
    source: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> dict[str, SAE]:
    """All SAEs of a folder or a repository by path, those of lower layers first.

        transcoders = hfsae.load_set("runs/transcoders")   # trained with site layers.{10..15}...

    Args:
        subfolder: only those below it; paths stay whole.
        revision, token, cache_dir, local_files_only, dtype, device: as for `load`.

    Raises:
        ValueError: there is none, or as for `load`.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    hub["local_files_only"] = local_files_only
    inside = f"{subfolder.strip('/')}/" if subfolder.strip("/") else ""
    entries = [e for e in list_saes(source, **hub) if f"{e.path}/".startswith(inside)]
    if not entries:
        raise Refused(f"{source} has no SAE{f' below {inside}' if inside else ''}; see list_saes")
    entries.sort(key=lambda e: (math.inf if e.layer is None else e.layer, e.path))
    how: dict[str, Any] = {**hub, "dtype": dtype, "device": device}
    return {entry.path: load(source, subfolder=entry.path, **how) for entry in entries}


def files_beside(
    source: str | Path | Listing,
    names: Sequence[str],
    *,
    subfolder: str = "",
    layer: int | None = None,
    width: str | int | None = None,
    l0: int | float | str | None = None,
    revision: str | None = None,
) -> Path | None:
    """The folder of the SAE that `load` would load, for files beside its weights.

    From a repository only the files in `names` are fetched; None if it has no such file.

    Args:
        source: as for `load`, or a repository's listing.

    Raises:
        ValueError: as `load`.
    """
    is_listed = isinstance(source, Listing)
    listing = source if is_listed else _list(source, revision)
    entries = _entries(listing.files)
    entry = _pick(entries, listing, listing.repo_id, subfolder, layer, width, l0)
    return _folder_with(names, entry, listing, {})


def _folder_with(
    names: Sequence[str], entry: SAEEntry, listing: Listing, how: dict[str, Any]
) -> Path | None:
    """The folder of an SAE; for a repository, with its files in `names`, or None without any.

    Args:
        how: options of `hub.fetch`.
    """
    inside = PurePosixPath(entry.path)
    inside = inside.parent if FORMATS[entry.format].is_file else inside
    if listing.commit is None:
        source = Path(listing.repo_id)
        return (source if source.is_dir() else source.parent) / inside
    paths = [path for path in (str(inside / name) for name in names) if path in listing.files]
    return fetch(listing, paths, **how) / inside if paths else None


def _names_nothing(entry: SAEEntry) -> bool:
    """Whether the path names no layer, width or L0."""
    return entry[2:] == (None, None, None)


def _list(source: str | Path, revision: str | None, **how: Any) -> Listing:
    if not isinstance(source, str | Path) or not str(source):
        raise Refused(
            f"source must be a folder, a file, or a repository as 'name/repository', got {source!r}"
        )
    root = Path(source)
    if root.is_dir():
        return Listing(str(source), None, dict.fromkeys(_local_files(root)))
    if root.exists():
        return Listing(str(source), None, {root.name: None})
    refuse_absent_source(source)
    return list_files(str(source), revision=revision, **how)


def _local_files(root: Path) -> list[str]:
    """Files a few levels deep, without hidden folders, those of models that are no SAE, and links
    that lead nowhere."""
    files = []
    for folder, inner, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        deepest = len(inside.parts) == _LEVELS
        inner[:] = [] if deepest else [name for name in inner if not name.startswith(".")]
        if inside.parts and CONFIG in names:
            try:
                about = read_json(Path(folder) / CONFIG)
            except (OSError, ValueError):  # OSError: a link that leads nowhere
                about = {}
            if about.get("model_type") in CONFIG_MAPPING and "d_sae" not in about:
                continue  # a language model beside runs
        files += [(inside / name).as_posix() for name in names if Path(folder, name).is_file()]
    return sorted(files)


def _entries(paths: Iterable[str]) -> list[SAEEntry]:
    entries = []
    of_runs = f"{CHECKPOINTS}/{STEPS}"  # a training's own, not an SAE's file of the same ending
    others = [path for path in paths if not PurePosixPath(path).match(of_runs)]
    for path, format_name in find(others).items():
        layer, width, l0 = (pattern.search(path) for pattern in (_LAYER, _WIDTH, _L0))
        entries.append(
            SAEEntry(
                path,
                format_name,
                int(layer[1]) if layer else None,
                width_of(f"{width[1]}{width[2]}") if width else None,
                (l0[1] if l0[1].isalpha() else float(l0[1])) if l0 else None,
            )
        )
    return sorted(
        entries, key=lambda e: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", e.path)]
    )


def width_of(text: str | int) -> int:
    """The number of latents that a width names: 16,384 for "16k", "16384" and 16384.

    Raises:
        ValueError: it is written in another way.
    """
    parts = re.fullmatch(r"(\d+)([km]?)", str(text).lower())
    if parts is None:
        raise Refused(f"width must be written as '16k' or 16384, got {text!r}")
    n, unit = int(parts[1]), parts[2]
    power = 2 ** (1000 * n).bit_length()  # the least above n thousand: 65k stands for 65,536
    if unit == "k" and power < 1000 * (n + 1):
        return power
    return n * _UNITS[unit]


def _pick(
    entries: list[SAEEntry],
    listing: Listing,
    source: str,
    subfolder: str,
    layer: int | None,
    width: str | int | None,
    l0: int | float | str | None,
) -> SAEEntry:
    is_known = l0 in _WORDS if isinstance(l0, str) else l0 is None or 0 < l0 < math.inf
    if not is_known:
        raise Refused(f"l0 must be positive and finite, or one of {', '.join(_WORDS)}; got {l0!r}")
    if not entries:
        kinds = {
            ADAPTER_CONFIG_NAME: "a PEFT adapter",
            "tokenizer.json": "a language model or a tokenizer",
            CONFIG: "a model without model.safetensors",
            "app.py": "a Space",
        }
        kind = next((kind for name, kind in kinds.items() if name in listing.files), None)
        some = ", ".join(sorted({*listing.files} - {".gitattributes"})[:5]) or "nothing"
        raise Refused(
            f"{source} holds no SAE in a known format ({', '.join(FORMATS)}): "
            + (f"it looks like {kind}" if kind else f"it holds {some}")
        )
    if (subfolder, layer, width, l0) == ("", None, None, None) and entries[0].path == "":
        return entries[0]  # the repository itself is an SAE; others lie below it
    exact = [e for e in entries if subfolder and e.path == subfolder.rstrip("/")]
    if exact and (layer, width, l0) == (None, None, None):
        return exact[0]  # an exact path wins over SAEs below it
    prefix = f"{subfolder.rstrip('/')}/" if subfolder else ""
    inside = [e for e in entries if f"{e.path}/".startswith(prefix)]
    if len(inside) == 1 and _names_nothing(inside[0]):
        return inside[0]  # its path names nothing; its config is checked once loaded
    fitting = [
        e
        for e in inside
        if layer in (None, e.layer)
        and (width is None or e.width == width_of(width))
        and (not isinstance(l0, str) or e.l0 == l0)
    ]
    choice = {"subfolder": subfolder or None, "layer": layer, "width": width, "l0": l0}
    choice = ", ".join(f"{k}={v!r}" for k, v in choice.items() if v is not None)
    if not fitting:
        raise Refused(f"{source} has no SAE with {choice}; it has {_options(inside or entries)}")
    if isinstance(l0, int | float):
        distances = [
            (abs(math.log(e.l0 / l0)), e) for e in fitting if isinstance(e.l0, float) and e.l0
        ]
        nearest = min((distance for distance, _ in distances), default=None)
        fitting = [e for distance, e in distances if distance == nearest] or fitting
    if len(fitting) > 1:
        what = f"{len(fitting)} SAEs" + (f" with {choice}" if choice else "")
        raise Refused(f"{source} has {what}; choose: {_options(fitting)}")
    if isinstance(l0, int | float) and fitting[0].l0 != l0:
        logger.warning(
            "%s: no SAE with an L0 of %s; taking the nearest, %s", source, l0, fitting[0].path
        )
    return fitting[0]


def _options(entries: list[SAEEntry]) -> str:
    shown = [entry.path or "(the top folder)" for entry in entries[:_SHOWN]]
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return ", ".join(shown) + more


def _needed(entry: SAEEntry, listing: Listing) -> list[str]:
    """The files of one SAE, their sizes checked."""
    form, there = FORMATS[entry.format], listing.files
    folder = str(PurePosixPath(entry.path).parent) if form.is_file else entry.path
    prefix = "" if folder in ("", ".") else f"{folder}/"
    beside = [p.removeprefix(prefix) for p in there if p.startswith(prefix)]
    patterns = (*form.files[form.is_file :], *form.optional)
    needed = [entry.path] * form.is_file
    needed += [prefix + name for p in patterns for name in matching(beside, p) if "/" not in name]
    if f"{prefix}{WEIGHTS_INDEX}" in needed:
        shard = re.compile(re.escape(prefix) + r"model-\d+-of-\d+\.safetensors")
        needed += [path for path in there if shard.fullmatch(path)]
    for path in needed:
        size = there[path]
        if path.endswith(".json") and size is not None and size > _MAX_FETCHED:
            raise Refused(f"{listing.repo_id}: {path} has {size:,} bytes, too many for a config")
    return needed
