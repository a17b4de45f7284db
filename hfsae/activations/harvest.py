"""From rows of tokens or pictures to a model's activations at some sites: a vector for each kept
position.

**The cache** holds harvested activations on disk: a language model reads each text only once.

    FOLDER/<language model>/<input and site>.safetensors

A file holds the activations of one batch of token rows at one site: kept positions, in the model's
dtype, with a checksum. Both names are hashes, of the language model's weights and settings and of
the input (tokens, mask), so a file serves every run with the same rows: another dictionary, seed or
bucket size, more processes, or the same run resumed. Cached activations equal harvested ones to the
bit. Use another folder for anything else that changes a forward pass, such as a hook.
"""

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..io.errors import Refused
from ..io.files import read_tensors, reading, write_tensors
from ..lm import Site, blocks_below, by_model, capture, find_module, forward, running_as
from ..ops import ASYNCHRONOUS, indices_of, upload
from .arguments import HarvestArguments
from .tokens import TokenBatch

logger = logging.getLogger(__name__)
_COUNTED_BYTES = 2**27  # written by a process, before it counts all of a cache again
_SAMPLED = 1024  # numbers of each weight in a language model's digest


class ActivationCache:
    """Activations by batch and site, a file each, in the model's own subfolder of `folder`.

    Several processes may use a folder at once. A file that is damaged is harvested again.

    Args:
        max_bytes: limit for this subfolder; at the limit, nothing more is stored.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, lm: nn.Module, *, max_bytes: float) -> None:
        model: Any = lm
        settings = model.config.to_dict() | {"attention": model.config._attn_implementation}
        for unimportant in ("_name_or_path", "transformers_version", "_commit_hash", "use_cache"):
            settings.pop(unimportant, None)
        digest = lm_digest(lm, json.dumps(settings, sort_keys=True, default=str))
        name = Path(model.config._name_or_path or type(lm).__name__).name
        self.folder = Path(folder).expanduser() / f"{name}-{digest}"
        self.max_bytes, self.is_full = max_bytes, False
        self.hits = self.misses = 0
        self._left = 0.0  # bytes to write until the folder, to which others write, is counted
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"harvest.cache {folder} cannot be made ({error.strerror}); give another folder"
            ) from error

    def _path(self, key: str, site: str) -> Path:
        digest = blake2b(f"{key} {site}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{digest}.safetensors"

    def get(self, key: str, sites: Sequence[str]) -> dict[str, Float[Tensor, "n _"]] | None:
        """A batch's activations at all sites, on the CPU; None if one is missing or damaged."""
        found: dict[str, Tensor] = {}
        for path, site in ((self._path(key, site), site) for site in sites):
            if path.is_file():
                try:
                    with reading(path):
                        tensors, about = read_tensors(path)
                        if zlib.crc32(_bytes(tensors["activations"])) == int(about["crc32"]):
                            found[site] = tensors["activations"]
                except Refused:
                    pass
                if site not in found:
                    logger.warning("%s is damaged; it is harvested again", path)
        is_hit = len(found) == len(sites)
        self.hits, self.misses = self.hits + is_hit, self.misses + (not is_hit)
        return found if is_hit else None

    def put(self, key: str, activations: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Store a batch's activations. A full disk ends the caching, not the run."""
        for site, acts in activations.items():
            if acts.nbytes > self._left and not self.is_full:
                files = self.folder.glob("*.safetensors")
                taken = sum(file.stat().st_size for file in files)
                self._left = min(_COUNTED_BYTES, self.max_bytes - taken)
                if acts.nbytes > self._left:
                    self._stop(f"it has reached harvest.cache_gb ({self.max_bytes / 1e9:g} GB)")
            if self.is_full:
                return
            self._left -= acts.nbytes
            whole = {"activations": acts.cpu()}
            about = {"crc32": str(zlib.crc32(_bytes(whole["activations"])))}
            try:
                write_tensors(self._path(key, site), whole, about)
            except OSError as error:
                self._stop(f"it cannot be written to ({error})")

    def _stop(self, why: str) -> None:
        self.is_full = True
        logger.warning("the activation cache %s keeps nothing more: %s", self.folder, why)


def lm_digest(lm: nn.Module, settings: str = "") -> str:
    """A hash of some numbers of each weight; it identifies a language model's weights, and the
    settings that are given with it."""
    digest = blake2b(settings.encode(), digest_size=8)
    for name, weight in lm.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta:
            sample = weight.flatten()[:: max(1, weight.numel() // _SAMPLED)]
            digest.update(_bytes(sample.cpu()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


class InputBatch(NamedTuple):
    """Rows of inputs that are no text, each a picture or a crop of one."""

    inputs: dict[str, Tensor]
    """By the name of the model's argument, such as pixel_values [rows, 3, height, width]."""
    keep: Bool[Tensor, "rows ctx"]
    """Positions whose activations are used."""
    document: Int64[Tensor, " rows"]
    """The number of each row's picture among all of the source."""


Batch = TokenBatch | InputBatch


class Harvested(NamedTuple):
    activations: dict[str, Float[Tensor, "n _"]]
    """For each site the kept positions' activations, raw, in the LM's dtype and on its device."""
    tokens: Int64[Tensor, " n"] | None
    """None: the model reads no text."""
    row: Int64[Tensor, " n"]
    """Row of the batch that the position lies in."""
    position: Int64[Tensor, " n"]
    """Place in that row."""
    document: Int64[Tensor, " n"]


class Harvester:
    """Turns a batch of rows into `Harvested`, by a forward pass that stops at the last site.

    Positions outside `batch.keep` are dropped, then norm outliers: positions above `norm_limits`
    at any site. The limits are those given (limits of other sites are ignored), or follow from the
    first batch (max_norm_ratio times the median norm of its kept positions); apart from them,
    results do not depend on earlier batches. With args.cache, a batch that was harvested before is
    read from disk, equal to the bit. A NaN or an infinity at a kept position raises ValueError; it
    does not count as an outlier. `kept`, `dropped_special` and `dropped_outliers` count positions.

    Several models, by name, read the same rows one after the other; their sites have the name
    before a slash (`hfsae.lm.places`). A position is dropped at all sites or at none.

    Memory of a call, beyond the LM: args.rows * ctx * sum of site widths in the LM's dtype for one
    forward pass, plus at most twice the result's n * sum of site widths.
    """

    def __init__(
        self,
        lm: nn.Module | Mapping[str, nn.Module],
        sites: Sequence[str],
        args: HarvestArguments,
        *,
        norm_limits: Mapping[str, float] | None = None,
    ):
        self.sites, self.args = list(sites), args
        limits = norm_limits or {}
        self.norm_limits: dict[str, float] = {at: limits[at] for at in limits if at in self.sites}
        each, models = {"": {site: site for site in self.sites}}, {"": lm}
        if isinstance(lm, Mapping):
            each, models = by_model(self.sites, lm), lm
        self.lms: list[Any] = [models[name] for name in each]
        """the models that are read: of transformers, or what torch.compile or PEFT wraps around"""
        self.lm = self.lms[0]
        self._paths = [*each.values()]  # of each model, by site, its place there
        self._compiled: list[dict[nn.Module, Callable[..., Any]]] = [{} for _ in self.lms]
        if args.compile:
            pairs = zip(self.lms, self._paths, strict=True)
            self._compiled = [_compiled_blocks(one, [*paths.values()]) for one, paths in pairs]
        self.caches: list[ActivationCache] = []
        """activations on disk of each model, if args.cache is given"""
        if (folder := args.cache_folder) is not None:
            most = 1e9 * args.cache_gb
            self.caches = [ActivationCache(folder, one, max_bytes=most) for one in self.lms]
        self.kept = self.dropped_special = self.dropped_outliers = 0

    @torch.no_grad()  # and not inference_mode, whose tensors may never enter autograd
    def __call__(self, batch: Batch) -> Harvested:
        found: dict[str, Tensor] = {}
        for i in range(len(self.lms)):
            found |= self._read(i, batch)
        device = self.lm.device
        activations = {site: found[site].to(device) for site in self.sites}
        keep, document = batch.keep.cpu(), batch.document.cpu()
        row, position = keep.nonzero(as_tuple=True)
        if isinstance(batch, TokenBatch):
            tokens, document = batch.input_ids.cpu()[keep], document[keep]
        else:
            tokens, document = None, document[row]
        n, ratio = len(row), self.args.max_norm_ratio
        self.dropped_special += keep.numel() - n
        measured = self.sites if ratio is not None and not self.norm_limits else self.norm_limits
        norms = {
            site: torch.linalg.vector_norm(activations[site], dim=-1, dtype=torch.float32)
            for site in measured
        }
        if n and ratio is not None and not self.norm_limits:
            for site, median in {site: float(norms[site].median()) for site in norms}.items():
                if not 0 < median < float("inf"):
                    raise Refused(
                        f"the median norm at {site!r} is {median}, so max_norm_ratio "
                        "cannot be applied; load the LM in bfloat16 or float32"
                    )
                self.norm_limits[site] = ratio * median
        typical = torch.ones_like(row, dtype=torch.bool)
        if self.norm_limits:
            limits = self.norm_limits.items()
            typical = torch.stack([norms[at] <= limit for at, limit in limits]).cpu().all(dim=0)
        n_typical = int(typical.sum())
        self.kept += n_typical
        self.dropped_outliers += n - n_typical
        if n_typical < n:
            at = indices_of(typical, device)
            activations = {site: x[at] for site, x in activations.items()}
            tokens = None if tokens is None else tokens[typical]
            row, position, document = (part[typical] for part in (row, position, document))
        tokens = None if tokens is None else upload(tokens, device)
        row, position, document = (upload(x, device) for x in (row, position, document))
        return Harvested(activations, tokens, row, position, document)

    def _read(self, i: int, batch: Batch) -> dict[str, Float[Tensor, "n _"]]:
        """Activations of the i-th model by site: from the cache, or from forward passes of some
        rows each.

        Raises:
            ValueError: one is NaN or infinite, or a compiled block failed.
        """
        lm, rows, cached, key = self.lms[i], self.args.rows, None, ""
        places = list(self._paths[i].values())
        whole = {"input_ids": batch.input_ids} if isinstance(batch, TokenBatch) else batch.inputs
        if self.caches:
            # of inputs, mask, rows a pass, and of compiled code, which rounds differently
            names = " ".join(name for name in whole if name != "input_ids")
            shapes = " ".join(str(tuple(x.shape)) for x in whole.values())
            way = " compiled" if self.args.compile else ""
            digest = blake2b(f"{names}{shapes} {rows}{way}".encode(), digest_size=16)
            for part in (*whole.values(), batch.keep):
                digest.update(part.cpu().contiguous().numpy().tobytes())
            key = digest.hexdigest()
            cached = self.caches[i].get(key, places)
        inputs = {name: x.split(rows) for name, x in whole.items()}
        parts: dict[str, list[Tensor]] = {place: [] for place in places}
        keeps = () if cached else batch.keep.cpu().split(rows)
        for number, keep in enumerate(keeps):
            # A batch's remainder runs uncompiled: each number of rows would be compiled by itself.
            compiled = self._compiled[i] if len(keep) == rows else {}
            eager = not compiled  # the blocks' hooks are called around their compiled forwards
            try:
                with (
                    capture(lm, places, stop_early=True, eager=eager) as acts,
                    running_as(compiled, eager=eager),
                ):
                    forward(lm, {name: upload(x[number], lm.device) for name, x in inputs.items()})
            except RuntimeError as error:
                if not compiled:
                    raise
                reason = str(error).strip().partition("\n")[0]
                raise Refused(
                    f"harvest.compile: a compiled block failed ({type(error).__name__}: {reason}); "
                    "install a C++ compiler, such as g++, or leave harvest.compile out"
                ) from error
            at = indices_of(keep.flatten(), lm.device)
            for place, kept in parts.items():  # which may be on another device of a spread LM
                x = acts.pop(place)  # indexing copies: the full tensor is freed
                kept.append(x.flatten(0, 1)[at.to(x.device)].to(lm.device))
                del x
        activations = cached or {place: torch.cat(kept) for place, kept in parts.items()}
        refuse_not_finite(activations)
        if self.caches and not cached:
            self.caches[i].put(key, activations)
        return {site: activations[at].to(lm.device) for site, at in self._paths[i].items()}


def _compiled_blocks(lm: nn.Module, sites: Sequence[str]) -> dict[nn.Module, Callable[..., Any]]:
    """Compiled forward methods of the blocks up to the last site.

    Raises:
        ValueError: a site lies inside a block, whose hooks a compiled block would not call, or the
            model is compiled already, and would not call those of its blocks.
    """
    if "_orig_mod" in lm._modules or any(m._compiled_call_impl for m in lm.modules()):
        raise Refused(
            "harvest.compile: this model is compiled already, so hooks inside it are not called; "
            "leave harvest.compile out"
        )
    blocks: list[nn.Module] = []
    for site in sites:
        parent = Site.parse(site).module.rpartition(".")[0]
        if not parent or not isinstance(find_module(lm, parent), nn.ModuleList):
            raise Refused(
                f"harvest.compile: {site} is not a block, and hooks inside a compiled block are "
                "not called; leave harvest.compile out"
            )
        blocks = max(blocks, [*blocks_below(lm, site), find_module(lm, site)], key=len)
    return {block: torch.compile(block.forward, dynamic=False) for block in blocks}


def refuse_not_finite(activations: Mapping[str, Float[Tensor, "n _"]]) -> None:
    """Refuse activations with NaN or infinity.

    Raises:
        ValueError: a model gave NaN or infinity at one of these sites.
    """
    sums = [acts.sum(dtype=torch.float32) for acts in activations.values()]
    if not sums or torch.stack([x.to(sums[0].device) for x in sums]).isfinite().all():
        return  # as in `rows_not_finite`, but of all sites at once: a device is waited for once
    for site, acts in activations.items():
        if n := len(rows_not_finite(acts)):
            raise _overflow(n, len(acts), site, acts.dtype)


def _overflow(n: int, n_all: int, site: str, dtype: torch.dtype) -> Refused:
    return Refused(
        f"{n} of {n_all} positions at {site!r} have NaN or infinite activations: the model "
        f"overflows in {str(dtype).removeprefix('torch.')}, or its weights are damaged; try "
        "another lm.dtype (bfloat16, float32) or lm.attn_implementation (eager)"
    )


class FiniteBatches:
    """`refuse_not_finite` for a training's batches. Of those on a GPU the number of bad rows stays
    there until `refuse_past`, as to read it makes the host wait."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None  # by site, of the first batch with bad rows
        self._kinds: list[tuple[int, str, torch.dtype]] = []

    def add(self, batch: Mapping[str, Float[Tensor, "n _"]]) -> None:
        """Note a batch; one in main memory is refused at once."""
        if any(x.device.type not in ASYNCHRONOUS for x in batch.values()):
            return refuse_not_finite(batch)
        counts = torch.stack([(~x.isfinite()).any(dim=-1).sum() for x in batch.values()])
        if self._counts is not None:
            counts = torch.where(self._counts.any(), self._counts, counts)
        self._counts = counts
        self._kinds = [(len(x), site, x.dtype) for site, x in batch.items()]

    def refuse_past(self) -> None:
        """Refuse the first batch that had NaN or infinity.

        Raises:
            ValueError: there was one.
        """
        found = [] if self._counts is None else self._counts.tolist()
        for n, kind in zip(found, self._kinds, strict=True):
            if n:
                raise _overflow(n, *kind)


def rows_not_finite(x: Float[Tensor, "n d"]) -> Int64[Tensor, " m"]:
    """The numbers of rows with NaN or infinity, ascending."""
    if x.sum(dtype=torch.float32).isfinite():  # in a tenth of the time; a large sum decides nothing
        return torch.empty(0, dtype=torch.int64, device=x.device)
    return (~x.isfinite()).any(dim=-1).nonzero()[:, 0]
