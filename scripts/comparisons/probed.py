"""What `hfsae probe` measured of a comparison's SAEs: beside untrained latents, at equal L0.

Values are those `at_l0`, of SAEs that were probed, or of one within 5 % of the L0. Differences are
paired by seed; those of one table are corrected for their number (Holm). SAEs that were probed with
other tasks or settings than most are left out: their numbers are of something else.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hfsae.cards import probing_facts
from hfsae.comparison import Comparison, Estimate, Measured, corrected, estimate
from hfsae.evaluation.probing import kept_extract

from .at_l0 import AtL0, seeds_at_l0
from .markdown import one_line, table

_ABSORPTION = {
    "full": "absorption, full",
    "fraction": "absorption, fraction",
    "f1_of_main": "F1 of main latents",
}
_EVENNESS = "r_L0"


class Pair(NamedTuple):
    """A number of an SAE's latents, and of untrained ones; NaN: not known."""

    own: float
    untrained: float


def with_probing(measured: Sequence[Measured]) -> list[Measured]:
    """With what the SAEs' folders have of `hfsae probe`; of others what the report has."""
    return [
        m._replace(more={**m.more, "probing": probing})
        if (probing := kept_extract(m.folder))
        else m
        for m in measured
    ]


def probing_of(m: Measured) -> Mapping[str, Any]:
    """Means of an SAE's probing, as in evaluation.json; empty: not probed."""
    return m.more.get("probing", {})


def measures(record: Mapping[str, Any]) -> dict[str, Pair]:
    """Of a record of probing: AUC by number of latents, absorption, and uniformity."""
    sae = record["sae"]
    means = {(e["features"], e["of"], e["k"]): e["auc"] for e in record["means"]}
    pairs = {
        f"AUC, k = {k}": Pair(_value(auc), _value(means.get(("untrained", sae, k))))
        for (features, _, k), auc in means.items()
        if features == sae
    }
    rows = record.get("absorption", {}).get("rows", [])
    by_kind = {(row["features"], row["of"]): row for row in rows if "refused" not in row}
    if own := by_kind.get((sae, "")):
        control = by_kind.get(("untrained", sae), {})
        for key, title in _ABSORPTION.items():
            pairs[title] = Pair(_value(own[key]), _value(control.get(key)))
    if own := record.get("uniformity", {}).get("saes", {}).get(sae):
        pairs[_EVENNESS] = Pair(_value(own["mean"]), _value(own.get("untrained")))
    return pairs


def _value(interval: Sequence[float | None] | None) -> float:
    return math.nan if not interval or interval[0] is None else interval[0]


class ProbingSection:
    """The report's section on probing; empty where no SAE was probed.

    Args:
        n_resamples: resamples of seeds.
    """

    def __init__(
        self, comparison: Comparison, measured: Sequence[Measured], *, n_resamples: int, seed: int
    ) -> None:
        self.c, self.measured = comparison, measured
        self._resampling = {"n_resamples": n_resamples, "seed": seed}
        settings = Counter(_settings(m) for m in measured if probing_of(m))
        self._common = settings.most_common(1)[0][0] if settings else ""
        self.probed = [m for m in measured if self._counts(m)]
        self._pairs = {m.key: measures(probing_of(m)) for m in self.probed}

    def _counts(self, m: Measured) -> bool:
        return bool(probing_of(m)) and _settings(m) == self._common

    def all(self) -> Iterator[str]:
        """Its paragraphs and tables."""
        if not self.probed:
            return
        yield "## Sparse probing, absorption and uniformity"
        yield self._setup()
        for l0 in self.c.at_l0:
            rows = self._at(l0)
            if len(rows) > 1:
                yield f"### At an L0 of {l0:g}\n\n{table(rows)}"
        yield "### Each SAE that was probed"
        yield self._each()
        yield from self._notes()

    def _setup(self) -> str:
        record = probing_of(self.probed[0])
        n_others = sum(1 for m in self.measured if probing_of(m)) - len(self.probed)
        others = f" Left out: {n_others}, probed with other settings." if n_others else ""
        return (
            f"{len(self.probed)} of {len(self.measured)} SAEs were probed (`hfsae probe`) on "
            f"{len(record['tasks'])} tasks ({sum(record['tasks'].values()):,} texts; "
            f"{one_line(record['tasks_of'])}).{others} Each cell: the SAE's latents / untrained "
            "latents, which lie along random directions and fire as often; means over seeds. "
            "Differences from the reference are of the SAE's latents, with Student's 95 % interval "
            "over seeds; **bold**: shown, also when corrected for the number of differences in the "
            "table (Holm). They hold for these tasks and words. A dash: not measured, or no SAEs "
            "around that L0."
        )

    @cached_property
    def _titles(self) -> list[str]:
        return list(dict.fromkeys(title for pairs in self._pairs.values() for title in pairs))

    def _at(self, l0: float) -> list[list[str]]:
        """Rows at an L0: a head, arms with values there, and their differences."""
        values = {arm: self._values(arm, l0) for arm in self.c.arms}
        values = {arm: by_seed for arm, by_seed in values.items() if by_seed}
        rows = [["arm", "seeds", *self._titles]]
        for arm, by_seed in values.items():
            cells = [_mean_cell([v[title] for v in by_seed.values()]) for title in self._titles]
            rows.append([self.c.title(arm), str(len(by_seed)), *cells])
        return rows + self._differences(values)

    def _differences(self, values: Mapping[str, dict[int, dict[str, Pair]]]) -> list[list[str]]:
        reference = self.c.reference_arm
        others = [arm for arm in values if arm != reference and reference in values]
        gaps = {
            (arm, title): self._difference(values[arm], values[reference], title)
            for arm in others
            for title in self._titles
        }
        cells = dict(zip(gaps, corrected(list(gaps.values())), strict=True))
        ours = self.c.title(reference)
        return [
            [
                f"{self.c.title(arm)} minus {ours}",
                str(len(values[arm].keys() & values[reference].keys())),
                *(cells[arm, t].cell("{:+.3f}".format, has_items=False) for t in self._titles),
            ]
            for arm in others
        ]

    def _difference(
        self, ours: dict[int, dict[str, Pair]], theirs: dict[int, dict[str, Pair]], title: str
    ) -> Estimate:
        gaps = [ours[s][title].own - theirs[s][title].own for s in sorted(ours.keys() & theirs)]
        if not gaps or not np.isfinite(gaps).all():
            return Estimate(math.nan, (math.nan, math.nan), (math.nan, math.nan))
        n = self._resampling["n_resamples"]  # of seeds alone: tasks and words are the same
        return estimate(np.repeat(np.array(gaps)[:, None], 1 + n, axis=1), **self._resampling)

    def _values(self, arm: str, l0: float) -> dict[int, dict[str, Pair]]:
        """By seed, the values at an L0; without seeds that have none there."""
        return {
            seed: {title: self._interpolated(at, title) for title in self._titles}
            for seed, at in seeds_at_l0(self.measured, arm, l0, self._counts).items()
        }

    def _interpolated(self, at: AtL0, title: str) -> Pair:
        nothing = Pair(math.nan, math.nan)
        return Pair(*at.mean(lambda m: np.array(self._pairs[m.key].get(title, nothing))).tolist())

    def _each(self) -> str:
        """A row for each SAE, with the intervals of its own probing."""
        facts = {m.key: probing_facts(dict(probing_of(m))) for m in self.probed}
        titles = [row["title"] for f in facts.values() for row in f["measures"]]
        titles = list(dict.fromkeys(titles))
        ks = [row["k"] for row in next(iter(facts.values()))["rows"]]
        gains = [f"AUC above untrained, k = {k}" for k in ks]
        head = ["arm", "SAE", "seed", "L0", *gains, *titles]
        rows = []
        for m in self.probed:
            own = {
                row["title"]: f"{row['own']} / {row['untrained']}"
                for row in facts[m.key]["measures"]
            }
            cells = [row["gain"] for row in facts[m.key]["rows"]]
            cells += [own.get(title, "-") for title in titles]
            rows.append(
                [self.c.title(m.arm), m.name, str(m.seed), f"{m.metrics['l0']:.4g}", *cells]
            )
        legend = "95 % bootstrap intervals over tasks, letters or tokens; gains paired over tasks."
        return f"{legend}\n\n{table([head, *rows])}"

    def _notes(self) -> Iterator[str]:
        """The sentences of the SAEs' cards, each once, with the number of SAEs."""
        notes = Counter(n for m in self.probed for n in probing_facts(dict(probing_of(m)))["notes"])
        for sentence, n in notes.items():
            of = "" if n == len(self.probed) else f" ({n} of {len(self.probed)} SAEs)"
            yield one_line(f"{sentence}{of}")


def _settings(m: Measured) -> str:
    names = ("arguments", "tasks_of", "tasks")
    return json.dumps([probing_of(m).get(name) for name in names], sort_keys=True)


def _mean_cell(pairs: Sequence[Pair]) -> str:
    means = [float(np.mean(values)) for values in zip(*pairs, strict=True)]
    own, untrained = ("-" if math.isnan(value) else f"{value:.3f}" for value in means)
    return own if own == "-" else f"{own} / {untrained}"
