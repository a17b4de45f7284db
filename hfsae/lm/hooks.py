"""Run a model, and read and replace activations at sites, by forward hooks.

Entering a context sets its hooks; leaving it, by an exception too, removes them. At one site, a
context that was entered later reads the output of an earlier one.

Threads may share a model: a context acts only on forward passes of the thread that entered it (and
of copies of its `contextvars`: `asyncio.to_thread` makes one, a plain `threading.Thread` does not).
So enter it in the thread that runs the model.

Code from `torch.compile` calls only the hooks of the time of compilation. So while any context is
open, it runs as plain Python in every thread of the process, SAEs included; afterwards the compiled
code runs again, without a new compilation.

**Sites** are places in a language model. A site is written `<module path>[:in|:out]`: a module as
`named_modules()` of `lm.base_model` spells it, and its first input or its (first) output, which is
the default. The longer path that `named_modules()` of `lm` itself gives ('model.layers.12') is
accepted too. In a 26-layer Gemma 2:

    layers.12                              residual stream after block 12 = hidden_states[13]
    layers.25                              after the last block; hidden_states[-1] is *not* it, as
                                           the final norm has been applied to that one
    layers.12.self_attn.o_proj:in          the heads' outputs, concatenated, before W_O
    layers.12.pre_feedforward_layernorm    what the MLP reads
    layers.12.post_feedforward_layernorm   what the MLP adds to the residual stream
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..io.errors import Refused, closest, one_line
from .places import GRAMMAR, Site, shown

_MISSPELT = 0.9  # similarity of two paths from which on one is the other, misspelt


@runtime_checkable
class Autoencoder(Protocol):
    """The least that an SAE must have to reconstruct, so that others' own classes work, too.

    Of its config `site` alone is needed. Where an SAE only encodes, or only its place matters,
    functions ask for `encode` and `config`, or for `config`.
    """

    @property
    def config(self) -> Any:
        """It names the SAE's site."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Latents [*batch, d_sae] of raw activations [*batch, d_in]."""
        ...

    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor:
        """Raw activations [*batch, d_out] of latents, and of the input that they are of."""
        ...


class Sites(tuple[tuple[str, int], ...]):
    """The sites that an SAE reads, or those that it writes, each with the width of activations
    there. Of several sites the SAE has the activations side by side, in this order."""

    @classmethod
    def one(cls, site: str | None, width: int) -> "Sites":
        """A single site.

        Raises:
            ValueError: the site is None.
        """
        if site is None:
            raise Refused(
                "this SAE names no site; give --site on the command line, or set "
                "sae.config.site, for example to 'layers.12'"
            )
        return cls([(site, width)])

    @property
    def names(self) -> tuple[str, ...]:
        """The sites without their widths."""
        return tuple(site for site, _ in self)

    @property
    def only_site(self) -> str:
        """The single site.

        Raises:
            ValueError: there are several.
        """
        if len(self) > 1:
            raise Refused(
                f"this SAE has {len(self)} sites ({self}), but this function needs a "
                "single site; give an SAE with one site"
            )
        return self.names[0]

    def joined(self, activations: Mapping[str, Tensor]) -> Float[Tensor, "*batch d"]:
        """Activations at these sites, side by side; of a single site, as they are."""
        parts = [activations[site] for site in self.names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def split(self, x: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """The columns of x that belong to each site: the inverse of `joined`."""
        parts = [x] if len(self) == 1 else x.split([width for _, width in self], dim=-1)
        return dict(zip(self.names, parts, strict=True))

    def __str__(self) -> str:
        return ", ".join(self.names)


def reads_of(config: Any) -> Sites:
    """The sites that an SAE reads.

    Args:
        config: anything with `reads`, or else with `site`, and a width of 0 if it has no `d_in`.

    Raises:
        ValueError: no site is named.
    """
    return getattr(config, "reads", None) or Sites.one(config.site, getattr(config, "d_in", 0))


def writes_of(config: Any) -> Sites:
    """The sites that an SAE reconstructs.

    Args:
        config: anything with `writes`, or else with `site`; with a `target_site` of its own, it is
            a transcoder's. Its width is 0 if it has no `d_out`.

    Raises:
        ValueError: no site is named.
    """
    if own := getattr(config, "writes", None):
        return own
    target = config.site and (getattr(config, "target_site", None) or config.site)
    return Sites.one(target, getattr(config, "d_out", 0))


def widths_of(*configs: Any) -> dict[str, int]:
    """By site the width of activations, wherever one of these SAEs reads or writes."""
    sides = (side(config) for config in configs for side in (reads_of, writes_of))
    return {site: width for side in sides for site, width in side}


def unwrapped(lm: nn.Module) -> PreTrainedModel:
    """The transformers model inside what `torch.compile` and PEFT wrap around it.

    Raises:
        ValueError: `lm` is not a model of transformers.
    """
    while not isinstance(lm, PreTrainedModel):
        if isinstance(lm, nn.Module) and "_orig_mod" in lm._modules:
            lm = cast(nn.Module, lm._modules["_orig_mod"])
        elif hasattr(lm, "get_base_model"):
            lm = cast(Any, lm).get_base_model()
        else:
            raise Refused(
                f"lm is {shown(lm)}; pass a language model of transformers, such as "
                "hfsae.load_lm(name).lm"
            )
    return lm


def check_arguments(call: str, lm: object, *saes: object) -> None:
    """Check that `lm` is a language model and `sae` an SAE, and not the other way round.

    Args:
        call: name of the function under `hfsae`.

    Raises:
        ValueError: one sentence that shows the right call.
    """
    first = next(iter(lm.values()), None) if isinstance(lm, Mapping) else lm
    if hasattr(first, "encode") and hasattr(first, "decode") and hasattr(first, "config"):
        raise Refused(
            f"hfsae.{call} got an SAE as its first argument; the language model comes first: "
            f"hfsae.{call}(lm, sae, ...)"
        )
    unwrapped(cast(Any, lm))
    for sae in saes:
        if not (hasattr(sae, "encode") and hasattr(sae, "config")):
            raise Refused(f"sae is {shown(sae)}; pass an SAE, such as hfsae.load(folder)")


def named(sites: str | Iterable[str]) -> list[str]:
    """One site or several, each once.

    Raises:
        ValueError: one is not text, or of another form.
    """
    is_one = isinstance(sites, str) or not isinstance(sites, Iterable)
    several: list[Any] = list(dict.fromkeys([sites] if is_one else sites))
    for site in several:
        Site.parse(site)
    return several


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
    path, name = paths[1], type(whole).__name__
    stacks = {p: len(m) for p, m in modules.items() if isinstance(m, nn.ModuleList)}
    for stack, n in stacks.items():
        index, dot, inside = path.removeprefix(f"{stack}.").partition(".")
        if path.startswith(f"{stack}.") and index.isdigit() and int(index) >= n:
            last = f"{stack}.{n - 1}"
            nearest = f"{last}{dot}{inside}" if f"{last}{dot}{inside}" in modules else last
            raise Refused(
                f"site {path!r} is past the end: {name} has {n} {stack}, 0 to {n - 1}; the "
                f"nearest is {nearest!r}"
            )
    # Name the modules of the block, or of its part, that the path begins with: spelling alone would
    # mislead there, as another model's name for what the MLP adds is most like the name of what
    # this one's MLP reads. Elsewhere name those that are spelt most like it.
    holder = path.rpartition(".")[0]
    while holder and holder not in modules:
        holder = holder.rpartition(".")[0]
    inside = [f"{holder}.{child}" for child, _ in modules[holder].named_children()]
    if not holder or not inside or isinstance(modules[holder], nn.ModuleList):
        near = closest(path, [*modules], cutoff=0.0)  # however far: no list of all would be read
    else:
        below = [module for module in modules if module.startswith(f"{holder}.")]
        near = closest(path, below, cutoff=_MISSPELT)
        near = near or f"; {holder!r} holds {', '.join(map(repr, inside))}"
    layers = [f"{stack}.0 to {stack}.{n - 1}" for stack, n in stacks.items() if "." not in stack]
    raise Refused(
        f"site {path!r} is not in {name}{near}; its layers: {', '.join(layers)}; a site is "
        f"{GRAMMAR}"
    )


def blocks_below(lm: nn.Module, site: str) -> list[nn.Module]:
    """Decoder blocks that end before `site` begins; none if it is not inside a list of blocks."""
    path = Site.parse(site).module.split(".")
    for depth in range(1, len(path)):
        parent = find_module(lm, ".".join(path[:depth]))
        if isinstance(parent, nn.ModuleList):
            return list(parent[: int(path[depth])])
    return []


class _Eager:
    """Runs torch.compile's code as plain Python while any thread is inside the context."""

    def __init__(self) -> None:
        self._lock, self._n_inside = threading.Lock(), 0
        self._stance: Any = None  # torch's stance holds for the whole process

    def __enter__(self) -> None:
        with self._lock:
            if self._stance is None:
                try:
                    self._stance = torch.compiler.set_stance("force_eager")
                except RuntimeError as error:
                    raise Refused(
                        "this block is entered inside code from torch.compile, which does not call "
                        "hooks; enter it outside, or do not compile that code"
                    ) from error
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._stance.__exit__(None, None, None)
                self._stance = None  # if torch refuses, it stays: the next exit tries again


_eager = _Eager()


class Passes:
    """The forward passes on which a block acts: those in the context that entered it."""

    def __init__(self) -> None:
        self.n_reached = {True: 0, False: 0}  # calls of hooks, in these passes and in others

    def own(self) -> bool:
        """Whether the block acts on this forward pass; for hooks that do not make its effect."""
        return self in _blocks.get()

    def reached(self) -> bool:
        """Whether the block acts on this forward pass; if never, the block warns at its end."""
        inside = self.own()
        self.n_reached[inside] += 1
        return inside


_blocks: ContextVar[frozenset[Passes]] = ContextVar("blocks of this context", default=frozenset())


@contextmanager
def own_passes(place: str, *, eager: bool = True) -> Iterator[Passes]:
    """Yields what tells hooks at `place` which passes are of the context that entered the block.

    Args:
        eager: False: compiled code stays compiled. For callers whose hooks are not inside it.
    """
    passes = Passes()
    with _eager if eager else nullcontext():
        _blocks.set(_blocks.get() | {passes})
        try:
            yield passes
        finally:
            # not reset(token): a generator may end in another context than it began in
            _blocks.set(_blocks.get() - {passes})
    if passes.n_reached[True]:
        return
    if passes.n_reached[False]:
        warnings.warn(
            "the model ran only in other threads, so this block had no effect: enter it in the "
            "thread that runs the model",
            stacklevel=2,
        )
    else:
        warnings.warn(
            f"no forward pass reached {place} inside this block, so it had no effect: "
            "run the model inside it, and not as an exported program or CUDA graph, "
            "which call no hooks",
            stacklevel=2,
        )


@contextmanager
def running_as(
    forwards: Mapping[nn.Module, Callable[..., Any]], *, eager: bool = True
) -> Iterator[None]:
    """Replace modules' forward methods in this thread; hooks still run, other threads are
    unaffected. `eager`: as in `own_passes`."""
    if not forwards:
        yield
        return
    with _replacing, own_passes("the replaced modules", eager=eager) as passes:
        # A module may already have its own forward: accelerate's device hooks set one.
        own = {module: vars(module).get("forward") for module in forwards}

        def either(ours: Callable[..., Any], theirs: Callable[..., Any], *a: Any, **kw: Any) -> Any:
            return (ours if passes.reached() else theirs)(*a, **kw)

        for module, forward in forwards.items():
            module.forward = partial(either, forward, module.forward)
        try:
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:
                    module.forward = forward


_replacing = threading.RLock()  # one thread at a time: each restores the state before it


def attach(
    lm: nn.Module,
    site: str,
    visit: Callable[[Tensor], Tensor | None],
    is_own: Callable[[], bool],
) -> RemovableHandle:
    """Calls `visit(activation)` in forward passes with `is_own()`; a returned tensor replaces it.

    Blocks return a tensor in some model families and versions, a tuple in others: `output[0]` of a
    tensor would silently be the first row of the batch. Inputs come by position or by keyword.
    """

    # kwargs has a default: torch omits it if another thread removes the hook at that moment
    def visit_input(
        module: nn.Module, args: tuple, kwargs: dict | None = None
    ) -> tuple[tuple, dict] | None:
        if kwargs is None or not is_own():
            return None
        if args:
            new = visit(_tensor(args[0], site))
            return None if new is None else ((new, *args[1:]), kwargs)
        key = next((key for key, value in kwargs.items() if isinstance(value, Tensor)), "input")
        new = visit(_tensor(kwargs.get(key), site))
        return None if new is None else (args, {**kwargs, key: new})

    def visit_output(module: nn.Module, args: tuple, output: object) -> Tensor | tuple | None:
        if not is_own():
            return None
        if not isinstance(output, tuple):
            return visit(_tensor(output, site))
        new = visit(_tensor(output[0], site))
        return None if new is None else (new, *output[1:])

    module = find_module(lm, site)
    if Site.parse(site).port == "in":
        return module.register_forward_pre_hook(visit_input, with_kwargs=True)
    return module.register_forward_hook(visit_output)


def _tensor(value: object, site: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise Refused(
            f"site {site!r} carries a {type(value).__name__}, not a tensor; name another site"
        )
    return value


class _Stop(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


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
        stop_early: end the forward pass after the last site, so that the layers above it do not
            run. This ends the *block*: the call of the model must be its last statement.
        eager: as in `own_passes`.
    """
    sites = named(sites)
    activations: dict[str, Tensor] = {}

    def visit(site: str, activation: Tensor) -> None:
        activations[site] = activation
        if stop_early and len(activations) == len(sites):
            # not stored: its traceback holds frames with activations, in a reference cycle
            raise _Stop(activations)

    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(", ".join(sorted(sites)), eager=eager))
        for site in sites:
            hooks.callback(attach(lm, site, partial(visit, site), passes.reached).remove)
        try:
            yield activations
        except _Stop as stop:
            if stop.args[0] is not activations:  # it belongs to a capture around this one
                raise
            # From Python 3.12 on its traceback and this frame hold each other, and so activations
            stop.__traceback__ = None


@contextmanager
def patch(lm: nn.Module, replacements: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside the block `replacements[site](activation)` replaces the activation at the site.

    The new tensor is cast to the activation's dtype and device.

    Raises:
        ValueError: in the forward pass, if the new tensor has another shape.
    """
    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(", ".join(named(replacements))))
        for site, replacement in replacements.items():
            visit = partial(replaced, site, replacement)
            hooks.callback(attach(lm, site, visit, passes.reached).remove)
        yield


def replaced(site: str, replacement: Callable[[Tensor], Tensor], activation: Tensor) -> Tensor:
    new = replacement(activation)
    if new.shape != activation.shape:
        raise Refused(
            f"the replacement at {site!r} has shape {tuple(new.shape)}, "
            f"the activation there {tuple(activation.shape)}; they must be equal"
        )
    return new.to(activation)


def activations_read(lm: nn.Module, config: Any, **inputs: Tensor) -> Tensor:
    """What an SAE of this config reads, [rows, ctx, d_in], on a forward pass that stops there."""
    reads = reads_of(config)
    with capture(lm, reads.names, stop_early=True) as activations:
        lm(**inputs, use_cache=False)
    return reads.joined(activations)


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """The output of a model on its inputs, by name; of a language model on {"input_ids": ...}.

    Inputs go to the model's device, those in floating point in its dtype. Nothing is cached.
    """
    whole = unwrapped(model)
    cast = {
        name: x.to(whole.device, whole.dtype if x.is_floating_point() else x.dtype)
        for name, x in inputs.items()
    }
    return model(**cast, use_cache=False) if "input_ids" in cast else model(**cast)


def smallest_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Zeros in the shape of one picture; of a language model one token."""
    whole = unwrapped(model)
    if whole.main_input_name != "pixel_values":
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=whole.device)}
    size = getattr(whole.config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, getattr(whole.config, "num_channels", 3), height, width)
    return {"pixel_values": torch.zeros(shape, dtype=whole.dtype, device=whole.device)}


def site_width(model: nn.Module, site: str) -> int:
    """Width of the activation at a site, from a forward pass of `smallest_inputs` that stops there.

    Works on the meta device too, for estimates without weights.

    Raises:
        ValueError: there is no such site, or it has not one vector a position.
    """
    return _at_sites(model, [site], smallest_inputs(model))[site].shape[-1]


def n_positions(model: nn.Module, sites: Sequence[str], inputs: Mapping[str, Tensor]) -> int:
    """The number of positions that each of the sites has on the first row of some inputs.

    Raises:
        ValueError: the model does not take such inputs, a site has not one vector a position, or
            the sites differ in their positions.
    """
    acts = _at_sites(model, sites, {name: x[:1] for name, x in inputs.items()})
    counts = {site: x.shape[1] for site, x in acts.items()}
    if len({*counts.values()}) > 1:
        listed = ", ".join(f"{site} {n}" for site, n in counts.items())
        raise Refused(f"the sites differ in their positions ({listed}); train them apart")
    return next(iter(counts.values()))


@torch.no_grad()
def _at_sites(
    model: nn.Module, sites: Sequence[str], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    try:
        with capture(model, sites, stop_early=True) as acts:
            if "input_ids" in inputs:  # `forward` uses no cache, which fails on the meta device
                model(**inputs)
            else:
                forward(model, inputs)
    except Refused:
        raise
    except (ValueError, RuntimeError) as error:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
        raise Refused(
            f"{type(unwrapped(model)).__name__} does not take {shapes} ({one_line(error)}); does "
            "its processor belong to it?"
        ) from error
    for site, x in acts.items():
        if x.ndim != 3 or len(x) != 1:
            raise Refused(
                f"site {site!r} has activations of shape {list(x.shape)} for one input; name a "
                "site with one vector a position, [1, positions, width], such as a block"
            )
    return acts


# The prompt of a call of `generate`, for hooks in the forward passes inside it: assisted and
# prompt-lookup decoding check several new tokens in one forward pass, the first of them behind the
# prompt, so that a pass alone does not show where the prompt ends.

_prompt: ContextVar[int | None] = ContextVar("tokens in the prompt of generate", default=None)
_noted: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # that are open, by model
_own: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # a `generate` that the model had
_counting = threading.Lock()


def prompt_length() -> int | None:
    """Tokens in each row of the prompt, padding and cached ones included, of the call of `generate`
    that this forward pass belongs to; None outside of one, or of `noting_prompts`."""
    return _prompt.get()


@contextmanager
def noting_prompts(lm: nn.Module) -> Iterator[None]:
    """Inside the block `prompt_length` is known in calls of the model's `generate`."""
    model: Any = unwrapped(lm)
    with _counting:
        if not _noted.get(model):
            _own[model] = vars(model).get("generate")
            model.generate = partial(_noting, model.generate)
        _noted[model] = _noted.get(model, 0) + 1
    try:
        yield
    finally:
        with _counting:
            _noted[model] -= 1
            if not _noted[model]:
                del model.generate
                if (own := _own.pop(model)) is not None:
                    model.generate = own


def _noting(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if _prompt.get() is not None:  # a draft of the model itself, for the call around this one
        return generate(*args, **kwargs)
    names = ("inputs", "input_ids", "inputs_embeds", "attention_mask")
    parts = [*args[:1], *map(kwargs.get, names)]
    # the mask is longer than the ids if only those that are not in the cache are given
    n_tokens = max((part.shape[1] for part in parts if isinstance(part, Tensor)), default=1)
    token = _prompt.set(n_tokens)
    try:
        return generate(*args, **kwargs)
    finally:
        _prompt.reset(token)
