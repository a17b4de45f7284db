"""Run a language model on an SAE's reconstructions, edited or not."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..io.errors import Refused
from . import contract
from .hooks import (
    Autoencoder,
    attach,
    capture,
    check_arguments,
    own_passes,
    reads_of,
    replaced,
    unwrapped,
    writes_of,
)


class Moment(NamedTuple):
    """A forward pass at the moment when an intervention writes."""

    source: Float[Tensor, "rows ctx d_in"]
    """The activation at the SAE's site, cast for the SAE."""
    target: Float[Tensor, "rows ctx d_out"]
    """The model's activation at the target site, before the intervention."""
    input_ids: Int[Tensor, "rows ctx"] | None
    """None if the model's input is embeddings."""
    n_cached: int
    """Tokens per row in the KV cache, from earlier passes."""


@contextmanager
def intervene(
    lm: nn.Module,
    sae: Any,
    write: Callable[[Moment], Tensor],
    *,
    sites: Sequence[str] | None = None,
    everywhere: bool = False,
) -> Iterator[None]:
    """Inside the block `write(moment)` replaces the activation that `sae` reconstructs.

    For a transcoder this is the activation at its `target_site`, else at its `site`. An SAE of
    several sites reads all of them before it writes at the first, so that the model runs twice: a
    pass that is read, and then the pass that is written. Its `moment` has the activations of the
    first pass side by side; where `write` leaves them as they are, the second pass keeps its own.
    A causal one (`config.is_causal`) needs a single pass: `write` is called at each target, with
    zeros for what the model has not computed yet, and its columns of that target are used.

    Args:
        sites: those of an SAE of several sites at which to write; None: all.
        everywhere: the second pass takes what `write` returns at all tokens, also where it left
            them as they are: a gradient goes through all of it.

    Raises:
        ValueError: the SAE names no site, or is not for this model (`contract`); or, in the forward
            pass, the target runs before the site, the model's last hidden state has NaN or
            infinity, or, with several sites, there is a KV cache.
    """
    contract.check_model(lm, sae, dropout="warning")
    chosen = chosen_sites(sae.config, sites)
    reads, writes = reads_of(sae.config), writes_of(sae.config)
    if len(reads) > 1 and not is_causal(sae.config):
        with _intervene_in_two_passes(lm, sae, write, chosen, everywhere):
            yield
        return
    current = threading.local()  # source (by place), input_ids and n_cached of a thread's pass

    def read(site: str, x: Tensor) -> None:
        current.source = {**(current.source or {}), site: cast_for(sae, x)}

    def replace(target: str, x: Tensor) -> Tensor:
        needed = reads.names[: writes.names.index(target) + 1]  # its own source, and earlier ones
        seen = current.source or {}
        if missing := [site for site in needed if site not in seen]:
            raise Refused(f"target site {target!r} runs before site {missing[0]!r}; swap them")
        nothing = torch.zeros_like(seen[needed[-1]])
        source = reads.joined({site: nothing for site in reads.names} | seen)
        columns = {site: torch.zeros_like(x) for site in writes.names} | {target: x}
        moment = Moment(source, writes.joined(columns), current.input_ids, current.n_cached)
        return writes.split(write(moment))[target]

    model, places = unwrapped(lm), ", ".join(chosen)
    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(places))
        hooks.callback(_note_tokens(model, sae, current, passes.own).remove)
        for site in reads.names:  # before writing: a target may be the site itself
            hooks.callback(attach(lm, site, partial(read, site), passes.own).remove)
        for target in chosen:
            visit = partial(replaced, target, partial(replace, target))
            hooks.callback(attach(lm, target, visit, passes.reached).remove)
        hooks.callback(_refuse_not_finite(model, places, passes.own).remove)
        yield


def is_causal(config: object) -> bool:
    """Whether an SAE's sources read what has passed the targets before them, in a single pass."""
    return getattr(config, "is_causal", False)


def chosen_sites(config: Any, sites: Sequence[str] | None) -> list[str]:
    """The sites at which to write: those given, or all that the SAE reconstructs.

    Raises:
        ValueError: one is none of the SAE's, or there is none.
    """
    own = list(writes_of(config).names)
    if sites is None:
        return own
    if isinstance(sites, str) or not sites or not {*sites} <= {*own}:
        raise Refused(f"sites is {sites!r}; give a list of this SAE's sites: {', '.join(own)}")
    return [site for site in own if site in sites]


@contextmanager
def _intervene_in_two_passes(
    lm: nn.Module,
    sae: Any,
    write: Callable[[Moment], Tensor],
    chosen: Sequence[str],
    everywhere: bool,
) -> Iterator[None]:
    current, writes = threading.local(), writes_of(sae.config)
    model = unwrapped(lm)
    takes = signature(model.base_model.forward).parameters
    no_cache = {"use_cache": False} if "use_cache" in takes else {}

    def first_pass(module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is None or not passes.own() or getattr(current, "is_first", False):
            return
        if any(hasattr(value, "get_seq_length") for value in kwargs.values()):
            raise Refused(
                f"this SAE reads {len(writes)} sites ({writes}) before it writes, which needs the "
                "whole text in each pass: give use_cache=False, to generate or suggest_strength"
            )
        current.is_first = True
        try:
            with capture(lm, writes.names, stop_early=True) as activations:
                module(*args, **{**kwargs, **no_cache})
        finally:
            current.is_first = False
        x = cast_for(sae, writes.joined(activations))
        new = write(Moment(x, x, current.input_ids, 0))
        halves = zip(writes.split(new).items(), writes.split(x).values(), strict=True)
        current.new = {site: (part, (part != old).any(dim=-1)) for (site, part), old in halves}

    def replace(site: str, x: Tensor) -> Tensor:
        part, changed = current.new[site]
        if everywhere:
            return part.to(x)
        return torch.where(changed[..., None].to(x.device), part.to(x), x)

    def is_second() -> bool:
        return passes.reached() and not getattr(current, "is_first", False)

    with ExitStack() as hooks:
        passes = hooks.enter_context(own_passes(", ".join(chosen)))
        hooks.callback(_note_tokens(model, sae, current, passes.own).remove)
        look = model.base_model.register_forward_pre_hook(first_pass, with_kwargs=True)
        hooks.callback(look.remove)
        for site in chosen:
            visit = partial(replaced, site, partial(replace, site))
            hooks.callback(attach(lm, site, visit, is_second).remove)
        hooks.callback(_refuse_not_finite(model, ", ".join(chosen), passes.own).remove)
        yield


@contextmanager
def splice(
    lm: nn.Module,
    sae: Autoencoder,
    *,
    error_term: bool = False,
    edit: Callable[[Tensor], Tensor] | None = None,
    keep: Bool[Tensor, "rows ctx"] | None = None,
    spare_tokens: Sequence[int] | None = None,
) -> Iterator[None]:
    """Inside the block the model runs on the SAE's reconstruction at `sae.config.site`.

    A transcoder reads at `site` and writes at `target_site`. Works under `generate` as well; with
    an SAE of several sites under `generate(use_cache=False)`, see `intervene`. A causal one, as a
    cross-layer transcoder, works with a cache: what its sources read has already passed through
    the targets before them.

    Args:
        sae: anything with `encode(x)`, `decode(latents, x)`, `config.site`; x is cast for it.
        error_term: add the SAE's error: x + decode(edit(latents)) - decode(latents); without an
            edit this is x, bit for bit.
        edit: latents [rows, ctx, d_sae] -> latents, before they are decoded.
        keep: the positions to replace; others keep the model's own activation.
        spare_tokens: ids that are never replaced; they also work under `generate`, unlike `keep`,
            because each forward pass's own input_ids are compared. None: the model's BOS, EOS and
            padding, on which SAEs are not trained; (): replace all tokens.

    Raises:
        ValueError: the SAE names no site; or, in the forward pass, `keep` has another shape than
            the activation, or any reason of `intervene`.
    """
    check_arguments("splice", lm, sae)
    place = str(writes_of(sae.config))
    spared = special_ids(lm) if spare_tokens is None else list(spare_tokens)

    def write(moment: Moment) -> Tensor:
        x, source = moment.target, moment.source
        if error_term and edit is None:
            return x
        latents = sae.encode(source)
        new = sae.decode(latents if edit is None else edit(latents), source)
        if error_term:
            # difference first: an edit without effect then adds exactly zero
            new = x + (new - sae.decode(latents, source)).to(x.device)
        new = new.to(x)
        if keep is not None:
            new = torch.where(_matching(keep, x, place), new, x)
        if spared:
            edited = unspared(moment.input_ids, spared)
            new = torch.where(_matching(edited, x, place), new, x)
        return new

    with intervene(lm, sae, write):
        yield


def _note_tokens(
    lm: PreTrainedModel, sae: Any, current: threading.local, is_own: Callable[[], bool]
) -> RemovableHandle:
    """Keep each forward pass's input_ids, and check for BOS at the beginning of a text."""

    def note(module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is None or not is_own():  # see attach
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = next((v for v in kwargs.values() if hasattr(v, "get_seq_length")), None)
        current.n_cached = 0 if cache is None else int(cache.get_seq_length())
        if ids is not None and current.n_cached == 0 and not hasattr(current, "input_ids"):
            contract.check_bos(lm, sae, ids, kwargs.get("attention_mask"))
        current.input_ids = ids
        current.source = None  # an interrupted pass may have left one

    return lm.base_model.register_forward_pre_hook(note, with_kwargs=True)


def _refuse_not_finite(
    lm: PreTrainedModel, target: str, is_own: Callable[[], bool]
) -> RemovableHandle:
    """Refuse what overflowed: `generate` would make a text of it."""

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if is_own() else None
        if isinstance(hidden, Tensor) and not hidden.isfinite().all():
            dtype = str(hidden.dtype).removeprefix("torch.")
            raise Refused(
                f"with activations replaced at {target!r}, the model's last hidden state has NaN "
                f"or infinity in {dtype}; use a smaller strength, or another dtype, as with "
                "hfsae.load_lm(name, dtype='float32')"
            )

    return lm.base_model.register_forward_hook(look)


def cache_name(lm: PreTrainedModel) -> str:
    """The name of forward()'s argument for the KV cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in signature(lm.forward).parameters else "past_key_values"


def logits_at(lm: PreTrainedModel, positions: Sequence[int]) -> dict[str, Tensor]:
    """The argument of forward() or `generate` for logits at these positions alone; empty where the
    model has none. A tensor: of transformers' own slice, which is not contiguous, a processor's
    product with the vocabulary in bfloat16 takes fifteen times as long."""
    if "logits_to_keep" not in signature(lm.forward).parameters:
        return {}
    return {"logits_to_keep": torch.tensor([*positions], device=lm.device)}


def special_ids(lm: nn.Module) -> list[int]:
    """The ids of BOS, EOS and padding in the model's configs."""
    lm, special = unwrapped(lm), set[int]()
    for config in (lm.config, getattr(lm, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(config, name, None)
            special |= {ids} if isinstance(ids, int) else set(ids or ())
    return sorted(special)


def unspared(
    input_ids: Int[Tensor, "rows ctx"] | None, spare_tokens: Sequence[int]
) -> Bool[Tensor, "rows ctx"]:
    """True where the token is not one of `spare_tokens`.

    Raises:
        ValueError: there are no ids.
    """
    if input_ids is None:
        raise Refused(
            "spare_tokens needs input_ids, this forward pass got inputs_embeds; pass input_ids, or "
            "spare_tokens=() to replace all tokens"
        )
    kept = torch.ones_like(input_ids, dtype=torch.bool)
    for token in spare_tokens:  # few; a list of them would have to be copied to the device
        kept &= input_ids != token
    return kept


def random_places(
    input_ids: Int[Tensor, "rows ctx"],
    n: int,
    *,
    spare_tokens: Sequence[int],
    seed: int,
) -> Int[Tensor, "n 2"]:
    """Rows and columns of n random tokens that are not spared and have a next token, or of all
    such tokens if there are fewer."""
    places = unspared(input_ids, spare_tokens)[:, :-1].nonzero()
    generator = torch.Generator().manual_seed(seed)
    return places[torch.randperm(len(places), generator=generator)[:n].to(places.device)]


def cast_for(sae: object, x: Tensor) -> Tensor:
    """x in the dtype and on the device of `sae`, if `sae` has them."""
    return x.to(getattr(sae, "device", x.device), getattr(sae, "dtype", x.dtype))


def _matching(mask: Tensor, activation: Tensor, site: str) -> Tensor:
    if mask.shape != activation.shape[:-1]:
        raise Refused(
            f"keep has shape {tuple(mask.shape)}, the activation at {site!r} "
            f"{tuple(activation.shape)}; under generate shapes change: use spare_tokens"
        )
    return mask.to(activation.device)[..., None]
