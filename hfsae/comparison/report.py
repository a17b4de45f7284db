"""The report of a comparison: figures and text, as Markdown and as one HTML file."""

import base64
import json
import math
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
import yaml

from ..activations import Split, documents, is_hub
from ..cards import write_card
from ..evaluation.result import KINDS_OF_DOCUMENTS
from ..io.file_names import FIGURES, REPORT, REPORT_PAGE, TRAINING
from ..io.files import locked, read_json, sweep, write_whole
from ..io.markdown import table
from ..io.units import TOKEN, section_of, unit_of
from ..runs import as_plain
from . import plots
from .arms import Comparison
from .frontier import LEVEL, Differences, Estimate
from .results import MATCHED, THRESHOLD_SHARES, Measured, harvests, n_harvests, save_results

_ARMS_IN_TITLE = 6
_FAR = 1000  # %
_NONE = "no difference shown"
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;font-size:13px}
td,th{border:1px solid #ddd;padding:.25rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}
pre{background:#f6f6f6;padding:.7rem;overflow-x:auto}"""


def write_report(differences: Differences, command: str, sections: Iterable[str] = ()) -> Path:
    """Write report.md, report.html, figures/ and the numbers, and the link to them into the SAEs'
    cards; returns the report's folder.

    Args:
        sections: more of the report, in Markdown, for its middle.
    """
    comparison, measured = differences.c, differences.measured
    folder = comparison.report_folder
    titles = {arm: comparison.title(arm) for arm in comparison.arms}
    # Other parts of the comparison may end at the same time and write to the same report.
    with locked(folder, wait=True):
        sweep(folder)
        save_results(comparison, measured, command)
        drawn = plots.draw(
            folder / FIGURES, differences.frontiers, measured, titles, comparison.reference_arm
        )
        text = "\n\n".join(_paragraphs(differences, drawn, command, sections)) + "\n"
        write_whole(folder / REPORT, text)
        write_whole(folder / REPORT_PAGE, page_of(text, folder))
        for m in measured:
            path = m.folder / TRAINING
            if not path.is_file() or comparison.arms[m.arm].get("made_by"):
                continue  # the SAE is in the report only, or another library's
            href = comparison.report_url or os.path.relpath(folder / REPORT, m.folder)
            compared = {"arm": titles[m.arm], "arms": [*titles.values()], "report": href}
            record = read_json(path)
            if record.get("compared") != compared:
                write_whole(path, json.dumps({**record, "compared": compared}, indent=1) + "\n")
                write_card(m.folder)
    return folder


def _paragraphs(
    d: Differences, drawn: Container[str], command: str, sections: Iterable[str]
) -> Iterator[str]:
    """The report's paragraphs, tables and figures, in order."""
    c, metrics, l0s = d.c, d.metrics, d.l0s
    titles = {arm: c.title(arm) for arm in c.arms}
    reference = titles[d.reference]
    joined = ", ".join(titles.values())
    title = joined if len(titles) <= _ARMS_IN_TITLE else f"{len(titles)} arms"
    yield f"# {title}: fidelity at equal L0"
    yield _setup(d)
    yield f"![{' and '.join(metrics.values())} against L0](figures/frontier.png)"
    heads = [f"L0 {l0:g}" for l0 in l0s]
    if not l0s:
        yield f"{reference}, the reference, has no SAEs near any L0 of {c.at_l0}."
    elif d.others:
        yield "## Summary"
        if len(c.seeds) == 1:
            yield (
                "One seed cannot separate the effect of an arm from the effect of its seed: no "
                "difference counts as shown. The differences below have intervals over documents."
            )
        else:
            lines = [
                f"- **{titles[arm]}, {label}**: {_verdicts(d.tables[metric][arm], l0s)}."
                for arm in d.others
                for metric, label in metrics.items()
            ]
            yield "\n".join([f"Compared with {reference}, at equal L0:", "", *lines])
        yield "## Differences"
        yield _method_of_differences(d)
        if "difference" in drawn:
            yield "![Differences from the reference](figures/difference.png)"
        for metric, label in metrics.items():
            rows = [[label, *heads, *["area"] * (len(l0s) > 1)]]
            of_arms = d.tables[metric].items()
            yield table(rows + [[titles[arm], *map(difference_cell, own)] for arm, own in of_arms])
    if l0s:
        yield "## Values"
        for metric, label in metrics.items():
            rows = [[label, *heads]]
            for arm, title in titles.items():
                rows.append([title])
                for e in (d.frontiers.at(arm, metric, l0) for l0 in l0s):
                    half = (e.seeds[1] - e.seeds[0]) / 2  # NaN for one seed
                    spread = "" if math.isnan(half) else f" ± {half:.4f}"
                    rows[-1].append("-" if math.isnan(e.value) else f"{e.value:.4f}{spread}")
            yield table(rows)
    yield from _tables_of_seeds(d, sections)
    yield "## Arms"
    yield _settings(d)
    yield "## Data"
    yield about_data(c, d.measured)
    yield "## Every SAE"
    names = ("l0", *metrics, "relative_reconstruction_bias", "dead_share")
    rows = [["arm", "SAE", "seed", *names]]
    for m in d.measured:
        rows.append([m.arm, m.name, str(m.seed), *(f"{m.metrics[name]:.4g}" for name in names)])
    yield table(rows)
    yield "## Reproduce"
    yield (
        f"The command:\n\n```\n{command}\n```\n\n`results.json` and `results.safetensors`, "
        "beside this report, hold the measurements of every SAE. The command trains only SAEs "
        "that they lack, and writes the report. Another `--training.output_dir` and `--report` "
        "start from nothing: the next command trains one arm with one seed, and gives the same "
        "numbers on a machine of the same kind with as many threads:\n\n"
        f"```\n{command} --only '[{(d.others or [d.reference])[0]}]' --seeds '[{c.seeds[0]}]' "
        "--training.output_dir runs/again --report runs/again/report\n```"
    )


def _setup(d: Differences) -> str:
    c, measured = d.c, d.measured
    runs = {(m.arm, m.seed): m.record["seconds"]["train"] for m in measured}
    widths = _from_to(m.record["sae_as_trained"]["d_sae"] for m in measured)
    counts = Counter(m.record["machine"] or "not recorded" for m in measured)
    machines = next(iter(counts))
    if len(counts) > 1:
        of_arms = {(m.arm, m.record["machine"] or "not recorded") for m in measured}
        parts = []
        for name, n in counts.most_common():
            arms = ", ".join(c.title(arm) for arm in c.arms if (arm, name) in of_arms)
            parts.append(f"{name}, {n} SAEs ({arms})")
        machines = "; ".join(parts)
    return (
        f"{len(measured)} SAEs of {widths} latents at "
        f"`{c.sae.get('site')}` of {model_of(c)}, each trained on "
        f"{measured[0].record['n_tokens']:,} activations. Arms: {len(c.arms)}; SAEs per arm and "
        f"seed: {_from_to(map(d.frontiers.n_saes, c.arms))}; seeds: "
        f"{', '.join(map(str, c.seeds))}. A seed sets the initial weights and the order of "
        f"activations, the same for all arms; all seeds use the same {d.frontiers.unit.many}. "
        f"Evaluated on {evaluated_on(c, measured)}. Training "
        f"took {sum(runs.values()) / 3600:.2f} h of wall-clock time, summed over all runs; "
        f"machines: {machines}. Report made with torch {torch.__version__}."
    )


def _method_of_differences(d: Differences) -> str:
    n = len(d.c.seeds)
    intervals = (
        f"two 95 % intervals, both paired: Student's t over the {n} seeds, and a bootstrap of "
        "seeds and held-out documents. A difference counts as shown (**bold**) if both exclude "
        f"0 and its p-value is below {LEVEL:g} when corrected for the number of differences in "
        "its table (Holm); *italics*: both exclude 0, and the correction does not let it count."
        if n > 1
        else "a 95 % interval, paired: a bootstrap of held-out documents."
    )
    area = (
        " `area` is the mean over log L0 of the log ratio, between the first and the last L0 "
        "of the table."
        if len(d.l0s) > 1
        else ""
    )
    has_logs = all(m.metrics[metric] > 0 for m in d.measured for metric in d.metrics)
    positive = "" if has_logs else " with a value above 0 (`Every SAE` lists all values)"
    return (
        f"Relative differences from {d.c.title(d.reference)}; negative is better. "
        "Metrics are interpolated in log-log between an arm's SAEs; a dash: the arm has no "
        f"SAEs around that L0{positive}. In brackets {intervals}{area}"
    )


def _tables_of_seeds(d: Differences, sections: Iterable[str]) -> Iterator[str]:
    """Tables with a row for each arm and value of its sweep, of SAEs of all seeds; the given
    sections stand among them."""
    by_value: dict[tuple[str, str], list[Measured]] = {}
    for arm in d.c.arms:
        for m in (m for m in d.measured if m.arm == arm):
            by_value.setdefault((arm, m.name), []).append(m)
    of_seeds = [
        ([d.c.title(arm), spread_cell([m.metrics["l0"] for m in same])], same)
        for (arm, _), same in by_value.items()
    ]
    yield "## Shrinkage, dead and dense latents"
    yield "![Shrinkage, dead latents, dense latents](figures/health.png)"
    names = {
        "relative_reconstruction_bias": ("gamma", 1),
        "dead_share": ("dead, %", 100),
        "above_1_percent_share": ("on > 1 %, %", 100),
        "above_10_percent_share": ("on > 10 %, %", 100),
    }
    rows = [["arm", "L0", *(label for label, _ in names.values())]]
    for head, same in of_seeds:
        values = ([m.metrics[key] * by for m in same] for key, (_, by) in names.items())
        rows.append([*head, *map(spread_cell, values)])
    legend = "Means over seeds; the range in brackets. gamma below 1 is shrinkage."
    yield f"{legend}\n\n{table(rows)}"
    rows = [["arm", "L0", *(f"{100 * share:g} %" for share in THRESHOLD_SHARES)]]
    for head, same in of_seeds:
        if all(m.thresholds for m in same):
            cells = map(spread_cell, zip(*(m.thresholds for m in same), strict=True))
            rows.append([*head, *cells])
    if len(rows) > 1:
        yield "## Learned thresholds"
        yield (
            "Quantiles over latents, in units of x/c; means over seeds, the range in brackets."
            f"\n\n{table(rows)}"
        )
    yield from sections
    if len(d.c.seeds) > 1:
        yield "## Do seeds agree on a dictionary?"
        names_of_columns = ["arm", "L0", "pairs of seeds", "mean of best cosines"]
        rows = [[*names_of_columns, f"share above {MATCHED:g}"]]
        for head, same in of_seeds:
            pairs = [p for m in same for s, p in m.agreement.items() if s in d.c.seeds]
            means = [f"{sum(values) / len(pairs):.3f}" for values in zip(*pairs, strict=True)]
            rows.append([*head, str(len(pairs) // 2), *(means or ["-", "-"])])
        yield (
            "For each decoder row of one seed's SAE: the largest cosine with a row of another "
            f"seed's SAE, in both directions.\n\n{table(rows)}"
        )


def _settings(d: Differences) -> str:
    c = d.c
    made = [
        f"{c.title(name)}: {arm['made_by']}" for name, arm in c.arms.items() if "made_by" in arm
    ]
    training = {k: v for k, v in as_plain(c)["training"].items() if k != "output_dir"}
    settings = {"sae": c.sae, "training": training, "arms": c.arms}
    text = f"```yaml\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}```"
    if not made:
        return text
    return (
        "Trained by other libraries' own code, on the same activations in the same order: "
        f"{', '.join(made)}. Of `training` only {d.frontiers.unit.many}, batch and learning rate "
        f"apply to them.\n\n{text}"
    )


def _from_to(counts: Iterable[int]) -> str:
    low, *_, high = sorted([*counts] * 2)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _verdicts(cells: Sequence[Estimate], l0s: Sequence[float]) -> str:
    """One clause for each verdict at these L0s, with those that share it; and one on the area
    between the curves, where it has a value."""
    by_kind: dict[str, list[tuple[float, Estimate]]] = {}
    for l0, e in zip(l0s, cells, strict=False):
        if not math.isnan(e.value):
            by_kind.setdefault(_kind(e), []).append((l0, e))
    clauses = []
    for kind, alike in by_kind.items():
        percents = sorted(abs(100 * math.expm1(e.value)) for _, e in alike)
        low, high = f"{percents[0]:.1f}", f"{percents[-1]:.1f}"
        by = f" by {low} %" if low == high else f" by {low} to {high} %"
        at = ", ".join(f"{l0:g}" for l0, _ in alike)
        clauses.append(f"{kind}{'' if kind == _NONE else by} at L0 {at}")
    text = "; ".join(clauses) or "no SAEs at these L0s"
    for area in cells[len(l0s) :]:
        if not math.isnan(area.value):
            by = "" if _kind(area) == _NONE else f" by {abs(100 * math.expm1(area.value)):.1f} %"
            text += f"; over all these L0s {_kind(area)}{by}"
    return text


def _kind(e: Estimate) -> str:
    return _NONE if not e.is_significant else "better" if e.value < 0 else "worse"


def difference_cell(e: Estimate) -> str:
    """A log ratio in per cent, as Markdown: marked, and with its intervals."""
    return e.cell(percent, " %")


def percent(log_ratio: float) -> str:
    """+4.2, or "over +1000"."""
    percent = 100 * math.expm1(log_ratio)
    return f"{percent:+.1f}" if percent < _FAR else f"over +{_FAR}"


def spread_cell(values: Sequence[float]) -> str:
    """The mean over seeds, and the range in brackets."""
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{mean:.3g} ({low:.3g}-{high:.3g})"


def page_of(text: str, folder: Path) -> str:
    """The report as one HTML file with its figures inside, whose paths are relative to folder."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(text)

    def inside(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="((?:[^":]*/)?figures/[^"]+)"', inside, body)
    title = text.splitlines()[0].removeprefix("# ")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}</body></html>\n"
    )


def model_of(comparison: Comparison) -> str:
    """What makes the activations: a model, with its dtype, or files."""
    lm = comparison.lm
    return "activation files" if comparison.kind == "files" else f"{lm.name} ({lm.dtype})"


def evaluated_on(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """How many activations the SAEs were measured on, as "300 held-out rows": of text the recipe's
    number; other inputs often have fewer, so they are counted."""
    n, unit = comparison.evaluation.n_tokens, unit_of(measured[0].recipe)
    if n is None or unit != TOKEN:
        n = int(measured[0].sums["fidelity.tokens"].sum())
    return f"{n:,} {KINDS_OF_DOCUMENTS[comparison.evaluation.side]} {unit.many}"


def about_data(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """The documents on each side, the activations that were kept, and whether all SAEs saw the
    same."""
    c, record, unit = comparison, measured[0].record["harvested"], unit_of(measured[0].recipe)
    if unit == TOKEN:
        text = c.text
        inputs = f"`{text.dataset}`, split by document before tokenisation"
        if is_hub(text.dataset):  # only its name: reading it is slow
            inputs += (
                f" (configuration {text.dataset_config or 'by default'}, split "
                f"{text.dataset_split}, revision {text.dataset_revision or 'main'}; by a hash of "
                f"their text, {100 * text.held_out_fraction:g} % held out, "
                f"{100 * text.validation_fraction:g} % for validation)"
            )
        else:
            rows = [["side", "documents", "digest of their hashes"]]
            names: dict[Split, str] = {"train": "train", "test": "held-out"}
            if text.validation_fraction:
                names["validation"] = "validation"
            sides: list[set[str]] = []
            for side, name in names.items():
                sides.append({document.id for document in documents(text, side)})
                digest = blake2b("".join(sorted(sides[-1])).encode(), digest_size=8).hexdigest()
                rows.append([name, f"{len(sides[-1]):,}", f"`{digest}`"])
            shared = sum(map(len, sides)) - len(set().union(*sides))
            inputs = f"{table(rows)}\n\n{inputs} (documents on both sides: {shared})"
        special = "special or masked" if text.mask_share else "special"
        inputs += (
            f"; rows of {text.context_size} tokens; BOS at the start of each {text.bos}. Positions "
            f"of the training text: {record['kept']:,} kept, {record['dropped_special']:,} "
            f"{special} tokens and {record['dropped_outliers']:,} norm outliers dropped"
        )
    else:
        given = measured[0].recipe[section_of(measured[0].recipe)]
        files = given["files"] or given.get("folder") or given.get("packaged")
        listed = ", ".join(f"`{name}`" for name in ([files] if isinstance(files, str) else files))
        held_out, validation = (given[f"{side}_fraction"] for side in ("held_out", "validation"))
        inputs = (
            f"{listed}, split by document (by a hash, {100 * held_out:g} % held out, "
            f"{100 * validation:g} % for validation). {unit.many.capitalize()} read in training, "
            f"repeats included: {record['kept']:,} kept, {record['dropped_special']:,} left out "
            f"and {record['dropped_outliers']:,} norm outliers dropped"
        )
    found, n = harvests(measured), n_harvests(measured)
    apart = "; ".join(
        f"{n_saes} SAEs: {' '.join((*(f'{x:.6g}' for x in limits), *digests))}"
        for (_, limits, digests), n_saes in found.most_common()
    )
    hashes = ", ".join(" ".join(digests) for *_, digests in found if digests)
    if n == 1:
        same = f" All saw the same activations, to the bit (hash {hashes})." if hashes else ""
    else:
        same = (
            f" They were read with {n} different results (norm limits above which outliers were "
            f"dropped, then the hash of all activations, where it was recorded: {apart}): those of "
            "different SAEs are equal up to rounding at best."
        )
    return (
        f"{inputs}; the evaluation follows the same rules. Shuffled in buckets of "
        f"{c.shuffle.bucket_tokens:,}.{same}"
    )
