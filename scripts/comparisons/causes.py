"""Causal control and uniformity of a comparison's SAEs at equal L0: measured, and told."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hfsae import Recipe, Refused, uniformity
from hfsae.comparison import (
    Comparison,
    Differences,
    Estimate,
    Measured,
    corrected,
    difference_cell,
    estimate,
    save_results,
    spread_cell,
    t_interval,
)
from hfsae.hub import is_sae
from hfsae.runs import load, load_trained, read_rows

from . import figures
from .causal_control import ACTIONS, COUNTS, KINDS, ORDERS, CausalControl, causal_control
from .markdown import table

logger = logging.getLogger(__name__)


class Causes(NamedTuple):
    """The measurements of one SAE."""

    control: CausalControl
    uniformity: Tensor
    """r_L0 of each token"""


def nearest(measured: Sequence[Measured], l0: float) -> list[Measured]:
    """For each arm and seed, the SAE whose L0 is nearest to `l0` by ratio."""
    best: dict[tuple[str, int], Measured] = {}
    for m in measured:
        key = m.arm, m.seed
        if key not in best or _distance(m, l0) < _distance(best[key], l0):
            best[key] = m
    return list(best.values())


def _distance(m: Measured, l0: float) -> float:
    return abs(np.log(max(m.metrics["l0"], 1e-9) / l0))


def with_causes(
    comparison: Comparison,
    measured: Sequence[Measured],
    recipe: Recipe,
    command: str,
) -> list[Measured]:
    """Measure, for each arm and seed, the SAE whose L0 is nearest, where it has no results with
    these arguments; each is written into the report's folder at once.

    Args:
        recipe: of any of the SAEs: the text, whose side of the evaluation is read.

    Raises:
        ValueError: the weights of an SAE are missing.
    """
    args = comparison.causal
    as_json, by_key = json.dumps(asdict(args)), {m.key: m for m in measured}
    missing = [m for m in nearest(measured, args.l0) if m.more.get("causal") != as_json]
    for m in missing:
        if not is_sae(m.folder):
            raise Refused(
                f"{m.folder} has no results of causal control and no weights to measure; set "
                "causal.n_tokens to 0, or give another --report, for which every SAE is trained"
            )
    if not missing:
        return list(measured)
    loaded = load(replace(comparison.lm, dtype="float32"))  # for precise effects
    rows = read_rows(recipe, loaded, recipe.evaluation.side, recipe.sizes.evaluation)
    ids = torch.cat([batch.input_ids for batch in rows])
    for i, m in enumerate(missing, start=1):
        logger.info("causes: arm %s, seed %d (%d of %d)", m.arm, m.seed, i, len(missing))
        sae = load_trained(m.folder).to(loaded.lm.device)
        how = {"n_tokens": args.n_tokens, "seed": args.seed}
        tensors = causal_control(loaded.lm, sae, ids, **how)._asdict()
        tensors["uniformity"] = uniformity(loaded.lm, sae, ids, **how).per_token
        new = {f"causes/{name}": tensor for name, tensor in tensors.items()}
        others = {k: t for k, t in m.more_tensors.items() if not k.startswith("causes/")}
        more = {**m.more, "causal": as_json}
        by_key[m.key] = m._replace(more=more, more_tensors=others | new)
        save_results(comparison, [*by_key.values()], command)
    return [*by_key.values()]


def read(m: Measured) -> Causes:
    """The results of one SAE, with norms in units of x/c."""
    prefix = "causes/"
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in m.more_tensors.items()
        if name.startswith(prefix)
    }
    tensors["norm"] = tensors["norm"] / m.scale
    return Causes(uniformity=tensors.pop("uniformity"), control=CausalControl(**tensors))


def section(differences: Differences) -> Iterator[str]:
    """The report's section, as Markdown, and its figure."""
    c = differences.c
    how = {"n_resamples": c.evaluation.bootstrap_samples, "seed": c.evaluation.seed}
    chosen = nearest(differences.measured, c.causal.l0)
    arms, l0s = {}, {}
    for arm in c.arms:
        mine, title = [m for m in chosen if m.arm == arm], c.title(arm)
        arms[title] = ArmCauses([read(m) for m in mine], **how)
        l0s[title] = spread_cell([m.metrics["l0"] for m in mine])
    yield f"## Are latents causes? At an L0 of {c.causal.l0:g}"
    yield (
        f"At each of {c.causal.n_tokens} held-out tokens, the same for every SAE, latents "
        "are edited at that token only, and the prediction made there is measured: m is the "
        "logit of the correct next token minus the mean of all logits, in a float32 model. The "
        "edited latent has the largest effect by gradient; the matched latent fires at the "
        "same token and writes a vector of about the same norm; the random direction has that "
        "norm. In brackets: the range of 95 % of the draws of seeds and tokens; with so few "
        "seeds it covers nearly all seeds, so it is not a confidence interval. Off target: the "
        "KL of the next token, without the correct one."
    )
    yield "![Sufficiency and necessity](figures/causes.png)"
    figures.draw_causes(c.report_folder / "figures" / "causes.png", arms)
    for caption, rows in tables(arms, l0s):
        yield f"{caption}\n\n{table(rows)}"
    if len(c.seeds) == 1 or not differences.others:
        return
    reference = c.title(differences.reference)
    told = compared(arms, reference, **how)
    others = [title for title in arms if title != reference]
    rows = [["", *others]]
    rows += [[name, *(difference_cell(cells[a]) for a in others)] for name, cells in told.items()]
    estimates = [e for cells in told.values() for e in cells.values()]
    n = sum(e.is_significant for e in estimates)
    verdict = (
        f"{n} of {len(estimates)} differences are shown"
        if n
        else f"No difference is shown: {c.causal.n_tokens} tokens and {len(c.seeds)} "
        "seeds are too few to tell these arms apart"
    )
    yield (
        f"Do arms differ? The edited latents', relative to {reference}'s, paired by seed and "
        "by token; intervals and marks as in the table of differences, corrected by Holm for "
        f"all {len(estimates)}. {verdict}.\n\n{table(rows)}"
    )


class Spread(NamedTuple):
    """A number and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        sides = "" if np.isnan(self.low) else f" ({self.low:.3g}-{self.high:.3g})"
        return f"{self.value:.3g}{sides}"


class ArmCauses:
    """The results of an arm's SAEs, one for each seed, on the same tokens.

    Intervals hold 95 % of the results when seeds and tokens are resampled; with only three seeds
    they span nearly the whole range of the seeds.
    """

    def __init__(self, causes: Sequence[Causes], *, n_resamples: int = 1000, seed: int = 0) -> None:
        self._controls = [c.control for c in causes]
        self._uniformity = np.array([float(c.uniformity.mean()) for c in causes])
        rng = np.random.default_rng(seed)
        self._seeds, self._tokens = (
            np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), n_resamples)])
            for n in (len(causes), self._controls[0].whole.shape[-1])
        )  # [1 + resamples, n]: number of draws of each; the first is the original sample

    def per_norm(self, action: str, kind: str) -> Spread:
        """|change of m| per unit of norm."""
        return self._ratio(*_per_norm(action, kind))

    def off_target(self, action: str, kind: str) -> Spread:
        """Off-target KL per logit of |change of m|."""
        return self._ratio(*_off_target(action, kind))

    def share(self, curve: str, order: str, count: int) -> Spread:
        """`alone` or `without` for the first `count` latents, as a share of m(f) - m(0)."""
        return self._ratio(*_share(curve, order, count))

    def evenness(self) -> Spread:
        """r_L0, with Student's t interval over the seeds."""
        return Spread(float(self._uniformity.mean()), *t_interval(self._uniformity))

    def of_seeds(self, measure: "_Measure") -> Float[np.ndarray, "seeds resamples"]:
        """A measure of each seed's SAE, first on all tokens and then on resampled ones: the same
        draws for every arm, so that arms can be paired."""
        sums = [self._table(of) @ self._tokens.T for of in measure]
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[0] / sums[1]

    def _ratio(self, above: "_OfTokens", below: "_OfTokens") -> Spread:
        """The ratio of two sums over seeds and tokens."""
        sums = [
            np.einsum("rs,st,rt->r", self._seeds, self._table(of), self._tokens)
            for of in (above, below)
        ]
        with np.errstate(invalid="ignore"):  # with few tokens, a draw may hold no latents
            return _spread(sums[0] / sums[1])

    def _table(self, of: "_OfTokens") -> Float[np.ndarray, "seeds tokens"]:
        return torch.stack([of(c) for c in self._controls]).double().nan_to_num(0).numpy()


_OfTokens = Callable[[CausalControl], Tensor]
_Measure = tuple[_OfTokens, _OfTokens]
"""Sums over tokens, whose ratio it is."""


def _at(action: str, kind: str) -> tuple[int, int]:
    return ACTIONS.index(action), KINDS.index(kind)


def _per_norm(action: str, kind: str) -> _Measure:
    at = _at(action, kind)
    return lambda c: c.change[at].abs(), lambda c: c.norm[KINDS.index(kind)]


def _off_target(action: str, kind: str) -> _Measure:
    at = _at(action, kind)
    return lambda c: c.off_target[at], lambda c: c.change[at].abs()


def _share(curve: str, order: str, count: int) -> _Measure:
    at = ORDERS.index(order), COUNTS.index(count)
    return lambda c: getattr(c, curve)[at], lambda c: c.whole


_COMPARED = {
    **{f"to {action}, by norm": _per_norm(action, KINDS[0]) for action in ACTIONS},
    **{f"to {action}, off target": _off_target(action, KINDS[0]) for action in ACTIONS},
    **{f"{n} alone": _share("alone", ORDERS[0], n) for n in (1, 8)},
    **{f"without {n}": _share("without", ORDERS[0], n) for n in (1, 8)},
}


def compared(
    arms: Mapping[str, ArmCauses], reference: str, *, n_resamples: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """[measure][arm] -> log ratio to the reference's, paired by seed and token; each p is corrected
    by Holm for all of them. Keys of `arms` are titles."""
    cells = {}
    for name, measure in _COMPARED.items():
        for arm in arms:
            if arm != reference:
                own, others = (arms[a].of_seeds(measure) for a in (arm, reference))
                with np.errstate(invalid="ignore", divide="ignore"):
                    ratios = np.log(own) - np.log(others)
                cells[name, arm] = estimate(ratios, n_resamples=n_resamples, seed=seed)
    told: dict[str, dict[str, Estimate]] = {}
    for (name, arm), e in zip(cells, corrected(list(cells.values())), strict=True):
        told.setdefault(name, {})[arm] = e
    return told


def _spread(values: np.ndarray) -> Spread:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Spread(float(values[0]), float(low), float(high))


def tables(
    arms: Mapping[str, ArmCauses], l0s: Mapping[str, str]
) -> Iterator[tuple[str, list[list[str]]]]:
    """Captions and rows. Keys of `arms` and `l0s` are the arms' titles; L0s are text."""
    for action in ACTIONS:
        rows = [["arm", "L0", *KINDS, *(f"{kind}, off target" for kind in KINDS)]]
        for title, arm in arms.items():
            changes = [arm.per_norm(action, kind) for kind in KINDS]
            off_target = [arm.off_target(action, kind) for kind in KINDS]
            rows.append([title, l0s[title], *map(str, [*changes, *off_target])])
        yield f"To {action}: logits per unit of x/c; off-target nats per logit.", rows
    for curve, name in {"alone": "Sufficiency", "without": "Necessity"}.items():
        rows = [["arm", *(f"{order}: {n}" for order in ORDERS for n in COUNTS)]]
        for title, arm in arms.items():
            shares = [arm.share(curve, order, n).value for order in ORDERS for n in COUNTS]
            rows.append([title, *(f"{share:.2f}" for share in shares)])
        yield f"{name}, by number of latents: share of m(f) - m(0).", rows
    rows = [["arm", "r_L0"], *([title, str(arm.evenness())] for title, arm in arms.items())]
    yield "Uniformity: 1 if all firing latents matter equally, 1 / L0 if only one matters.", rows
