"""The report of probing: means over tasks, and every task; over SAEs that differ in their seed
alone, and differences of arms."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...io.files import printable
from ...io.markdown import table
from ..statistics import Interval

NO_SCR = "SCR and TPP are left out: an audit (arXiv 2605.18229) found that they rank SAEs wrongly."
_SEEDS = (
    "SAEs whose names differ in seed_N alone are one arm: AUC is the mean over its seeds and over "
    "tasks, in square brackets a 95 % bootstrap interval over tasks, in round ones the seeds' "
    "lowest and highest mean. Differences are paired over tasks; an interval that holds 0 shows "
    "none. They are not corrected for their number"
)


def report_of(
    rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any], saes: Sequence[str]
) -> str:
    """The report, as Markdown."""
    n, about = len({row["task"] for row in rows}), record["about"]
    parts = ["# Sparse probing", f"{n} tasks, {sum(record['tasks'].values()):,} texts. {about}."]
    means = record["means"]
    ks = list(dict.fromkeys(entry["k"] for entry in means))
    cells: dict[str, dict[Any, str]] = {}
    for entry in means:
        cells.setdefault(_title(entry), {})[entry["k"]] = _shown(entry["auc"])
    body = [[title, *(by_k.get(k, "") for k in ks)] for title, by_k in cells.items()]
    aucs = table([["features", *(f"k = {k}" for k in ks)], *body])
    parts += ["## AUC by number of features", aucs]
    own = [entry for entry in means if entry["features"] in saes]
    ks = list(dict.fromkeys(entry["k"] for entry in own))
    body = []
    for name in saes:
        by_k = {e["k"]: e["auc_above_untrained"] for e in own if e["features"] == name}
        body.append([printable(name), *(_shown(by_k[k]) for k in ks)])
    gains = table([["SAE", *(f"k = {k}" for k in ks)], *body])
    parts += ["## Above untrained latents, AUC paired over tasks", gains]
    if "arms" in record:
        parts += ["## Over seeds", seeds_table(record["arms"]), f"{_SEEDS}."]
    for name in saes:
        parts += [f"## Tasks: {printable(name)}", _tasks(rows, name)]
    if "absorption" in record:
        parts += ["## First-letter absorption", *_absorption(record["absorption"])]
    if "uniformity" in record:
        each = [
            [printable(name), _shown(own["mean"]), _shown(own["untrained"]), str(own["n_tokens"])]
            for name, own in record["uniformity"]["saes"].items()
        ]
        by_sae = table([["SAE", "r_L0", "untrained latents", "tokens"], *each])
        parts += ["## Uniformity of effects", by_sae, f"{record['uniformity']['about']}."]
    parts.append(NO_SCR)
    return "\n\n".join(parts) + "\n"


def _title(entry: Mapping[str, Any]) -> str:
    of = f" ({entry['of']})" if entry["of"] else ""
    return printable(f"{entry['features']}{of}")


def _shown(interval: Sequence[float], sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.3f}" for number in interval)
    return f"{value} [{low}, {high}]"


def _tasks(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    own = [row for row in rows if row["features"] == name]
    ks = list(dict.fromkeys(row["k"] for row in own))
    body = []
    for task in dict.fromkeys(row["task"] for row in own):
        by_k = {row["k"]: row for row in own if row["task"] == task}
        first = ", ".join(map(str, by_k[ks[0]]["latents"][:3]))
        body.append([printable(task), *(f"{by_k[k]['auc']:.3f}" for k in ks), first])
    return table([["task", *(f"k = {k}" for k in ks), "latents"], *body])


def _absorption(absorption: Mapping[str, Any]) -> Iterator[str]:
    rows = absorption["rows"]
    measured = [row for row in rows if "refused" not in row]
    if measured:
        head = ["latents", "full", "fraction", "main latents", "their F1"]
        body = []
        for row in measured:
            numbers = [_shown(row["full"]), _shown(row["fraction"]), f"{row['n_main']:.1f}"]
            body.append([_title(row), *numbers, _shown(row["f1_of_main"])])
        yield table([head, *body])
    for row in rows:
        if "refused" in row:
            yield f"{_title(row)}: no figures. {printable(row['refused'])}."
    n, f1s = absorption["n_words"], absorption["probe_f1"]
    if f1s:
        means = [f"{printable(site)} {sum(f1.values()) / len(f1):.2f}" for site, f1 in f1s.items()]
        yield (
            f"{n['train']:,} words to fit, {n['test']:,} to test. Mean F1 of the probe of the "
            f"model's activations: {', '.join(means)}."
        )
    yield f"{absorption['about']}. {absorption['caution']}."


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
        means = {
            arm: [sum(values) / len(values) for values in zip(*of_seeds, strict=True)]
            for arm, of_seeds in by_arm.items()
        }
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
        aucs = [_shown(e["auc"]) for e in own]
        body.append([title, *(f"{auc} {r}" for auc, r in zip(aucs, ranges, strict=True))])
    for arm in arms[1:]:
        gaps = [_shown(cells[arm, k]["above_first"], "+") for k in ks]
        body.append([f"{printable(arm)} minus {printable(arms[0])}", *gaps])
    return table([["arm", *(f"k = {k}" for k in ks)], *body])
