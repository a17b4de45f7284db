"""The report of probing: means over tasks, and every task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...io.files import printable
from ...io.markdown import table

NO_SCR = "SCR and TPP are left out: an audit (arXiv 2605.18229) found that they rank SAEs wrongly."


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


def _shown(interval: Sequence[float]) -> str:
    value, low, high = (f"{number:.3f}" for number in interval)
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
