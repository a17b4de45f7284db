"""Causal control and uniformity of a comparison's SAEs at equal L0: measure, keep and report."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..attribution import uniformity
from ..evaluation.causal import ACTIONS, COUNTS, KINDS, ORDERS, CausalControl, causal_control
from ..hub import is_sae
from ..lm import LoadedLM
from ..machine.files import write_tensors
from ..machine.refused import Refused
from ..machine.weights import stamp
from ..models import SAE
from ..recipe import Recipe, load_trained, read_rows
from .arms import CausalArguments
from .frontier import t_interval
from .results import CAUSES, Measured

logger = logging.getLogger(__name__)


class Causes(NamedTuple):
    """The measurements of one SAE."""

    control: CausalControl
    uniformity: Tensor
    """r_L0 of each token"""


def nearest(measured: Sequence[Measured], l0: float) -> list[Measured]:
    """For each arm and seed, the SAE with the nearest L0, by ratio."""
    best: dict[tuple[str, int], Measured] = {}
    for m in measured:
        key = m.arm, m.seed
        if key not in best or _distance(m, l0) < _distance(best[key], l0):
            best[key] = m
    return list(best.values())


def _distance(m: Measured, l0: float) -> float:
    return abs(np.log(max(m.metrics["l0"], 1e-9) / l0))


def measure(sae: SAE, recipe: Recipe, loaded: LoadedLM, args: CausalArguments) -> Causes:
    """On held-out text; the language model is best in float32."""
    rows = read_rows(recipe, loaded, "held_out", recipe.evaluation.n_tokens)
    ids = torch.cat([batch.input_ids for batch in rows])
    control = causal_control(loaded.lm, sae, ids, n_tokens=args.n_tokens, seed=args.seed)
    shares = uniformity(loaded.lm, sae, ids, n_tokens=args.n_tokens, seed=args.seed)
    return Causes(control, shares.per_token)


def measure_missing(
    measured: Sequence[Measured],
    recipe: Recipe,
    load: Callable[[], LoadedLM],
    args: CausalArguments,
) -> None:
    """Write a file into the folder of each SAE that lacks one of these arguments.

    Raises:
        ValueError: the weights of one SAE are missing.
    """
    missing = [m for m in measured if m.causes_args != told(args)]
    if not missing:
        return
    for m in missing:
        if not is_sae(m.folder):
            raise Refused(
                f"causal control was not measured of {m.folder}, whose weights are not here; "
                "set causal.n_tokens to 0, or give another --report, for which all is trained anew"
            )
    loaded = load()
    for i, m in enumerate(missing, start=1):
        logger.info("causes: arm %s, seed %d (%d of %d)", m.arm, m.seed, i, len(missing))
        sae = load_trained(m.folder)
        sae.to(cast(Any, loaded.lm.device))
        found = measure(sae, recipe, loaded, args)
        tensors = {**found.control._asdict(), "uniformity": found.uniformity}
        write_tensors(m.folder / CAUSES, tensors, {"args": told(args), **stamp(m.folder)})


def told(args: CausalArguments) -> str:
    """The arguments as JSON text."""
    return json.dumps(asdict(args))


def read(m: Measured) -> Causes:
    """With norms in units of x/c."""
    tensors = {**m.causes, "norm": m.causes["norm"] / m.scale}
    return Causes(uniformity=tensors.pop("uniformity"), control=CausalControl(**tensors))


class Spread(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        sides = "" if np.isnan(self.low) else f" ({self.low:.3g}-{self.high:.3g})"
        return f"{self.value:.3g}{sides}"


class ArmCauses:
    """The results of an arm's SAEs over seeds; the tokens are the same for all.

    Intervals hold 95 % of the results when seeds and tokens are resampled; with as few as three
    seeds, they span nearly all that any seed gives.
    """

    def __init__(self, causes: Sequence[Causes], *, n_resamples: int = 1000, seed: int = 0) -> None:
        self._controls = [c.control for c in causes]
        self._uniformity = np.array([float(c.uniformity.mean()) for c in causes])
        rng = np.random.default_rng(seed)
        self._seeds, self._tokens = (
            np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), n_resamples)])
            for n in (len(causes), self._controls[0].whole.shape[-1])
        )  # [1 + resamples, n]: how often each is drawn; the first is the original sample

    def per_norm(self, action: str, kind: str) -> Spread:
        """|change of m| for each unit of norm."""
        return self._ratio(
            lambda c: c.change[_at(action, kind)].abs(), lambda c: c.norm[KINDS.index(kind)]
        )

    def off_target(self, action: str, kind: str) -> Spread:
        """Off-target KL for each logit of |change|."""
        at = _at(action, kind)
        return self._ratio(lambda c: c.off_target[at], lambda c: c.change[at].abs())

    def share(self, curve: str, order: str, count: int) -> Spread:
        """`alone` or `without` the first latents, of m(f) - m(0)."""
        at = ORDERS.index(order), COUNTS.index(count)
        return self._ratio(lambda c: getattr(c, curve)[at], lambda c: c.whole)

    def evenness(self) -> Spread:
        """r_L0; its interval is Student's t over the seeds."""
        return Spread(float(self._uniformity.mean()), *t_interval(self._uniformity))

    def _ratio(
        self, above: Callable[[CausalControl], Tensor], below: Callable[[CausalControl], Tensor]
    ) -> Spread:
        """Of sums over seeds and tokens."""
        sums = []
        for of in (above, below):
            table = torch.stack([of(c) for c in self._controls]).double().nan_to_num(0).numpy()
            sums.append(np.einsum("rs,st,rt->r", self._seeds, table, self._tokens))
        with np.errstate(invalid="ignore"):  # few tokens: all drawn may be without latents
            return _spread(sums[0] / sums[1])


def _spread(values: np.ndarray) -> Spread:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Spread(float(values[0]), float(low), float(high))


def _at(action: str, kind: str) -> tuple[int, int]:
    return ACTIONS.index(action), KINDS.index(kind)


def tables(
    arms: Mapping[str, ArmCauses], l0s: Mapping[str, str]
) -> Iterator[tuple[str, list[list[str]]]]:
    """Captions and rows; arms by title, their L0s as text."""
    for action in ACTIONS:
        rows = [["arm", "L0", *KINDS, *(f"{kind}, off target" for kind in KINDS)]]
        for title, arm in arms.items():
            changes = [arm.per_norm(action, kind) for kind in KINDS]
            off_target = [arm.off_target(action, kind) for kind in KINDS]
            rows.append([title, l0s[title], *map(str, [*changes, *off_target])])
        yield f"To {action}: logits for each unit of x/c; off-target nats for each logit.", rows
    for curve, said in {"alone": "Sufficiency", "without": "Necessity"}.items():
        rows = [["arm", *(f"{order}: {n}" for order in ORDERS for n in COUNTS)]]
        for title, arm in arms.items():
            shares = [arm.share(curve, order, n).value for order in ORDERS for n in COUNTS]
            rows.append([title, *(f"{share:.2f}" for share in shares)])
        yield f"{said}, by number of latents: share of m(f) - m(0).", rows
    rows = [["arm", "r_L0"], *([title, str(arm.evenness())] for title, arm in arms.items())]
    yield "Uniformity: 1 where all latents that fire matter alike, 1 / L0 where one does all.", rows
