"""Steering: run a language model on changed latents.

    mode        latent i becomes         strength s
    add         latent + s               amount to add: the direction W_dec[i] times s is added
    clamp       s                        the value, whether the latent fires or not
    scale       latent * s               a factor, whatever the unit
    ablate      0                        not used
    cap         min(latent, s)           the upper limit
    orthogonal  (unchanged)              the activation's component along W_dec[i] (error and bias
                                         included) is replaced by that of a latent at s; components
                                         orthogonal to it stay

The activation at the SAE's site becomes x + decode(changed latents) - decode(latents): the SAE's
error stays unchanged. Without the error term it becomes decode(changed latents).

Strengths are in one of three units: "raw", the latent's own; "max", multiples of the latent's
maximal activation over some text; "norm", per cent of the activation's norm at each token: at 100
the latent's vector has the norm of the whole activation.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..io.errors import Refused
from ..lm import (
    Moment,
    capture,
    check_arguments,
    intervene,
    noting_prompts,
    prompt_length,
    special_ids,
    unspared,
)
from ..models import SAE
from ..models.config import check_latent
from ..models.fingerprint import refuse_values_of_others

Mode = Literal["add", "clamp", "scale", "ablate", "orthogonal", "cap"]
Unit = Literal["raw", "max", "norm"]
Scope = Literal["all", "prompt", "generated"]
MODES: tuple[Mode, ...] = get_args(Mode)
UNITS: tuple[Unit, ...] = get_args(Unit)
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Edit(NamedTuple):
    """The change of one latent: strength, mode and unit; None takes the block's mode or unit."""

    strength: int | float = 0.0
    mode: Mode | None = None
    unit: Unit | None = None


Edits = Mapping[int, int | float | Edit]
"""{latent: strength}, or {latent: Edit(strength, mode, unit)} for a mode or unit of its own."""
Maxima = Tensor | Sequence[int | float] | Mapping[int, int | float]
"""Maximal activations: of all latents in order, or {latent: maximum}."""


@contextmanager
def steer(
    lm: nn.Module,
    sae: SAE | Sequence[SAE],
    latents: Edits | Sequence[int] | Sequence[Edits | Sequence[int]],
    *,
    mode: Mode = "add",
    unit: Unit = "raw",
    max_activations: Maxima | Sequence[Maxima | None] | None = None,
    error_term: bool = True,
    scope: Scope = "all",
    spare_tokens: Sequence[int] | None = None,
    sites: Sequence[str] | None = None,
    when: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Iterator[None]:
    """Inside the block the model runs on changed latents; modes and units: see the module.

        with hfsae.steer(lm, sae, {1234: 2.0}, unit="max", max_activations=store.max_activations):
            lm.generate(**tokens)
        with hfsae.steer(lm, sae, [1234, 77], mode="ablate"):
            lm(**tokens)
        with hfsae.steer(lm, [low, high], [{7: 3.0}, {21: hfsae.Edit(mode="ablate")}]):
            lm(**tokens)

    Works in plain forward passes and under `generate`: sampling, batches, beams, with a KV cache or
    without, padded on either side. Blocks may be nested; SAEs at one site act in the order given.
    Only the thread that entered the block is affected, and nothing remains after it (`hfsae.lm`).
    Strength 0 of "add" and 1 of "scale" leave the model bit-equal, with the error term.

    Args:
        sae: of any variant, compiled or not; a transcoder writes at its target site. Several SAEs,
            at any sites, need as many `latents` and `max_activations`.
        latents: {latent: strength}, strengths may be negative; {latent: Edit(...)} to set a
            latent's mode or unit; or, with mode="ablate", which needs no strengths, a list of
            latents.
        max_activations: for the unit "max": `FeatureStore.max_activations`, or {latent: maximum}.
        error_term: keep the SAE's error; False: the model runs on reconstructions.
        scope: the tokens to change: all, the prompt's, or generated ones. The prompt is the input
            of `generate`, padding included, however it decodes. Outside of `generate` tokens that
            come one at a time with a KV cache, or extend the last pass by one, are generated.
        spare_tokens: ids at which nothing is changed; None: the model's BOS, EOS and padding.
        sites: of an SAE of several sites, those at which to write; None: all. A crosscoder needs
            `generate(use_cache=False)`.
        when: {site: condition}, to change only the tokens at which all conditions hold: of the
            activation [rows, ctx, d] at a site that runs before the SAE writes, one truth value
            a token, bool [rows, ctx].

                calm = lambda x: other.encode(x)[..., 77] > 0
                with hfsae.steer(lm, sae, {1234: 40.0}, when={"layers.7": calm}): ...

    Raises:
        ValueError: no latent, or an invalid latent, strength, mode, unit or scope; the unit "max"
            without a maximal activation, or with another SAE's; or any reason of `hfsae.splice`.
    """
    check_arguments("steer", lm)
    _check_choice("scope", scope, SCOPES)
    spared = special_ids(lm) if spare_tokens is None else list(spare_tokens)
    is_several = isinstance(sae, list | tuple)
    # without `torch.compile`, as inside a block nothing runs compiled
    saes: list[Any] = [
        one._modules.get("_orig_mod", one) if isinstance(one, nn.Module) else one
        for one in (sae if is_several else [sae])
    ]
    if not all(isinstance(one, SAE) for one in saes):
        raise Refused(
            f"sae is {repr(sae)[:40]}; pass an SAE, such as hfsae.load(folder), or a list of them"
        )
    if is_several and (isinstance(latents, Mapping) or len(latents) != len(saes)):
        raise Refused(
            f"latents has {len(latents)} entries for {len(saes)} SAEs; give a list with one "
            "mapping {latent: strength} for each SAE"
        )
    edits: list[Any] = [*latents] if is_several else [latents]
    for i, own in enumerate(edits):
        if mode == "ablate" and isinstance(own, Sequence) and not isinstance(own, str):
            edits[i] = dict.fromkeys(own, 0.0)
        elif not isinstance(own, Mapping):
            raise Refused(
                f"latents is a {type(own).__name__}; one SAE needs a mapping {{latent: strength}}, "
                'such as {1234: 2.0}, or with mode="ablate" a list of latents, such as [1234]'
            )
    maxima: Any = max_activations if is_several else [max_activations]
    if maxima is None:
        maxima = [None] * len(saes)
    elif isinstance(maxima, Mapping) or len(maxima) != len(saes):
        raise Refused(
            f"max_activations has {len(maxima)} entries for {len(saes)} SAEs; give a list with one "
            "for each SAE"
        )
    if not any(edits):
        raise Refused("latents is empty; give a latent and a strength, such as {1234: 2.0}")
    steerings = []
    for one, own, largest in zip(saes, edits, maxima, strict=True):
        one = one.folded() if one.config.has_column_scales else one  # rows in raw units
        resolved = resolve(one, own, mode, unit, largest)
        steerings.append(_Steering(one, resolved, error_term, scope, spared))
    with ExitStack() as blocks:
        if when:
            seen = blocks.enter_context(capture(lm, [*when]))
            for steering in steerings:
                steering.conditions = [(name, when[name], seen) for name in when]
        for steering in steerings:
            blocks.enter_context(intervene(lm, steering.sae, steering.write, sites=sites))
        if scope != "all":
            blocks.enter_context(noting_prompts(lm))
        yield


def resolve(
    sae: SAE, edits: Edits, mode: Mode, unit: Unit, maxima: Maxima | None
) -> dict[int, Edit]:
    """The edits with a mode and a unit each: "raw", or "norm", per cent of the activation's norm;
    raises ValueError as `steer` does."""
    if not isinstance(maxima, Mapping | None) and len(maxima) != sae.config.d_sae:
        raise Refused(
            f"max_activations has {len(maxima)} numbers, this SAE has {sae.config.d_sae} latents; "
            "give this SAE's maxima, or a mapping {latent: maximum} for the edited latents"
        )
    refuse_values_of_others(maxima, sae.W_dec, "max_activations")
    one_at_a_time = sae.config.is_causal and sae.config.has_several_sites
    resolved = {}
    for latent, edit in edits.items():
        if isinstance(latent, bool) or not isinstance(latent, Integral):
            raise Refused(f"latent {latent!r} is not an index; use an int, such as 1234")
        check_latent(int(latent), sae.config.d_sae)
        edit = edit if isinstance(edit, Edit) else Edit(edit)
        its_mode, its_unit = edit.mode or mode, edit.unit or unit
        _check_choice("mode", its_mode, MODES)
        _check_choice("unit", its_unit, UNITS)
        if one_at_a_time and (its_mode == "orthogonal" or its_unit == "norm"):
            raise Refused(
                f"a {sae.config.model_type} writes at one target after another, and mode "
                "'orthogonal' and unit 'norm' need all of them at once; use another mode or unit"
            )
        strength: Any = edit.strength
        is_number = isinstance(strength, Real) and not isinstance(strength, bool)
        if not is_number or not math.isfinite(strength):
            raise Refused(f"the strength of latent {latent} is {strength!r}; use a finite number")
        strength, measured = float(strength), its_mode not in ("scale", "ablate")
        if its_unit == "max" and measured:
            if maxima is None or (isinstance(maxima, Mapping) and latent not in maxima):
                raise Refused(
                    f"unit 'max' needs the maximal activation of latent {latent}: pass "
                    "max_activations, such as FeatureStore.load(folder).max_activations"
                )
            most = float(maxima[latent])
            if not 0 < most < math.inf:
                raise Refused(
                    f"latent {latent} has the maximal activation {most:g} (it never fired), so "
                    "unit='max' cannot scale it; use unit='norm' or 'raw'"
                )
            strength *= most
        is_of_norm = its_unit == "norm" and measured
        resolved[int(latent)] = Edit(strength, its_mode, "norm" if is_of_norm else "raw")
    return resolved


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise Refused(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


class _Steering:
    """The edits of one SAE, and their effect on a forward pass."""

    def __init__(
        self,
        sae: SAE,
        edits: Mapping[int, Edit],
        error_term: bool,
        scope: Scope,
        spared: list[int],
    ):
        self.sae, self.error_term, self.scope, self.spared = sae, error_term, scope, spared
        self.changed = {i: edit for i, edit in edits.items() if edit.mode != "orthogonal"}
        self.replaced = {i: edit for i, edit in edits.items() if edit.mode == "orthogonal"}
        rows = sae.W_dec.detach()[[*self.replaced]].float()
        self.row_norms = rows.norm(dim=1)  # [n], n replaced latents
        self.directions = rows / self.row_norms[:, None].clamp(min=1e-12)  # [n, d_out]
        # pseudo-inverse: sets all these components at once; the rest of the space stays
        self.inverse = torch.linalg.pinv(self.directions) if self.replaced else rows.T  # [d_out, n]
        self.conditions: list[tuple[str, Callable[[Tensor], Tensor], dict[str, Tensor]]] = []
        self._last = threading.local()  # n, ids: the prompt's length and the last uncached pass

    def write(self, moment: Moment) -> Float[Tensor, "rows ctx d_out"]:
        x = moment.target
        n_prompt = self._prompt_columns(moment)
        first, last = {
            "all": (0, x.shape[1]),
            "prompt": (0, n_prompt),
            "generated": (n_prompt, x.shape[1]),
        }[self.scope]
        if first == last or (self.error_term and not self.changed and not self.replaced):
            return x
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        mask[:, first:last] = True
        if self.spared:
            mask &= unspared(moment.input_ids, self.spared).to(x.device)
        for site, condition, seen in self.conditions:
            if site not in seen:
                raise Refused(
                    f"the condition at {site!r} is not known when the SAE writes, as that site "
                    "runs later; give one that runs before"
                )
            holds = condition(seen[site])
            if holds.dtype != torch.bool or holds.shape != mask.shape:
                raise Refused(
                    f"the condition at {site!r} gives {str(holds.dtype)[6:]} {[*holds.shape]}; "
                    f"it must give a truth value for each token, bool {[*mask.shape]}"
                )
            mask &= holds.to(x.device)
        return torch.where(mask[..., None], self._steered(moment).to(x), x)

    def _steered(self, moment: Moment) -> Float[Tensor, "rows ctx d_out"]:
        x, sae = moment.target, self.sae
        written = x
        if self.changed or not self.error_term:
            latents = sae.encode(moment.source)
            new = latents.clone()
            for latent, edit in self.changed.items():
                old = latents[..., latent]
                value = self._amount(latent, edit, moment).to(old)
                new[..., latent] = {
                    "add": old + value,
                    "clamp": value.expand_as(old),
                    "scale": old * value,
                    "ablate": torch.zeros_like(old),
                    "cap": torch.minimum(old, value),
                }[edit.mode or "add"]
            written = sae.decode(new, moment.source)
            if self.error_term:
                # difference first: an edit without effect then adds exactly zero
                written = x + (written - sae.decode(latents, moment.source)).to(x.device)
        if not self.replaced:
            return written
        amounts = (self._amount(i, edit, moment) for i, edit in self.replaced.items())
        along = [amount.expand(written.shape[:2]) for amount in amounts]
        factor = sae.row_factor(moment.source).to(self.directions)
        goal = torch.stack(along, dim=-1).to(self.directions) * self.row_norms * factor
        present = written.to(self.directions) @ self.directions.T  # [rows, ctx, n]
        return written + ((goal - present) @ self.inverse.T).to(written.device)

    def _amount(self, latent: int, edit: Edit, moment: Moment) -> Float[Tensor, "*rows_ctx"]:
        """The strength in the latent's unit: one number, or one number for each token."""
        if edit.unit != "norm":
            return torch.full((), edit.strength, device=self.sae.device)
        row_norm = self.sae.W_dec[latent].detach().float().norm()
        factor = self.sae.row_factor(moment.source)[..., 0].float()
        norm = moment.target.float().norm(dim=-1).to(factor.device)
        return edit.strength / 100 * norm / (row_norm * factor).clamp(min=1e-12)

    def _prompt_columns(self, moment: Moment) -> int:
        """Number of this pass's columns that belong to the prompt; the others were generated. It is
        inferred from one thread's successive passes outside of `generate`."""
        ctx, ids = moment.target.shape[1], moment.input_ids
        if (n_prompt := prompt_length()) is not None:
            return min(max(n_prompt - moment.n_cached, 0), ctx)
        if moment.n_cached > 0:
            return ctx if ctx > 1 else 0  # several: a prompt in pieces, or a chat's next turn
        last: Tensor | None = getattr(self._last, "ids", None)
        is_next = False  # whether these are the last pass's ids and one more
        if last is not None and ids is not None and ids.shape == (len(last), last.shape[1] + 1):
            n = self._last.n  # prompts are compared: beams change
            is_next = torch.equal(ids[:, :n], last[:, :n])
        if not is_next:
            self._last.n = ctx
        self._last.ids = ids
        return self._last.n
