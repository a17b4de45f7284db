"""Places in a causal language model: name them, read them, write to them; and load the model.

A place is written `<module path>[:in|:out]`: a module as `named_modules()` of `lm.base_model`
spells it, and its first input or its (first) output, which is the default. The longer path that
`named_modules()` of `lm` itself gives ('model.layers.12') is accepted too. In a 26-layer Gemma 2:

    layers.12                              residual stream after block 12 = hidden_states[13]
    layers.25                              after the last block; hidden_states[-1] is *not* it, as
                                           the final norm has been applied to that one
    layers.12.self_attn.o_proj:in          the heads' outputs, concatenated, before W_O
    layers.12.pre_feedforward_layernorm    what the MLP reads
    layers.12.post_feedforward_layernorm   what the MLP adds to the residual stream

All of it is forward hooks, set on entry of a context and gone when it is left, by an exception or
not. A context entered later sees what an earlier one has written at the same place.

Threads may share a model: a context acts on the forward passes of the thread that entered it (and
of what copies its `contextvars`, as `asyncio.to_thread` does; a plain `threading.Thread` does not),
and on nobody else's. So enter it in the thread that runs the model.

Compiled code calls the hooks that it was compiled with and no others. So while any context is open,
what `torch.compile` made runs as the plain Python that it was made of, in every thread of the
process, SAEs included; after that the compiled code runs again, without being compiled anew.
"""

import difflib
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import transformers
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx or httpx2, by version
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from . import contract
from .loading import one_at_a_time
from .packaged import PACKAGED_LMS, packaged_lm, require_gguf_reader, require_packaged_lm
from .processor import refuse_absent, spare_bfloat16_

logger = logging.getLogger(__name__)


class Site(NamedTuple):
    """A module path under the decoder, and which side of that module."""

    module: str
    port: Literal["in", "out"] = "out"

    @classmethod
    def parse(cls, text: str) -> "Site":
        module, colon, port = text.partition(":")
        if not module or (colon and port not in ("in", "out")):
            raise ValueError(f"site {text!r} is not of the form {_GRAMMAR}.")
        return cls(module, "in" if port == "in" else "out")

    def __str__(self) -> str:
        return self.module if self.port == "out" else f"{self.module}:in"


_GRAMMAR = "'<module path>[:in|:out]', such as 'layers.12' or 'layers.12.self_attn.o_proj:in'"


def unwrapped(lm: nn.Module) -> PreTrainedModel:
    """The transformers model inside what `torch.compile` and PEFT wrap around it."""
    while not isinstance(lm, PreTrainedModel):
        compiled = lm._modules.get("_orig_mod")
        lm = cast(Any, lm).get_base_model() if compiled is None else compiled
    return lm


def find_module(lm: nn.Module, site: str) -> nn.Module:
    """The module that a site names, looked up under `lm.base_model`, under `lm` itself and, where a
    multimodal model nests its language model deeper, under that.

    Raises:
        ValueError: no such module (with the nearest ones), or a layer number past the last layer.
    """
    path, whole = Site.parse(site).module, unwrapped(lm)
    paths = (path, path.removeprefix(f"{whole.base_model_prefix}."))
    for root in (whole.base_model, lm, whole.get_decoder()):
        modules = dict(root.named_modules())
        for spelling in paths:
            if spelling in modules:
                return modules[spelling]
    raise ValueError(_not_found(paths[1], type(whole).__name__, modules))


def _not_found(path: str, lm_name: str, modules: Mapping[str, nn.Module]) -> str:
    stacks = {p: len(m) for p, m in modules.items() if isinstance(m, nn.ModuleList)}
    for stack, n in stacks.items():
        index = path.removeprefix(f"{stack}.").partition(".")[0]
        if path.startswith(f"{stack}.") and index.isdigit() and int(index) >= n:
            return f"site {path!r} is past the end: {lm_name} has {n} {stack}, 0 to {n - 1}."
    layers = [f"{stack}.0 to {stack}.{n - 1}" for stack, n in stacks.items() if "." not in stack]
    close = difflib.get_close_matches(path, modules, n=3, cutoff=0.0)
    return (
        f"site {path!r} is not in {lm_name}; closest: {', '.join(close)}; its layers: "
        f"{', '.join(layers)}. A site is {_GRAMMAR}."
    )


class _Eager:
    """Has torch.compile's code run as plain Python while any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._n_inside = threading.Lock(), 0
        self._stance: Any = None  # torch's, which holds for the whole process

    def __enter__(self) -> None:
        with self._lock:
            if self._stance is None:
                try:
                    self._stance = torch.compiler.set_stance("force_eager")
                except RuntimeError as error:
                    raise ValueError(
                        "this block is entered inside code that torch.compile compiled, where "
                        "hooks are not called; enter it outside, or leave that code uncompiled"
                    ) from error
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._stance.__exit__(None, None, None)
                self._stance = None  # kept where torch refuses: the next to leave tries again


_eager = _Eager()


class Passes:
    """The forward passes that a block is meant for: those of whoever entered it."""

    def __init__(self) -> None:
        self.n_reached = {True: 0, False: 0}  # hooks called, in these passes and in others

    def here(self) -> bool:
        """Whether this is one of them; for hooks without which the block has its effect too."""
        return self in _blocks.get()

    def reached(self) -> bool:
        """Whether this is one of them; a block in which the answer was never yes has no effect."""
        inside = self.here()
        self.n_reached[inside] += 1
        return inside


_blocks: ContextVar[frozenset[Passes]] = ContextVar("blocks entered here", default=frozenset())


@contextmanager
def own_passes(place: str, *, eager: bool = True) -> Iterator[Passes]:
    """A block for hooks at `place`: has them called, and tells them which passes it is meant for.

    Args:
        eager: False: compiled code stays compiled. For callers who know that none holds a hook.
    """
    passes = Passes()
    with _eager if eager else nullcontext():
        _blocks.set(_blocks.get() | {passes})
        try:
            yield passes
        finally:
            # not reset(token): a generator may be closed in another context than it was begun in
            _blocks.set(_blocks.get() - {passes})
    if passes.n_reached[True]:
        return
    if passes.n_reached[False]:
        warnings.warn(
            "the model ran in other threads only, where this block does not act: enter it in the "
            "thread that runs the model",
            stacklevel=2,
        )
    else:
        warnings.warn(
            f"no forward pass reached {place} inside this block, so it had no effect: run the "
            "model inside it, and not as an exported program or CUDA graph, which call no hooks",
            stacklevel=2,
        )


def blocks_below(lm: nn.Module, site: str) -> list[nn.Module]:
    """Decoder blocks that end before `site` begins; none if it is not inside a list of blocks."""
    path = Site.parse(site).module.split(".")
    for depth in range(1, len(path)):
        parent = find_module(lm, ".".join(path[:depth]))
        if isinstance(parent, nn.ModuleList):
            return list(parent[: int(path[depth])])
    return []


@contextmanager
def running_as(
    forwards: Mapping[nn.Module, Callable[..., Any]], *, eager: bool = True
) -> Iterator[None]:
    """Let modules run these functions in the place of their forward methods, hooks included; for
    other threads they run as ever. `eager`: as in `own_passes`."""
    if not forwards:
        yield
        return
    with _replacing, own_passes("the replaced modules", eager=eager) as passes:
        # A module may already have a forward of its own: accelerate's device hooks put one there.
        own = {module: vars(module).get("forward") for module in forwards}
        for module, forward in forwards.items():
            module.forward = partial(_either, passes.reached, forward, module.forward)
        try:
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:
                    module.forward = forward


_replacing = threading.Lock()  # by one thread at a time: each puts back what it found


def _either(
    here: Callable[[], bool],
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    return (ours if here() else theirs)(*args, **kwargs)


def _attach(
    lm: nn.Module,
    site: str,
    visit: Callable[[Tensor], Tensor | None],
    here: Callable[[], bool],
) -> RemovableHandle:
    """Shows `visit` the activation in forward passes from `here`; a tensor it returns replaces it.

    Blocks return a tensor in some families and versions and a tuple in others: `output[0]` of a
    tensor would silently be the first row of the batch. Inputs come by position or by keyword.
    """

    # kwargs has a default: torch leaves it out if another thread removes the hook at that moment
    def visit_input(
        module: nn.Module, args: tuple, kwargs: dict | None = None
    ) -> tuple[tuple, dict] | None:
        if kwargs is None or not here():
            return None
        if args:
            new = visit(_tensor(args[0], site))
            return None if new is None else ((new, *args[1:]), kwargs)
        key = next((key for key, value in kwargs.items() if isinstance(value, Tensor)), "input")
        new = visit(_tensor(kwargs.get(key), site))
        return None if new is None else (args, {**kwargs, key: new})

    def visit_output(module: nn.Module, args: tuple, output: Any) -> Any:
        if not here():
            return None
        if not isinstance(output, tuple):
            return visit(_tensor(output, site))
        new = visit(_tensor(output[0], site))
        return None if new is None else (new, *output[1:])

    module = find_module(lm, site)
    if Site.parse(site).port == "in":
        return module.register_forward_pre_hook(visit_input, with_kwargs=True)
    return module.register_forward_hook(visit_output)


def _tensor(value: Any, site: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"site {site!r} carries a {type(value).__name__}, not a tensor.")
    return value


class _Stop(Exception):
    """Ends a forward pass whose remaining layers nobody needs."""


@contextmanager
def capture(
    lm: nn.Module, sites: Sequence[str], *, stop_early: bool = False, eager: bool = True
) -> Iterator[dict[str, Tensor]]:
    """{site: activation [rows, ctx, d]} of the block's last forward pass, keyed as given.

        with capture(lm, ["layers.12"]) as activations:
            lm(**tokens)

    Tensors are the model's own: its dtype, in its autograd graph, not copied. Under `generate` with
    a KV cache the last forward pass holds one token a row.

    Args:
        stop_early: end the forward pass once every site was seen, so layers above cost nothing.
            This ends the *block*: the call of the model must be its last statement.
        eager: as in `own_passes`.
    """
    wanted = {sites} if isinstance(sites, str) else set(sites)
    activations: dict[str, Tensor] = {}

    def visit(site: str, activation: Tensor) -> None:
        activations[site] = activation
        if stop_early and len(activations) == len(wanted):
            # made here and kept nowhere: a stored one would hold the traceback's frames, and every
            # activation in them, in a reference cycle
            raise _Stop(activations)

    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(", ".join(sorted(wanted)), eager=eager))
        for site in wanted:
            hooks.callback(_attach(lm, site, partial(visit, site), passes.reached).remove)
        try:
            yield activations
        except _Stop as stop:
            if stop.args[0] is not activations:  # that of a capture around this one
                raise


@contextmanager
def patch(lm: nn.Module, replacements: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside the block `replacements[site](activation)` takes the activation's place.

    What it returns is cast to the activation's dtype and device.

    Raises:
        ValueError: (in the forward pass) it has another shape.
    """
    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(", ".join(replacements)))
        for site, replacement in replacements.items():
            visit = partial(_replaced, site, replacement)
            hooks.callback(_attach(lm, site, visit, passes.reached).remove)
        yield


def _replaced(site: str, replacement: Callable[[Tensor], Tensor], activation: Tensor) -> Tensor:
    new = replacement(activation)
    if new.shape != activation.shape:
        raise ValueError(
            f"the replacement at {site!r} has shape {tuple(new.shape)}, "
            f"the activation there {tuple(activation.shape)}."
        )
    return new.to(activation)


class Moment(NamedTuple):
    """A forward pass at the moment when an intervention writes."""

    source: Float[Tensor, "rows ctx d_in"]
    """The activation at the SAE's site, cast for the SAE."""
    target: Float[Tensor, "rows ctx d_out"]
    """What is replaced: the activation at the target site, as the model has it."""
    input_ids: Int[Tensor, "rows ctx"] | None
    """None if the model was given embeddings."""
    n_cached: int
    """Tokens a row that the KV cache holds from earlier passes."""


@contextmanager
def intervene(lm: nn.Module, sae: Any, write: Callable[[Moment], Tensor]) -> Iterator[None]:
    """Inside the block `write(moment)` takes the place of what `sae` reconstructs.

    That is the activation at its `target_site` for a transcoder, else at its `site`.

    Raises:
        ValueError: the SAE names no site; or, in the forward pass, the target runs before it.
    """
    site = sae.config.site
    if site is None:
        raise ValueError("the SAE names no site; set config.site, e.g. to 'layers.12'.")
    contract.check(sae.config, unwrapped(lm))
    target = getattr(sae.config, "target_site", None) or site
    under_way = threading.local()  # source, input_ids and n_cached of a thread's forward pass

    def read(x: Tensor) -> None:
        under_way.source = cast_for(sae, x)

    def replace(x: Tensor) -> Tensor:
        if getattr(under_way, "source", None) is None:
            raise ValueError(f"target_site {target!r} runs before site {site!r}; swap them.")
        source, under_way.source = under_way.source, None
        return write(Moment(source, x, under_way.input_ids, under_way.n_cached))

    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(target))
        hooks.callback(_note_tokens(unwrapped(lm), sae.config, under_way, passes.here).remove)
        hooks.callback(_attach(lm, site, read, passes.here).remove)
        visit = partial(_replaced, target, replace)
        hooks.callback(_attach(lm, target, visit, passes.reached).remove)
        yield


@contextmanager
def splice(
    lm: nn.Module,
    sae: Any,
    *,
    error_term: bool = False,
    edit: Callable[[Tensor], Tensor] | None = None,
    keep: Bool[Tensor, "rows ctx"] | None = None,
    spare_tokens: Sequence[int] = (),
) -> Iterator[None]:
    """Inside the block the model runs on the SAE's reconstruction at `sae.config.site`.

    A transcoder reads at `site` and writes at `target_site`. Works under `generate` as well.

    Args:
        sae: anything with `encode(x)`, `decode(latents, x)`, `config.site`; x is cast for it.
        error_term: add what the SAE does not explain: x + decode(edit(latents)) - decode(latents);
            without an edit this is x, bit for bit.
        edit: latents [rows, ctx, d_sae] -> latents, before they are decoded.
        keep: the positions to replace; others keep the model's own activation.
        spare_tokens: ids never replaced (BOS, pad: SAEs are not trained on them), found in each
            forward pass's own input_ids and so, unlike `keep`, right under `generate`.

    Raises:
        ValueError: the SAE names no site; or, in the forward pass, `keep` has another shape than
            the activation, or the target runs before the site.
    """

    place = str(getattr(sae.config, "target_site", None) or sae.config.site)

    def write(moment: Moment) -> Tensor:
        x, source = moment.target, moment.source
        if error_term and edit is None:
            return x
        latents = sae.encode(source)
        new = sae.decode(latents if edit is None else edit(latents), source)
        if error_term:
            # the difference first: an edit that changes nothing then adds exactly zero
            new = x + (new - sae.decode(latents, source)).to(x.device)
        new = new.to(x)
        if keep is not None:
            new = torch.where(_matching(keep, x, place), new, x)
        if len(spare_tokens) > 0:
            edited = unspared(moment.input_ids, spare_tokens)
            new = torch.where(_matching(edited, x, place), new, x)
        return new

    with intervene(lm, sae, write):
        yield


def _note_tokens(
    lm: PreTrainedModel, config: Any, under_way: threading.local, here: Callable[[], bool]
) -> RemovableHandle:
    """Keep each forward pass's input_ids, and look for BOS in those that begin the text."""

    def note(module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is None or not here():  # see _attach
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        # "past_key_values" or, in later versions of transformers, "cache"
        cache = next((v for v in kwargs.values() if hasattr(v, "get_seq_length")), None)
        under_way.n_cached = 0 if cache is None else int(cache.get_seq_length())
        if ids is not None and under_way.n_cached == 0 and not hasattr(under_way, "input_ids"):
            contract.check_bos(config, lm, ids)
        under_way.input_ids = ids
        under_way.source = None  # a pass that broke off may have left one

    return lm.base_model.register_forward_pre_hook(note, with_kwargs=True)


def special_ids(lm: nn.Module) -> list[int]:
    """The ids of BOS, EOS and padding that the model's configs name."""
    lm, found = unwrapped(lm), set[int]()
    for config in (lm.config, getattr(lm, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(config, name, None)
            found |= {ids} if isinstance(ids, int) else set(ids or ())
    return sorted(found)


def unspared(
    input_ids: Int[Tensor, "rows ctx"] | None, spare_tokens: Sequence[int]
) -> Bool[Tensor, "rows ctx"]:
    """True where the token is none of `spare_tokens`.

    Raises:
        ValueError: there are no ids to look at.
    """
    if input_ids is None:
        raise ValueError(
            "spare_tokens needs input_ids, this forward pass got inputs_embeds; pass input_ids, or "
            "spare_tokens=() to spare none"
        )
    return ~torch.isin(input_ids, torch.tensor(list(spare_tokens), device=input_ids.device))


def random_places(
    input_ids: Int[Tensor, "rows ctx"],
    n: int,
    *,
    spare_tokens: Sequence[int],
    seed: int,
) -> Int[Tensor, "n 2"]:
    """Rows and columns of n random tokens that are not spared and have a next one; fewer if there
    are fewer."""
    places = unspared(input_ids, spare_tokens)[:, :-1].nonzero()
    generator = torch.Generator().manual_seed(seed)
    return places[torch.randperm(len(places), generator=generator)[:n].to(places.device)]


def cast_for(sae: Any, x: Tensor) -> Tensor:
    """x in the dtype and on the device of `sae`, if that has any."""
    return x.to(getattr(sae, "device", x.device), getattr(sae, "dtype", x.dtype))


def _matching(mask: Tensor, activation: Tensor, site: str) -> Tensor:
    if mask.shape != activation.shape[:-1]:
        raise ValueError(
            f"keep has shape {tuple(mask.shape)}, the activation at {site!r} "
            f"{tuple(activation.shape)}; under generate, where shapes change, use spare_tokens."
        )
    return mask.to(activation.device)[..., None]


def site_width(lm: nn.Module, site: str) -> int:
    """Width of the activation at a site, from a forward pass of one token that stops there.

    Works on the meta device too, for estimates without weights.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=unwrapped(lm).device)
    with torch.no_grad(), capture(lm, [site], stop_early=True) as activations:
        lm(input_ids=token)
    return activations[site].shape[-1]


class LoadedLM(NamedTuple):
    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: str
    """Which copy it is, in words: Hub and commit, Python package and version, or folder."""


class _Copy(NamedTuple):
    path: str
    options: dict[str, Any]
    origin: str


def load_lm(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    source: Literal["auto", "hub", "packaged"] = "auto",
) -> LoadedLM:
    """A causal language model, frozen and in eval mode, with its tokenizer.

    Args:
        name: a Hub id, a folder that `save_pretrained` wrote model and tokenizer to, or a .gguf
            file or a folder with one.
        dtype: a torch dtype or its name, or "auto": as saved (a .gguf file: float32).
        source: "auto" takes the Hub's copy, fresh or cached, and where neither can be had the
            packaged one, if there is one and no revision is asked for.

    Raises:
        ValueError: not found, gated, unreachable, no such device, a package or the tokenizer
            missing; one sentence with the remedy.
    """
    known = dtype == "auto" or isinstance(dtype, torch.dtype)
    if not known and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ValueError(f"dtype {dtype!r} does not exist; choose 'auto', 'float32' or 'bfloat16'.")
    refuse_absent(device)
    copy = _locate(name, revision, source)
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        tokenizer = _tokenizer(copy)
        with one_at_a_time:
            lm, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                copy.path,
                dtype=dtype,
                output_loading_info=True,
                **attention,
                **copy.options,
                **_dense(copy),
            )
        _refuse_random_weights(sorted(info["missing_keys"]))
    except Exception as error:  # readers of damaged files raise whatever they meet
        raise ValueError(_why_not(name, revision, error)) from error
    commit = getattr(lm.config, "_commit_hash", None)
    origin = f"{copy.origin} at {commit}" if commit else copy.origin
    logger.info("%s: %s, %s", name, origin, lm.dtype)
    lm.name_or_path = name  # a packaged copy is of this model, too
    lm.to(device)  # pyright: ignore[reportArgumentType] - transformers' wrapper hides the types
    spare_bfloat16_(lm)
    return LoadedLM(lm.eval().requires_grad_(False), tokenizer, origin)


def empty_lm(
    name: str,
    *,
    revision: str | None = None,
    source: Literal["auto", "hub", "packaged"] = "auto",
) -> PreTrainedModel:
    """The model without its weights, on the meta device: what an estimate needs.

    Raises:
        ValueError: as `load_lm`; only the config is read.
    """
    copy = _locate(name, revision, source)
    try:
        config = AutoConfig.from_pretrained(copy.path, **copy.options)
    except Exception as error:  # as in load_lm
        raise ValueError(_why_not(name, revision, error)) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"model {name!r} is a {config.model_type}, no causal language model")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def _refuse_random_weights(missing: Sequence[str]) -> None:
    """transformers makes up weights that a file lacks, and only logs which."""
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ValueError(
            f"its files lack {missing[0]}{more}, which would be random; is the download whole, and "
            "is it a causal language model?"
        )


def _tokenizer(copy: _Copy) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Where there is none, transformers fails in three lines or makes
    one of special tokens alone, to which any text is empty."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(copy.path, **copy.options)
    except ValueError as error:
        files = ("tokenizer.*", "*vocab*", "*.model", "*.tiktoken", "tekken.json", "*.gguf", "*.py")
        folder = Path(copy.path)
        if not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in files):
            raise
        raise ValueError(_NO_TOKENIZER) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(_NO_TOKENIZER)
    return tokenizer


_NO_TOKENIZER = (
    "it comes without a tokenizer; save the one it was trained with to its folder, as with "
    "tokenizer.save_pretrained(folder)"
)


def _dense(copy: _Copy) -> dict[str, Any]:
    """Keeps GGUF weights from staying packed where a kernel is installed: not the same numbers."""
    if "gguf_file" not in copy.options or not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _locate(name: str, revision: str | None, source: str) -> _Copy:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _in_folder(name, Path(path))
    if os.path.isfile(path):
        if not name.endswith(".gguf"):
            raise ValueError(f"model {name!r} is a file; name its folder, or a .gguf file")
        return _gguf_copy(Path(path))
    if _is_path(name):
        raise ValueError(f"model {name!r} is a local path, but {_missing(name)}")
    if source == "packaged":
        return _packaged_copy(name, revision)
    online = not is_offline_mode() and _hub_answers(name, revision)
    fallback = source == "auto" and revision is None and packaged_lm(name) is not None
    if fallback and not online and not _is_cached(name):
        return _packaged_copy(name, revision)
    # local_files_only: an unreachable Hub would be retried for half a minute
    return _Copy(name, {"revision": revision, "local_files_only": not online}, "Hugging Face Hub")


def _in_folder(name: str, folder: Path) -> _Copy:
    if (folder / "config.json").is_file():
        return _Copy(str(folder), {}, f"folder {name}")
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise ValueError(
            f"the folder {name!r} holds no model: it has no config.json and no .gguf file"
        )
    if len(files) > 1:
        shown = ", ".join(file.name for file in files[:5]) + (", ..." if files[5:] else "")
        raise ValueError(
            f"the folder {name!r} holds {len(files)} .gguf files ({shown}); name one of them, such "
            f"as {str(Path(name, files[0].name))!r}"
        )
    return _gguf_copy(files[0])


def _gguf_copy(file: Path) -> _Copy:
    if re.search(r"-\d+-of-\d+\.gguf$", file.name):
        raise ValueError(
            f"{str(file)!r} is one part of a model, whose other weights would be random; merge the "
            "parts into one file: `llama-gguf-split --merge`"
        )
    require_gguf_reader(repr(str(file)))
    return _Copy(str(file.parent), {"gguf_file": file.name}, f"folder {file.parent}, {file.name}")


def _is_path(name: str) -> bool:
    """Whether a name can only be meant as a path: a Hub id is 'owner/model' or 'model'."""
    begins = name.startswith((".", "~", "/", os.sep))
    return begins or name.count("/") > 1 or name.endswith(("/", ".gguf"))


def _missing(name: str) -> str:
    """Where along a path the file system ends, with the nearest names there."""
    path = Path(os.path.expanduser(name))
    there = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    absent = path.relative_to(there).parts[0]
    try:
        close = difflib.get_close_matches(absent, os.listdir(there), n=3, cutoff=0.6)
    except OSError:  # a folder that may not be read
        close = []
    hint = f"; did you mean {' or '.join(repr(str(there / c)) for c in close)}?" if close else ""
    where = "the working directory" if there == Path(".") else f"the folder {str(there)!r}"
    return f"{where} holds no {absent!r}{hint}"


def _packaged_copy(name: str, revision: str | None) -> _Copy:
    if revision is not None:
        raise ValueError(
            f"the packaged copy of {name!r} has no revisions: leave out revision={revision!r}."
        )
    copy = require_packaged_lm(name)
    return _Copy(str(copy.folder), {"gguf_file": copy.gguf_file}, copy.origin)


def _hub_answers(name: str, revision: str | None) -> bool:
    """One short request; a refusal is an answer too."""
    try:
        HfApi().model_info(name, revision=revision, timeout=5.0)
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except HTTPError:
        return False
    except HFValidationError:
        return True
    return True


def _is_cached(name: str) -> bool:
    weights = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in weights)


def _why_not(name: str, revision: str | None, error: BaseException) -> str:
    """One sentence for transformers' error, whose text has several lines and at times misleads."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    reasons = {  # in this order: a gated repository is a subclass of one not found
        GatedRepoError: f"is gated: accept its terms at https://huggingface.co/{name} and run "
        "`hf auth login`",
        RepositoryNotFoundError: "is neither a local folder nor a model on the Hub that you may "
        "read: check the name, or run `hf auth login` if it is private",
        RevisionNotFoundError: f"has no revision {revision!r} on the Hub",
        HFValidationError: "is neither a local folder nor a Hub id like 'google/gemma-2-2b'",
        LocalEntryNotFoundError: _unreachable(name),
    }
    for kind, reason in reasons.items():
        if any(isinstance(cause, kind) for cause in causes):
            is_absent = kind in (RepositoryNotFoundError, LocalEntryNotFoundError)
            if is_absent and name.count("/") == 1 and os.path.isdir(os.path.dirname(name)):
                reason += f"; if a local path is meant, {_missing(name)}"
            return f"model {name!r} {reason}."
    return f"model {name!r} cannot be loaded: {_in_brief(error)}"


def _in_brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # a first line that ends in a colon needs the list below it
    whole = lines[0].rstrip().endswith(":")
    text = " ".join(line.strip() for line in lines) if whole else lines[0]
    speaks = isinstance(error, ImportError | OSError | ValueError | SafetensorError)
    return text if speaks else f"{type(error).__name__}: {text}"


def _unreachable(name: str) -> str:
    hub = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the Hub cannot be reached"
    remedy = "go online once, or name a local folder"
    if name in PACKAGED_LMS:
        remedy = f"a packaged copy comes with `{PACKAGED_LMS[name].install_command}`"
    return f"is not in the local cache and {hub}: {remedy}"
