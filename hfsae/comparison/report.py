"""The report of a comparison: Markdown, the same as one HTML file, and figures."""

import base64
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
import yaml

from ..activations import Split, TextArguments, documents, is_hub
from ..machine.files import write_whole
from ..recipe import as_plain
from . import causes, plots, results
from .arms import Comparison
from .frontier import METRICS, Estimate, Frontiers
from .results import Measured

_ARMS_IN_TITLE = 6
_FAR = 1000  # %
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;font-size:13px}
td,th{border:1px solid #ddd;padding:.25rem .6rem;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}
pre{background:#f6f6f6;padding:.7rem;overflow-x:auto}"""


def write_report(comparison: Comparison, measured: Sequence[Measured], command: str) -> Path:
    """Write report.md, report.html, figures/, and the numbers; the report's folder."""
    folder = comparison.report_folder
    folder.mkdir(parents=True, exist_ok=True)
    results.keep(folder, measured, command, as_plain(comparison))
    frontiers = Frontiers(measured, **_resampling(comparison))
    titles = {arm: comparison.title(arm) for arm in comparison.arms}
    figures = folder / "figures"
    drawn = plots.draw(figures, frontiers, measured, titles, comparison.reference_arm)
    parts = _Parts(comparison, measured, frontiers, drawn)
    text = "\n\n".join(parts.all(command)) + "\n"
    write_whole(folder / "report.md", text)
    write_whole(folder / "report.html", _html(text, folder))
    return folder


def _resampling(comparison: Comparison) -> dict[str, int]:
    args = comparison.evaluation
    return {"n_resamples": args.bootstrap_samples, "seed": args.seed}


class _Parts:
    """Paragraphs, tables and figures, one after the other."""

    def __init__(
        self,
        comparison: Comparison,
        measured: Sequence[Measured],
        frontiers: Frontiers,
        drawn: Container[str],
    ) -> None:
        self.c, self.measured, self.frontiers = comparison, measured, frontiers
        self.drawn = drawn
        self.reference = comparison.reference_arm
        self.others = [arm for arm in comparison.arms if arm != self.reference]
        reach = {arm: frontiers.reach([arm]) for arm in comparison.arms}
        self.l0s = [
            l0
            for l0 in comparison.at_l0
            if _within(l0, reach[self.reference])
            and any(_within(l0, reach[arm]) for arm in self.others or [self.reference])
        ]

    def all(self, command: str) -> Iterator[str]:
        arms = list(map(self.c.title, self.c.arms))
        told = ", ".join(arms) if len(arms) <= _ARMS_IN_TITLE else f"{len(arms)} arms"
        yield f"# {told}: fidelity at equal L0"
        yield self._what_was_done()
        yield "![FVU and delta LM loss against L0](figures/frontier.png)"
        if not self.l0s:
            yield f"No L0 of {self.c.at_l0} lies where {self.c.title(self.reference)} has SAEs."
        elif self.others:
            yield "## What it says"
            yield self._says()
            yield "## Differences"
            yield self._how_differences_are_taken()
            if "difference" in self.drawn:
                yield "![Differences from the reference](figures/difference.png)"
            yield from (self._differences(metric) for metric in METRICS)
        if self.l0s:
            yield "## Values"
            yield from (self._values(metric) for metric in METRICS)
        yield "## Shrinkage, dead and dense latents"
        yield "![Shrinkage, dead latents, dense latents](figures/health.png)"
        yield self._health()
        yield from self._thresholds()
        if self.c.causal.n_tokens:
            yield from self._causes()
        if len(self.c.seeds) > 1:
            yield "## Do seeds agree on a dictionary?"
            yield self._agreement()
        yield "## Arms"
        yield self._arms()
        yield "## Data"
        yield self._data()
        yield "## Every SAE"
        yield self._every_sae()
        yield "## Again"
        yield self._again(command)

    def _what_was_done(self) -> str:
        c, first = self.c, self.measured[0]
        hours = sum(m.record["seconds"]["train"] for m in self._one_of_each_run()) / 3600
        return (
            f"{len(self.measured)} SAEs of {self._widths()} latents at "
            f"`{c.sae.get('site')}` of {c.lm.name} ({c.lm.dtype}), each trained on "
            f"{first.record['n_tokens']:,} activations. Arms: {len(c.arms)}; SAEs of an arm and a "
            f"seed: {_from_to(map(self.frontiers.n_saes, c.arms))}; seeds: "
            f"{', '.join(map(str, c.seeds))}. A seed sets the initial weights and the order of "
            "activations, for all arms alike; the tokens are the same for all seeds. Evaluated on "
            f"{c.evaluation.n_tokens:,} held-out tokens. Training took {hours:.2f} h by the clock, "
            f"all runs added up; machines: {self._machines()}. This report was drawn with torch "
            f"{torch.__version__}."
        )

    def _widths(self) -> str:
        return _from_to(m.record["sae_as_trained"]["d_sae"] for m in self.measured)

    def _machines(self) -> str:
        counts = Counter(m.record["machine"] or "not recorded" for m in self.measured)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{name}, {n} SAEs" for name, n in counts.most_common())

    def _one_of_each_run(self) -> list[Measured]:
        return list({(m.arm, m.seed): m for m in self.measured}.values())

    def _says(self) -> str:
        if len(self.c.seeds) == 1:
            return (
                "One seed cannot tell what an arm does from what its seed does: no difference "
                "counts as shown. Below they are listed with intervals over documents."
            )
        lines = []
        for arm in self.others:
            for metric, label in METRICS.items():
                found = {
                    l0: self.frontiers.difference(arm, self.reference, metric, l0)
                    for l0 in self.l0s
                }
                lines.append(f"- **{self.c.title(arm)}, {label}**: {_verdicts(found)}.")
        ours = self.c.title(self.reference)
        return "\n".join([f"Against {ours}, at equal L0:", "", *lines])

    def _how_differences_are_taken(self) -> str:
        n = len(self.c.seeds)
        intervals = (
            f"two 95 % intervals, both paired: Student's t over the {n} seeds, and a bootstrap of "
            "seeds and held-out documents. A difference counts as shown (**bold**) where neither "
            "holds 0."
            if n > 1
            else "a 95 % interval, paired: a bootstrap of held-out documents."
        )
        area = (
            " `area` is the mean over log L0 of the log ratio, between the first and the last L0 "
            "of the table."
            if len(self.l0s) > 1
            else ""
        )
        has_logs = all(m.metrics[metric] > 0 for m in self.measured for metric in METRICS)
        nor = "" if has_logs else " above 0 (`Every SAE` has them as they are)"
        return (
            f"Relative differences from {self.c.title(self.reference)}; negative is better. "
            "Metrics are interpolated in log-log between an arm's SAEs; a dash is where an arm has "
            f"none{nor}. In brackets {intervals}{area}"
        )

    def _differences(self, metric: str) -> str:
        head = [f"L0 {l0:g}" for l0 in self.l0s] + ["area"] * (len(self.l0s) > 1)
        rows = [[METRICS[metric], *head]]
        for arm in self.others:
            found = [self.frontiers.difference(arm, self.reference, metric, l0) for l0 in self.l0s]
            if len(self.l0s) > 1:
                ends = self.l0s[0], self.l0s[-1]
                found.append(self.frontiers.area(arm, self.reference, metric, *ends))
            rows.append([self.c.title(arm), *map(_difference_cell, found)])
        return _table(rows)

    def _values(self, metric: str) -> str:
        rows = [[METRICS[metric], *(f"L0 {l0:g}" for l0 in self.l0s)]]
        for arm in self.c.arms:
            found = [self.frontiers.at(arm, metric, l0) for l0 in self.l0s]
            rows.append([self.c.title(arm), *map(_value_cell, found)])
        return _table(rows)

    def _health(self) -> str:
        names = {
            "relative_reconstruction_bias": ("gamma", 1),
            "dead_share": ("dead, %", 100),
            "above_1_percent_share": ("on > 1 %, %", 100),
            "above_10_percent_share": ("on > 10 %, %", 100),
        }
        rows = [["arm", "L0", *(label for label, _ in names.values())]]
        for arm in self.c.arms:
            mine = [m for m in self.measured if m.arm == arm]
            for name in dict.fromkeys(m.name for m in mine):
                same = [m.metrics for m in mine if m.name == name]
                cells = [_spread([x[key] * by for x in same]) for key, (_, by) in names.items()]
                rows.append([self.c.title(arm), _spread([x["l0"] for x in same]), *cells])
        said = "Means over seeds; the range in brackets. gamma below 1 is shrinkage."
        return f"{said}\n\n{_table(rows)}"

    def _thresholds(self) -> Iterator[str]:
        rows = [["arm", "L0", *(f"{100 * share:g} %" for share in results.THRESHOLD_SHARES)]]
        for arm in self.c.arms:
            mine = [m for m in self.measured if m.arm == arm]
            for name in dict.fromkeys(m.name for m in mine):
                same = [m for m in mine if m.name == name]
                if not all(m.thresholds for m in same):
                    continue
                found = map(_spread, zip(*(m.thresholds for m in same), strict=True))
                rows.append([self.c.title(arm), _spread([m.metrics["l0"] for m in same]), *found])
        if len(rows) > 1:
            yield "## Learned thresholds"
            yield (
                "Quantiles over latents, in units of x/c; means over seeds, the range in brackets."
                f"\n\n{_table(rows)}"
            )

    def _causes(self) -> Iterator[str]:
        chosen = causes.nearest(self.measured, self.c.causal.l0)
        arms, l0s = {}, {}
        for arm in self.c.arms:
            mine, title = [m for m in chosen if m.arm == arm], self.c.title(arm)
            found = [causes.read(m) for m in mine]
            arms[title] = causes.ArmCauses(found, **_resampling(self.c))
            l0s[title] = _spread([m.metrics["l0"] for m in mine])
        yield f"## Are latents causes? At an L0 of {self.c.causal.l0:g}"
        yield (
            f"At {self.c.causal.n_tokens} held-out tokens, the same for every SAE, latents are "
            "edited at the token alone, and the prediction there is looked at: m is the logit of "
            "the correct next token less the mean of all, in a float32 model. The latent tried has "
            "the largest effect by gradient; the matched latent fires at the same token and writes "
            "a vector of about the same norm; the random direction has that norm. In brackets what "
            "95 % of draws of seeds and tokens give; with as few seeds as here these hold all "
            "seeds, and are no intervals of confidence. Off target is the KL of the next token, "
            "the correct one left out."
        )
        yield "![Sufficiency and necessity](figures/causes.png)"
        plots.draw_causes(self.c.report_folder / "figures" / "causes.png", arms)
        for caption, rows in causes.tables(arms, l0s):
            yield f"{caption}\n\n{_table(rows)}"

    def _agreement(self) -> str:
        head = ["arm", "L0", "pairs of seeds", "mean of best cosines"]
        rows = [[*head, f"share above {results.MATCHED:g}"]]
        for arm in self.c.arms:
            mine = [m for m in self.measured if m.arm == arm]
            for name in dict.fromkeys(m.name for m in mine):
                same = [m for m in mine if m.name == name]
                l0 = _spread([m.metrics["l0"] for m in same])
                pairs = [p for m in same for s, p in m.agreement.items() if s in self.c.seeds]
                means = [f"{sum(values) / len(pairs):.3f}" for values in zip(*pairs, strict=True)]
                told = [str(len(pairs) // 2), *(means or ["-", "-"])]
                rows.append([self.c.title(arm), l0, *told])
        said = (
            "For each decoder row of a seed's SAE, the largest cosine with a row of another "
            "seed's, both ways."
        )
        return f"{said}\n\n{_table(rows)}"

    def _arms(self) -> str:
        settings = {
            "sae": self.c.sae,
            "training": {
                k: v for k, v in as_plain(self.c)["training"].items() if k != "output_dir"
            },
            "arms": self.c.arms,
        }
        return f"```yaml\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}```"

    def _data(self) -> str:
        limits = self.measured[0].record["harvested"]
        return (
            f"{_documents(self.c.text)}; rows of {self.c.text.context_size} "
            f"tokens; BOS at the start of each {self.c.text.bos}. Of the training text "
            f"{limits['kept']:,} positions were kept, {limits['dropped_special']:,} special ones "
            f"and {limits['dropped_outliers']:,} norm outliers dropped; the same rules hold in the "
            f"evaluation. Shuffled in buckets of {self.c.shuffle.bucket_tokens:,}."
            f"{self._harvests()}"
        )

    def _harvests(self) -> str:
        """How many harvests there were, by their norm limits, which come from the same rows."""
        found = [m.record["harvested"]["norm_limits"] for m in self.measured]
        common = sorted(set.intersection(*map(set, found)))  # arms may read more than one site
        counts = Counter(tuple(limits[site] for site in common) for limits in found)
        if len(counts) == 1:
            return ""
        limits = "; ".join(
            f"{n} SAEs: {' '.join(f'{limit:.6g}' for limit in limits)}"
            for limits, n in counts.most_common()
        )
        return (
            f" It was harvested {len(counts)} times, and rounded otherwise (norms from which "
            f"outliers were dropped: {limits}), so that activations are the same up to rounding "
            "only."
        )

    def _every_sae(self) -> str:
        names = ("l0", "fvu", "delta_loss", "relative_reconstruction_bias", "dead_share")
        rows = [["arm", "SAE", "seed", *names]]
        for m in self.measured:
            cells = [f"{m.metrics[name]:.4g}" for name in names]
            rows.append([m.arm, m.name, str(m.seed), *cells])
        return _table(rows)

    def _again(self, command: str) -> str:
        arm = self.others[0] if self.others else self.reference
        one = (
            f"{command} --only '[{arm}]' --seeds '[{self.c.seeds[0]}]' "
            "--training.output_dir runs/again --report runs/again/report"
        )
        return (
            f"The command:\n\n```\n{command}\n```\n\n`results.json` and `results.safetensors`, "
            "beside this report, keep what was measured of every SAE. What they hold the command "
            "does not train again: it does what is missing, and draws the report. With another "
            "`--training.output_dir` and `--report` everything is done anew, as here one arm with "
            "one seed, which gives the same numbers on a machine of the same kind, however many "
            f"threads it has:\n\n```\n{one}\n```"
        )


def _from_to(counts: Iterable[int]) -> str:
    low, *_, high = sorted([*counts] * 2)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _verdicts(found: dict[float, Estimate]) -> str:
    """One clause for each run of L0s with the same verdict."""
    by_kind: dict[str, list[float]] = {}
    for l0, e in found.items():
        if math.isnan(e.value):
            continue
        kind = "no difference shown" if e.holds_0 else "better" if e.value < 0 else "worse"
        by_kind.setdefault(kind, []).append(l0)
    clauses = []
    for kind, l0s in by_kind.items():
        by = "" if kind == "no difference shown" else f" by {_range(found, l0s)}"
        clauses.append(f"{kind}{by} at L0 {', '.join(f'{l0:g}' for l0 in l0s)}")
    return "; ".join(clauses) or "no SAEs at these L0s"


def _range(found: dict[float, Estimate], l0s: Sequence[float]) -> str:
    percents = sorted(abs(100 * math.expm1(found[l0].value)) for l0 in l0s)
    low, high = f"{percents[0]:.1f}", f"{percents[-1]:.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _difference_cell(e: Estimate) -> str:
    if math.isnan(e.value):
        return "-"
    told = [f"{_percent(low)} to {_percent(high)}" for low, high in e[1:] if not math.isnan(low)]
    value = f"{_percent(e.value)} %"
    return f"{value if e.holds_0 else f'**{value}**'} ({'; '.join(told)})"


def _percent(log_ratio: float) -> str:
    percent = 100 * math.expm1(log_ratio)
    return f"{percent:+.1f}" if percent < _FAR else f"over +{_FAR}"


def _value_cell(e: Estimate) -> str:
    if math.isnan(e.value):
        return "-"
    (low, high), half = e.seeds, (e.seeds[1] - e.seeds[0]) / 2
    return f"{e.value:.4f}" if math.isnan(low + high) else f"{e.value:.4f} ± {half:.4f}"


def _within(x: float, sides: tuple[float, float]) -> bool:
    return sides[0] <= x <= sides[1]


def _spread(values: Sequence[float]) -> str:
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{mean:.3g} ({low:.3g}-{high:.3g})"


def _documents(text: TextArguments) -> str:
    """The documents on each side; for a data set on the Hub only its name, since reading it is
    slow."""
    split = f"`{text.dataset}`, split by document before anything is tokenised"
    if is_hub(text.dataset):
        return (
            f"{split} (configuration {text.dataset_config or 'of its own'}, split "
            f"{text.dataset_split}, revision {text.dataset_revision or 'main'}; by a hash of their "
            f"text, {100 * text.held_out_fraction:g} % held out)"
        )
    rows = [["side", "documents", "digest of their hashes"]]
    sides: dict[Split, set[str]] = {"train": set(), "held_out": set()}
    for side, ids in sides.items():
        ids |= {document.id for document in documents(text, side)}
        digest = blake2b("".join(sorted(ids)).encode(), digest_size=8).hexdigest()
        rows.append([side.replace("_", "-"), f"{len(ids):,}", f"`{digest}`"])
    shared = len(sides["train"] & sides["held_out"])
    return f"{_table(rows)}\n\n{split} (documents on both sides: {shared})"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _html(text: str, folder: Path) -> str:
    """The Markdown as one file, its figures inside."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(text)

    def inside(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="(figures/[^"]+)"', inside, body)
    title = text.splitlines()[0].removeprefix("# ")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}</body></html>\n"
    )
