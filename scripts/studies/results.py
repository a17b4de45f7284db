"""Figures from raters' answers: by SAE, between SAEs, by rater, and beside automated scores."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

import hfsae
from hfsae.evaluation import Interval, holm
from hfsae.io import refuse_changed, refuse_mixture, weights_hash

from .agreement import counts_of, gwet, jackknife, krippendorff, percent
from .answers import Answer, Ledger
from .correlation import Correlation, correlate, rank_correlations
from .estimates import (
    NO_INTERVAL,
    RatingDifference,
    compare,
    over_both,
    over_latents,
    share_interval,
    signed_rank,
)
from .plan import EXPLANATIONS, FOLDERS, N_ODD, WORDS, Item, Plan, Refused

LEAST_PASSED = 0.5
"""Share of the random directions that a rater has to give something else than yes, and of the
repeated items that have to get the same answer again."""
LEAST_JUDGED = 5
"""Intruders, or repeats, from which a rater is judged by them."""
CHANCE_P = 0.1
"""Largest one-sided p, by the exact binomial test, of intruders named more often than by chance."""
FAILURES = {
    "controls": "rated most random directions yes",
    "intruders": "named intruders no more often than by chance",
    "repeats": "gave most repeated items another answer than before",
}
"""What makes the figures stand with and without a rater."""
LEAST_OWN = 20
"""Scored latents of one SAE among several that its own correlations need."""
_NOT_SCORES = ("latent", "density", "n_shown", "n_active", "n_hard", "n_random")
_CONTROL_COLUMNS = ("shuffled_", "direction_", "anything_")


class Rater(NamedTuple):
    """How one rater answered."""

    name: str
    n_answered: int
    n_skipped: int
    yes: float
    """share of latents rated yes"""
    mean: float
    """rating of latents"""
    controls: Interval
    """share of the random directions that were not rated yes"""
    control_mean: float
    intruders: Interval
    """share of intruders that were named; chance is 0.2"""
    repeats: Interval
    """share of repeated items with the same answer"""
    seconds: float
    """median of an answer"""
    with_others: float
    """rank correlation of the ratings of latents with another rater's, mean over the others; NaN
    for a single rater"""
    failures: tuple[str, ...]
    """keys of FAILURES"""

    @property
    def passes(self) -> bool:
        """Whether controls, intruders and repeats show a rater who read the items."""
        return not self.failures


class OfSAE(NamedTuple):
    """One SAE's figures, or those of the random directions."""

    name: str
    l0: float | None
    n_latents: int
    n_ratings: int
    yes: Interval
    mean: Interval
    mean_over_both: Interval
    intruders: Interval


class AutomatedScore(NamedTuple):
    """An automated score beside the ratings."""

    name: str
    sae: str
    correlation: Correlation


@dataclass
class Results:
    """All figures of a study, for some of its raters."""

    saes: list[OfSAE]
    differences: dict[tuple[str, str], tuple[RatingDifference, float]]
    """with the p-value corrected by Holm"""
    agreement: dict[str, Interval]
    scores: list[AutomatedScore]


class Answers:
    """The answers of raters to a plan, as arrays."""

    def __init__(self, plan: Plan, ledgers: Mapping[str, Ledger]) -> None:
        self.plan = plan
        self.raters = [name for name, ledger in ledgers.items() if ledger.given]
        self.latest = {name: ledgers[name].latest for name in self.raters}

    def only(self, raters: Sequence[str]) -> "Answers":
        """Those of some raters."""
        part = Answers(self.plan, {})
        part.raters = [name for name in self.raters if name in raters]
        part.latest = {name: self.latest[name] for name in part.raters}
        return part

    def items(self, *kinds: str) -> list[Item]:
        """Items of some kinds, in the plan's order."""
        return [item for item in self.plan.items if item.kind in kinds]

    def ratings(self, items: Sequence[Item]) -> np.ndarray:
        """[raters, items] 0, 1 or 2; NaN: not answered, or skipped."""
        return self._array(items, lambda item, answer: WORDS.index(str(answer.answer)))

    def is_right(self, items: Sequence[Item]) -> np.ndarray:
        """[raters, items] whether the intruder was named; NaN: not answered, or skipped."""
        return self._array(items, lambda item, answer: float(answer.answer == item.odd))

    def _array(self, items: Sequence[Item], value: Callable[[Item, Answer], float]) -> np.ndarray:
        array = np.full((len(self.raters), len(items)), math.nan)
        for r, rater in enumerate(self.raters):
            for i, item in enumerate(items):
                answer = self.latest[rater].get(item.id)
                if answer is not None and answer.answer is not None:
                    array[r, i] = value(item, answer)
        return array

    def rows(self) -> Iterator[dict[str, Any]]:
        """An answer a row, with what the rater could not know."""
        items = {item.id: item for item in self.plan.items}
        for rater in self.raters:
            for answer in self.latest[rater].values():
                yield _row(rater, answer, items[answer.item], self.plan)


def _row(rater: str, answer: Answer, item: Item, plan: Plan) -> dict[str, Any]:
    given = answer.answer
    is_rating = item.odd is None and given is not None
    return {
        "rater": rater,
        "item": item.id,
        "kind": item.kind,
        "sae": plan.saes[item.sae]["name"],
        "latent": item.latent if item.latent >= 0 else None,
        "density": item.density,
        "block": item.block,
        "answer": None if given is None else str(given),
        "rating": WORDS.index(str(given)) if is_rating else None,
        "is_right": given == item.odd if item.odd is not None and given is not None else None,
        "words": answer.words or None,
        "seconds": answer.seconds,
        "at": answer.at,
    }


def rater_of(answers: Answers, name: str) -> Rater:
    """The figures of one rater."""
    own = answers.only([name])
    latest = own.latest[name]
    latents, controls = (own.ratings(own.items(k))[0] for k in ("latent", "direction"))
    right = own.is_right(own.items("intruder"))[0]
    named = _share(right == 1, right)
    given = [answer for answer in latest.values() if answer.answer is not None]
    passed, again = _share(controls < 2, controls), _repeated(own)
    return Rater(
        name,
        len(given),
        len(latest) - len(given),
        _mean(latents == 2, latents),
        _mean(latents, latents),
        passed.interval,
        _mean(controls, controls),
        named.interval,
        again.interval,
        statistics.median(answer.seconds for answer in given) if given else math.nan,
        _with_others(answers, name),
        tuple(_failures(passed, named, again)),
    )


class _Share(NamedTuple):
    """Of independent answers."""

    n_right: int
    n: int

    @property
    def interval(self) -> Interval:
        return share_interval(self.n_right, self.n)


def _failures(controls: _Share, intruders: _Share, repeats: _Share) -> Iterator[str]:
    if controls.n_right < LEAST_PASSED * controls.n:
        yield "controls"
    if intruders.n >= LEAST_JUDGED:
        test = stats.binomtest(intruders.n_right, intruders.n, 1 / N_ODD, alternative="greater")
        if test.pvalue > CHANCE_P:
            yield "intruders"
    if repeats.n >= LEAST_JUDGED and repeats.n_right < LEAST_PASSED * repeats.n:
        yield "repeats"


def _with_others(answers: Answers, name: str) -> float:
    if len(answers.raters) < 2:
        return math.nan
    number = answers.raters.index(name)
    ratings = answers.ratings(answers.items("latent"))
    known = ~np.isnan(ratings)
    others = (known & known[number]).sum(1) >= 2
    others[number] = False
    own = rank_correlations(ratings[None])[0, number][others]
    return float(own.mean()) if others.any() else math.nan


def _mean(values: np.ndarray, known: np.ndarray) -> float:
    values = values[~np.isnan(known)]
    return float(values.mean()) if len(values) else math.nan


def _share(is_so: np.ndarray, known: np.ndarray) -> _Share:
    is_known = ~np.isnan(known)
    return _Share(int((is_so & is_known).sum()), int(is_known.sum()))


def _repeated(own: Answers) -> _Share:
    """How often one rater's answer to a repeated item was the same."""
    repeats = own.items("repeat")
    firsts = {item.id: item for item in own.items("latent")}
    pairs = own.ratings(repeats)[0], own.ratings([firsts[str(i.repeats)] for i in repeats])[0]
    return _share(pairs[0] == pairs[1], pairs[0] + pairs[1])


def results_of(answers: Answers, study: Path) -> Results:
    """All figures for these raters."""
    names = [sae["name"] for sae in answers.plan.saes]
    seed = answers.plan.arguments["seed"]
    saes = [_of_sae(answers, number, seed) for number in range(len(names))]
    pairs = list(combinations(range(len(names)), 2))
    between = [_between(answers, *pair, seed) for pair in pairs]
    corrected = holm([each.p for each in between])
    differences = {
        (names[a], names[b]): (each, p)
        for (a, b), each, p in zip(pairs, between, corrected, strict=True)
    }
    scores = list(_scores(answers, study, seed))
    return Results([*saes, _of_directions(answers, seed)], differences, agreement(answers), scores)


def _of_sae(answers: Answers, number: int, seed: int) -> OfSAE:
    sae = answers.plan.saes[number]
    latents = [item for item in answers.items("latent") if item.sae == number]
    odd = [item for item in answers.items("intruder") if item.sae == number]
    right = over_latents(answers.is_right(odd), seed, 1.0)
    return _figures(sae["name"], sae["l0"], answers.ratings(latents), right, seed)


def _of_directions(answers: Answers, seed: int) -> OfSAE:
    ratings = answers.ratings(answers.items("direction"))
    return _figures("random directions", None, ratings, NO_INTERVAL, seed)


def _figures(
    name: str, l0: float | None, ratings: np.ndarray, intruders: Interval, seed: int
) -> OfSAE:
    is_yes = np.where(np.isnan(ratings), math.nan, ratings == 2)
    return OfSAE(
        name,
        l0,
        int((~np.isnan(ratings)).any(0).sum()),
        int((~np.isnan(ratings)).sum()),
        over_latents(is_yes, seed, 1.0),
        over_latents(ratings, seed),
        over_both(ratings, seed),
        intruders,
    )


def _between(answers: Answers, a: int, b: int, seed: int) -> RatingDifference:
    items = [item for item in answers.items("latent") if item.sae in (a, b)]
    is_first = np.array([item.sae == a for item in items])
    blocks = np.array([item.block for item in items])
    compared = compare(answers.ratings(items), is_first, blocks, seed)
    return compared._replace(signed_rank=signed_rank(_paired(answers, a, b)))


def _paired(answers: Answers, a: int, b: int) -> np.ndarray:
    """[pairs] ratings of one SAE's latents minus those of another's, means over the raters who
    rated both. The plan makes the pairs: the first latents drawn of each, the second, and so on,
    which lie in one block."""
    ratings = [
        answers.ratings([item for item in answers.items("latent") if item.sae == sae])
        for sae in (a, b)
    ]
    n = min(each.shape[1] for each in ratings)
    differences = ratings[0][:, :n] - ratings[1][:, :n]
    counts = (~np.isnan(differences)).sum(0)
    sums = np.nansum(differences, axis=0)
    return np.divide(sums, counts, out=np.full(n, math.nan), where=counts > 0)


def agreement(answers: Answers) -> dict[str, Interval]:
    """Agreement on latents and directions together; empty for a single rater."""
    counts = counts_of(answers.ratings(answers.items("latent", "direction")), len(WORDS))
    if len(answers.raters) < 2 or (counts.sum(1) >= 2).sum() < 2:
        return {}
    return {
        "Krippendorff's alpha, ordinal": jackknife(counts, partial(krippendorff, scale="ordinal")),
        "Krippendorff's alpha, nominal": jackknife(counts, partial(krippendorff, scale="nominal")),
        "Gwet's AC2, ordinal weights": jackknife(counts, partial(gwet, weighted=True)),
        "Gwet's AC1": jackknife(counts, partial(gwet, weighted=False)),
        "equal answers": jackknife(counts, percent),
    }


def _scores(answers: Answers, study: Path, seed: int) -> Iterator[AutomatedScore]:
    """Each automated score beside the ratings: over the latents of all SAEs, and of each."""
    tables = {name: table for name, table, _ in scores_of(answers.plan, study) if table}
    latents = [i for i in answers.items("latent") if answers.plan.saes[i.sae]["name"] in tables]
    columns = dict.fromkeys(c for t in tables.values() for row in t.values() for c in row)
    for column in columns:
        for name in (["all"] if len(tables) > 1 else []) + list(tables):
            own = [i for i in latents if name in ("all", answers.plan.saes[i.sae]["name"])]
            if name != "all" and len(tables) > 1 and len(own) < LEAST_OWN:
                continue
            of_items = [tables[answers.plan.saes[i.sae]["name"]].get(i.latent, {}) for i in own]
            values = np.array([scores.get(column) for scores in of_items], float)  # None: NaN
            yield AutomatedScore(column, name, correlate(answers.ratings(own), values, seed))


def scores_of(
    plan: Plan, study: Path
) -> Iterator[tuple[str, dict[int, dict[str, Any]] | None, str]]:
    """(SAE, scores by latent, why there are none) of each SAE of a study, from
    features/explanations.parquet; scores of controls are left out."""
    path, (table, record) = study / FOLDERS, EXPLANATIONS
    folders = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for sae in plan.saes:
        folder = Path(str(folders.get(sae["name"], "")))
        if sae["name"] not in folders or not folder.is_dir():
            yield sae["name"], None, "its folder is not here"
        elif weights_hash(folder) != sae.get("weights_sha256"):
            yield sae["name"], None, "its folder has other weights now"
        elif not (folder / table).is_file():
            yield sae["name"], None, "no `hfsae explain` was made"
        elif _is_refused(refuse_mixture, folder, [record, table]):
            yield sae["name"], None, "its explanations are of other weights"
        elif _is_refused(refuse_changed, folder, [record]):
            yield sae["name"], None, "its explanations were changed after they were written"
        else:
            yield sae["name"], _table(folder / table), ""


def _is_refused(check: Callable[[Path, list[str]], None], folder: Path, records: list[str]) -> bool:
    try:
        check(folder, records)
    except hfsae.Refused:
        return True
    return False


def _table(path: Path) -> dict[int, dict[str, Any]]:
    schema = pq.read_schema(path)
    columns = [
        field.name
        for field in schema
        if pa.types.is_floating(field.type)
        and field.name not in _NOT_SCORES
        and not field.name.startswith(_CONTROL_COLUMNS)
    ]
    if "latent" not in schema.names:
        raise Refused(f"{path} has no column latent; `hfsae explain` makes it again")
    rows = pq.read_table(path, columns=["latent", *columns]).to_pylist()
    return {row.pop("latent"): row for row in rows}
