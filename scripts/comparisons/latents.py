"""The report's section on how explainable latents are, and its page of latents with evidence."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from hfsae.comparison import LEVEL, Comparison, Estimate, Measured, corrected
from hfsae.explanations import SCORERS, ShownLatent

from .interpretability import (
    DIRECTIONS,
    N_STRATA,
    UNTRAINED,
    Interpretability,
    Score,
    columns_of,
)
from .markdown import table

ABOVE = Score("pearson", "shuffled_pearson")
SCORES = {
    "Pearson": Score("pearson"),
    "Pearson above another latent's": ABOVE,
    "AUPRC above another's": Score("auprc", "shuffled_auprc"),
    "AUC above another's": Score("auc", "shuffled_auc"),
    "token ceiling, Pearson": Score("token_ceiling_pearson"),
}
SCORES_BY_DENSITY = ("Pearson", "token ceiling, Pearson")
_MEANS = {**SCORES, "Pearson above, by frequency": ABOVE._replace(by_frequency=True)}
_CONTROLS = {DIRECTIONS: "random directions", UNTRAINED: "re-drawn weights"}
BEST, WORST, RANDOM = "best", "worst", "random"
N_BEST, N_RANDOM = 5, 10
MOST_FAILED = 0.05
"""A larger share of a judge's items that failed leaves no verdict."""
_GROUPS = {BEST: "The best, by Pearson", WORST: "The worst, by Pearson", RANDOM: "Random ones"}


class LatentsSection:
    """The section's paragraphs, tables and figure, and its page."""

    def __init__(
        self, comparison: Comparison, measured: Sequence[Measured], *, n_resamples: int, seed: int
    ) -> None:
        self.c, self.reference = comparison, comparison.reference_arm
        self.others = [arm for arm in comparison.arms if arm != self.reference]
        self._own = (self.reference, "latents")
        self._drawn = {"n_resamples": n_resamples, "seed": seed}
        self.measured = measured
        self.lexical = {l0: Interpretability(measured, l0, **self._drawn) for l0 in self._l0s()}
        self.middle = [*self.lexical.values()][len(self.lexical) // 2]

    def _l0s(self) -> list[float]:
        """The L0s to compare at; one, whichever, where each arm has one SAE a seed."""
        n_saes = len(self.measured) / len({(m.arm, m.seed) for m in self.measured})
        l0s = self.c.at_l0 or [50.0]
        return l0s if n_saes > 1 else l0s[:1]

    def all(self) -> Iterator[str]:
        """The section, as Markdown."""
        yield "## Interpretability"
        yield self._method()
        yield "![Pearson and token ceiling by density](figures/interpretability.png)"
        for l0, values in self.lexical.items():
            if len(self.lexical) > 1:
                yield f"### At an L0 of {l0:g}"
            yield self._means(values)
            if self.others:
                yield self._summary(values)
            yield self._differences(values)
        yield self._strata(self.middle)
        yield from self._judged()
        yield (
            "[Latents with their evidence](latents.md): of each arm the five best, the five "
            "worst and ten random ones."
        )

    def _method(self) -> str:
        args = self.c.explain
        limits = f"0.01 to {100 * args.max_density:g} %"
        return (
            f"{args.n_latents} latents of each SAE, drawn at random among those that fire on "
            f"{limits} of {args.n_tokens:,} held-out tokens, the same for all SAEs. Windows of one "
            "half of the documents explain a latent: a token's predicted activation is its mean "
            "there, shrunk by count. The other half tests that: Pearson's correlation and AUPRC "
            "over all tokens, AUC over windows. *Above another's*: minus the score of another "
            "latent's windows, latent by latent. *Token ceiling*: predictions from all tokens of "
            "the first half, so the share that a token's identity explains. No score judges an "
            "explanation's words. Controls: random unit directions that fire as often as the "
            "latents, and the SAE with its encoder's weights shuffled over latents and the same "
            "densities. In square brackets: a 95 % bootstrap of seeds and latents. Where an arm "
            "has SAEs on both sides of an L0, values are interpolated in log L0; else they are "
            f"those of its nearest SAE.{self._lacking()}"
        )

    def _lacking(self) -> str:
        """The SAEs without scores."""
        lacking = [m for m in self.measured if not columns_of(m, "lexical")]
        listed = "; ".join(
            f"{m.arm}, seed {m.seed}: {m.more.get('explained', {}).get('refused', '')}"
            for m in lacking
        )
        return f" Without scores: {listed}." if lacking else ""

    def rows(self) -> list[tuple[str, str, str]]:
        """Title, arm and part of each row: arms, and the controls of the reference."""
        arms = [(self.c.title(arm), arm, "latents") for arm in self.c.arms]
        title = self.c.title(self.reference)
        return arms + [
            (f"{name} ({title})", self.reference, part) for part, name in _CONTROLS.items()
        ]

    def _means(self, values: Interpretability) -> str:
        rows = [["arm", "L0", "latents", *_MEANS]]
        for title, arm, part in self.rows():
            scores = [score._replace(part=part) for score in _MEANS.values()]
            n = values.n_latents(arm, scores[0])
            cells = [mean_cell(values.mean(arm, score)) for score in scores]
            rows.append([title, _range(values.l0s(arm)), f"{n:,}", *cells])
        return table(rows)

    def _summary(self, values: Interpretability) -> str:
        if len(self.c.seeds) == 1:
            return "Of one seed, no difference between arms counts as shown."
        lines = [f"Compared with {self.c.title(self.reference)}, at equal density:", ""]
        for arm in self.others:
            title = self.c.title(arm)
            row = dict(zip(SCORES, self._compared(values)[title], strict=True))
            lines.append(f"- **{title}**: {_verdict(row)}.")
        return "\n".join(lines)

    def _differences(self, values: Interpretability) -> str:
        rows = [[f"minus {self.c.title(self.reference)}", *SCORES]]
        for title, cells in self._compared(values).items():
            rows.append([title, *map(difference_cell, cells)])
        return f"{self._legend()}\n\n{table(rows)}"

    def _compared(self, values: Interpretability) -> dict[str, list[Estimate]]:
        """Title -> differences from the reference; those of arms are corrected together, those of
        the reference's controls, too."""
        compared = {}
        for is_control in (False, True):
            rows = {
                title: [
                    values.difference(arm, score._replace(part=part), self.reference, score)
                    for score in SCORES.values()
                ]
                for title, arm, part in self.rows()
                if (arm == self.reference) == is_control and (arm, part) != self._own
            }
            cells = iter(corrected([e for row in rows.values() for e in row]))
            compared |= {title: [next(cells) for _ in row] for title, row in rows.items()}
        return compared

    def _legend(self) -> str:
        intervals = (
            "two 95 % intervals: Student's t over the seeds, and a bootstrap of seeds and latents; "
            f"**bold** where both exclude 0 and p is below {LEVEL:g} when corrected for the number "
            "of differences between arms, or from controls (Holm); *italics*: both exclude 0, and "
            "the correction does not let it count; elsewhere no difference is shown"
            if len(self.c.seeds) > 1
            else "a 95 % bootstrap of latents"
        )
        return f"Differences, paired by seed and tenth of density; in round brackets {intervals}."

    def _strata(self, values: Interpretability) -> str:
        edges = [f"{edge:.2%}" for edge in values.edges]
        names = [f"up to {edges[0]}", *(f"to {edge}" for edge in edges[1:]), f"above {edges[-1]}"]
        rows = [["fires on", *map(self.c.title, self.c.arms)]]
        for i in range(N_STRATA):
            cells = []
            for arm in self.c.arms:
                n = values.n_in_stratum(arm, ABOVE, i)
                value = values.stratum(arm, ABOVE, i).value
                cells.append("-" if math.isnan(value) else f"{value:.3f} ({n})")
            rows.append([names[i], *cells])
        return (
            "Pearson above another latent's by tenth of density; in brackets the number of "
            f"latents.\n\n{table(rows)}"
        )

    def _judged(self) -> Iterator[str]:
        """Scores by the judge, of the SAEs that have them."""
        judged = [m for m in self.measured if columns_of(m, "judged")]
        if not judged or not self.c.explain.scores:
            return
        values = Interpretability(judged, self.middle.l0, **self._drawn)
        seeds = ", ".join(map(str, values.seeds))
        yield f"### A judge's scores (seeds: {seeds})"
        yield (
            f"The packaged SmolLM2 is asked about {self.c.explain.judged_latents} of the latents "
            "of each SAE. *Above its control*: above another latent's explanation, latent by "
            "latent; without explanations (intruder), above random directions of equal density. "
            "Where that interval holds 0, or the mean's holds chance (0.2 for intruder, 0.5 for "
            "others), the judge cannot tell them apart, and nothing is ranked by it."
        )
        rows = [["score", "arm", "L0", "latents", "mean", "above its control", "failed", "verdict"]]
        for name in self.c.explain.asked().scores:
            for arm in values.arms:
                rows.append([name, self.c.title(arm), *_judged_cells(values, arm, name)])
        yield table(rows)

    def page(self) -> str:
        """Latents with their evidence, as Markdown."""
        parts = [
            "# Latents with their evidence",
            "Of each arm, over its seeds: windows that explain a latent (shown), and windows that "
            "test it (active; hard or random: where it does not fire).",
        ]
        for arm in self.c.arms:
            parts.append(f"## {self.c.title(arm)}")
            for group, examples in chosen(self.middle.saes(arm)).items():
                parts.append(f"### {_GROUPS[group]}")
                for m, e in examples:
                    lines = f"seed {m.seed}, {e.text}".split("\n")
                    parts.append("\n".join(f"    {line}" for line in lines))
        return "\n\n".join(parts) + "\n"


def examples_of(m: Measured) -> list[ShownLatent]:
    """Latents of an SAE with their evidence."""
    return [ShownLatent(**example) for example in m.more.get("explained", {}).get("examples", [])]


def chosen(saes: Sequence[Measured]) -> dict[str, list[tuple[Measured, ShownLatent]]]:
    """The examples that stand for several SAEs, by group: the best and the worst of all by Pearson,
    and random ones."""
    groups: dict[str, list[tuple[Measured, ShownLatent]]] = {}
    for m in saes:
        for example in examples_of(m):
            groups.setdefault(example.group, []).append((m, example))
    for group, sign in ((BEST, -1), (WORST, 1)):
        if group in groups:
            ranked = sorted(groups[group], key=lambda of: sign * _pearson(*of))
            groups[group] = ranked[:N_BEST]
    if RANDOM in groups:
        n = min(N_RANDOM, len(groups[RANDOM]))
        groups[RANDOM] = random.Random(0).sample(groups[RANDOM], n)
    return {group: groups[group] for group in _GROUPS if group in groups}


def _pearson(m: Measured, example: ShownLatent) -> float:
    columns = columns_of(m, "lexical")
    at = (columns["latents/latent"] == example.latent).nonzero()[0, 0]
    return float(columns["latents/pearson"][at])


def _judged_cells(values: Interpretability, arm: str, name: str) -> list[str]:
    """L0, latents, mean, above its control, failed items, verdict."""
    scorer = SCORERS[name]
    score = Score(f"{name}_{scorer.metrics[0]}", is_judged=True)
    if scorer.needs_explanation:
        above = values.mean(arm, score._replace(above=f"shuffled_{score.column}"))
    else:
        above = values.difference(arm, score, arm, score._replace(part=DIRECTIONS))
    failed = _failed(values.saes(arm), name)
    n, mean = values.n_latents(arm, score), values.mean(arm, score)
    return [
        _range(values.l0s(arm)),
        f"{n:,}",
        f"{scorer.metrics[0]} {mean_cell(mean)}",
        mean_cell(above),
        f"{failed:.1%}",
        _judged_verdict(mean, above, failed, scorer.chance),
    ]


def _failed(saes: Sequence[Measured], name: str) -> float:
    """Share of the items about latents' own explanations that have no answer."""
    failed, items = (
        sum(float(columns_of(m, "judged")[f"latents/{name}_n_{what}"].sum()) for m in saes)
        for what in ("failed", "items")
    )
    return failed / items if items else 0.0


def _judged_verdict(mean: Estimate, above: Estimate, failed: float, chance: float | None) -> str:
    if failed > MOST_FAILED:
        return "too many failed"
    low, high = above.items
    if low > 0:
        return "told apart" if chance is None or mean.items[0] > chance else "at chance"
    return "below its control" if high < 0 else "cannot tell"


def _verdict(spreads: Mapping[str, Estimate]) -> str:
    """Which differences are shown, and in which scores none is."""
    shown = {name: s for name, s in spreads.items() if s.is_significant}
    clauses = [
        f"{name} {'higher' if s.value > 0 else 'lower'} by {abs(s.value):.3f}"
        for name, s in shown.items()
    ]
    if rest := [name for name in spreads if name not in shown]:
        clauses.append(f"no difference shown in {', '.join(rest)}")
    return "; ".join(clauses)


def mean_cell(spread: Estimate) -> str:
    """A mean with its bootstrap interval."""
    if math.isnan(spread.value):
        return "-"
    low, high = spread.items
    return f"{spread.value:.3f} [{low:.3f}, {high:.3f}]"


def difference_cell(spread: Estimate) -> str:
    """A difference with its intervals; bold where it is shown."""
    return spread.cell("{:+.3f}".format)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low}-{high}"
