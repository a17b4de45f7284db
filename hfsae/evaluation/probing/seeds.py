"""Probing of SAEs that differ in their seed alone: means over seeds, and differences of arms."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...io.files import printable
from ...io.markdown import table
from ..statistics import Interval

ABOUT = (
    "SAEs whose names differ in seed_N alone are one arm: AUC is the mean over its seeds and over "
    "tasks, in square brackets a 95 % bootstrap interval over tasks, in round ones the seeds' "
    "lowest and highest mean. Differences are paired over tasks; an interval that holds 0 shows "
    "none. They are not corrected for their number"
)


def arms_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of SAEs by arm, the name without its `seed_N`; empty where no arm has two."""
    arms: dict[str, list[str]] = {}
    for name in names:
        parts = [part for part in name.split("/") if not re.fullmatch(r"seed_\d+", part)]
        arms.setdefault("/".join(parts) or "SAE", []).append(name)
    return arms if any(len(own) > 1 for own in arms.values()) else {}


def over_seeds(
    rows: Sequence[Mapping[str, Any]],
    saes: Sequence[str],
    mean: Callable[[Sequence[float]], Interval],
) -> list[dict[str, Any]]:
    """For each arm and number of latents: AUC, AUC above the first arm's, and the seeds' range.

    Args:
        rows: of all tasks, as in `Probing`.
        mean: the mean over tasks with its interval.
    """
    arms = arms_of(saes)
    aucs = {(row["features"], row["k"], row["task"]): row["auc"] for row in rows}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    ks = list(dict.fromkeys(row["k"] for row in rows if row["features"] in saes))
    entries = []
    for k in ks:
        by_arm = {
            arm: [[aucs[name, k, task] for task in tasks] for name in names]
            for arm, names in arms.items()
        }
        means = {arm: _columns(of_seeds) for arm, of_seeds in by_arm.items()}
        reference = next(iter(means.values()), [])
        for arm, of_seeds in by_arm.items():
            seeds = [sum(own) / len(own) for own in of_seeds]
            gaps = [a - b for a, b in zip(means[arm], reference, strict=True)]
            entry = {"arm": arm, "k": k, "n_seeds": len(seeds), "auc": mean(means[arm])}
            entry |= {"above_first": mean(gaps), "seeds": [min(seeds), max(seeds)]}
            entries.append(entry)
    return entries


def seeds_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each arm, and one for each but the first minus the first."""
    ks = list(dict.fromkeys(entry["k"] for entry in entries))
    arms = list(dict.fromkeys(entry["arm"] for entry in entries))
    cells = {(entry["arm"], entry["k"]): entry for entry in entries}
    body = []
    for arm in arms:
        own = [cells[arm, k] for k in ks]
        title = f"{printable(arm)} ({own[0]['n_seeds']} seeds)"
        ranges = [f"({e['seeds'][0]:.3f}-{e['seeds'][1]:.3f})" for e in own]
        aucs = [_shown(e["auc"], "") for e in own]
        body.append([title, *(f"{auc} {r}" for auc, r in zip(aucs, ranges, strict=True))])
    for arm in arms[1:]:
        gaps = [_shown(cells[arm, k]["above_first"], "+") for k in ks]
        body.append([f"{printable(arm)} minus {printable(arms[0])}", *gaps])
    return table([["arm", *(f"k = {k}" for k in ks)], *body])


def _columns(of_seeds: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*of_seeds, strict=True)]


def _shown(interval: Sequence[float], sign: str) -> str:
    value, low, high = (f"{number:{sign}.3f}" for number in interval)
    return f"{value} [{low}, {high}]"
