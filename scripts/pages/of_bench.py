"""The tables and sentences that rest on the results of scripts/bench: on its page, in README.md."""

import re
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from anew import Claim, Told, read_json, table

from hfsae.comparison import t_interval
from hfsae.training import SPARSE_ON_GPU

PAGE, README = "scripts/bench/README.md", "README.md"
RESULTS = Path(__file__).parents[1] / "bench" / "results"
TRIAL_RESULTS = RESULTS.parents[1] / "trials" / "results"
STEP, QUALITY = "A training step", "Quality at equal tokens (`quality.py`)"
GPUS, ON_GPU = "scripts/recipes/gpus.md", "When sparse steps pay on a GPU"
CIRCUITS, GRAPHS = "scripts/recipes/circuits.md", "What a graph says"
EFFECTS, SHIFT = "Effects on many texts", "Removing what a probe should not read"
TRIALS, REAL_SIZE = "scripts/trials/README.md", "Gemma at its real size"
SITES = "At ten sites of two models (`sites.py`)"
END_TO_END = "From text to a trained SAE (`end_to_end.py`)"
Json = dict[str, Any]


def told() -> Iterator[Told]:
    steps, quality, gemma = Steps(), Quality(), Quality("gemma3_270m")
    for page, section, texts in (
        (PAGE, STEP, of_steps(steps)),
        (PAGE, END_TO_END, from_text()),
        (PAGE, "By L0 and width, and how exact", by_size()),
        (PAGE, "Inference", (of_inference(),)),
        (README, "Why another one", in_short(steps, quality, gemma)),
        (README, "Speed", (speed(steps),)),
        (PAGE, QUALITY, of_quality(quality, gemma)),
        (PAGE, SITES, (sites(),)),
        (GPUS, ON_GPU, of_kernels()),
        (TRIALS, REAL_SIZE, of_real_size()),
        (CIRCUITS, GRAPHS, of_graphs()),
        (CIRCUITS, EFFECTS, of_agreement()),
        (CIRCUITS, SHIFT, (of_shift(),)),
    ):
        yield from (Told(page, section, text) for text in texts)


def claims() -> Iterator[Claim]:
    leads = [quality.leads() for quality in (Quality(), Quality("gemma3_270m"))]
    falls = all(a > b for own in leads for a, b in pairwise(own))
    yield Claim(PAGE, QUALITY, "the more tokens, the smaller the lead", falls)
    (run,), (below, above) = runs_of("compiled_kernels"), SPARSE_ON_GPU
    memory, cache = map(min, zip(*run["even"], strict=True))
    yield Claim(GPUS, ON_GPU, "first is below each density with rows from memory", below < memory)
    yield Claim(GPUS, ON_GPU, "the second below each with rows from a cache", above < cache)
    kernels = [kernel for both in run["kernels"].values() for kernel in both.values()]
    steps = [s for run in runs_of("real_size", TRIAL_RESULTS) for s in run["steps"]]
    plans = [(s["said"] > s["peak"]) for s in steps if s["step"] == "three"]
    yield Claim(TRIALS, REAL_SIZE, "The plan of three SAEs is above what they took", all(plans))
    yield Claim(GPUS, ON_GPU, "no value is spilled", not any(k["spilled"] for k in kernels))


def runs_of(name: str, folder: Path = RESULTS) -> list[Json]:
    return read_json(folder / f"{name}.json")["runs"]


class Steps:
    """Rows of step.json by the side: of one size."""

    def __init__(self, d_in: int = 576, *, tuned: bool = False, inference: bool = False) -> None:
        what = {"d_in": d_in, "tuned": tuned, "inference": inference}
        runs = [r for r in runs_of("step") if all(r[k] == v for k, v in what.items())]
        (self.run,) = runs
        self.rows = {row["side"]: row for row in self.run["rows"]}

    def ms(self, side: str) -> str:
        return f"{self.rows[side]['median ms']:,.0f} ms" if side in self.rows else ""

    def peak(self, side: str) -> str:
        return f"{self.rows[side]['peak MiB']:,.0f}" if side in self.rows else ""

    def ratio(self, side: str, to: str) -> str:
        """How many times as long as a side of hfsae, the median over turns."""
        value = self.rows[side]["x"][to]
        return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


JUMPRELU, TOPK = "hfsae.jumprelu", "hfsae.topk"
# side: its name on the page, and the side of hfsae that it is compared with
SIDES = {
    JUMPRELU: ("hfsae JumpReLU", ""),
    "saelens.jumprelu": ("SAELens 6.54 JumpReLU", JUMPRELU),
    "saelens.jumprelu_autocast": ("SAELens JumpReLU, bf16 autocast", JUMPRELU),
    "dictionary_learning.jumprelu": ("dictionary_learning JumpReLU", JUMPRELU),
    TOPK: ("hfsae TopK", ""),
    "saelens.topk": ("SAELens TopK", TOPK),
    "sparsify.topk": ("sparsify TopK", TOPK),
    "hfsae.jumprelu_dense": ("hfsae JumpReLU, dense steps", ""),
}
PRODUCTS = {"bf16": "hfsae.product_bf16", "float32": "hfsae.product_float32"}


def of_steps(small: Steps) -> Iterator[str]:
    large, tuned = Steps(2304), Steps(tuned=True)
    head, peak = ["step"], "peak memory, MiB"
    for size in (small, large):
        d_in, d_sae = size.run["d_in"], size.run["d_sae"]
        head += [f"d_in {d_in}, {d_sae // 1024}k latents", peak]
    rows = []
    for side, (title, to) in SIDES.items():
        rows.append([title])
        for size in (small, large):
            times = f", {size.ratio(side, to)} x" if to and side in size.rows else ""
            rows[-1] += [size.ms(side) + times, size.peak(side)]
    for dtype, side in PRODUCTS.items():
        title = f"the encoder's product alone, {dtype}"
        rows.append([title, small.ms(side), "", large.ms(side), ""])
    yield table([head, *rows])
    ratios = [tuned.ratio(side, SIDES[side][1]) for side in TUNED]
    yield f"the first column's ratios are {ratios[0]}, {ratios[1]} and {ratios[2]} for SAELens's"


TUNED = ("saelens.jumprelu", "saelens.topk", "sparsify.topk")


def steps_in_short(steps: Steps) -> str:
    ours, theirs = steps.ms(JUMPRELU), steps.ms("saelens.jumprelu")
    return f"a JumpReLU training step takes {ours} where SAELens takes {theirs} "


def speed(steps: Steps) -> str:
    head = ["SAELens 6.54, sparsify 1.3.3, dictionary_learning 0.1.0", "hfsae", "the other library"]
    names = {
        "saelens.jumprelu": "JumpReLU, SAELens",
        "dictionary_learning.jumprelu": "JumpReLU, dictionary_learning",
        "saelens.topk": "TopK, SAELens",
        "sparsify.topk": "TopK, sparsify",
    }
    rows = [[name, steps.ms(SIDES[side][1]), steps.ms(side)] for side, name in names.items()]
    return table([head, *rows])


def by_size() -> Iterator[str]:
    l0s, widths = runs_of("step_by_l0"), runs_of("step_by_d_sae")
    l0s.sort(key=lambda run: run["l0"])
    widths.sort(key=lambda run: run["d_sae"])
    dense, product = "hfsae.jumprelu_dense", "hfsae.product_bf16"
    yield (
        f"By L0 ({listed([run['l0'] for run in l0s], last=', ')}; d_in 576, 16k latents) a sparse "
        f"JumpReLU step is {listed(_ratios(l0s, dense, JUMPRELU))} times as fast as a dense one, "
        f"and takes {listed(_ratios(l0s, JUMPRELU, product))} times as long as the bfloat16 "
        f"product alone; by width ({listed([_k(run) for run in widths], last=', ')}; L0 50) "
        f"{listed(_ratios(widths, dense, JUMPRELU))} times."
    )


def from_text() -> Iterator[str]:
    first, second = ({r["side"]: r for r in _sides(n)} for n in (16, 8))

    def rate(*sides: str) -> str:
        """Tokens a second, to three or four digits."""
        return " / ".join(_rounded(first[side]["tokens/s"]) for side in sides)

    kinds = {"hfsae": ("hfsae", ""), "SAELens": ("saelens", "")}
    kinds["SAELens, bf16 autocast in model and SAE"] = ("saelens", "_autocast")
    rows = [
        [title, *(rate(f"{lib}.{side}{how}") for side in ("train", "train_six", "harvest"))]
        for title, (lib, how) in kinds.items()
    ]
    forward = rate("hfsae.plain_forward_bf16", "hfsae.plain_forward_float32")
    rows.append(["the model's own forward, all layers, bf16 / float32", "", "", forward])
    rows.append(["hfsae, from `--harvest.cache FOLDER`", "", "", rate("hfsae.cache")])
    head = ["from text, tokens/s", "one SAE", "six SAEs at once", "activations alone"]
    yield table([head, *rows])

    def times(side: str, to: str = "hfsae.train", digits: int = 2) -> str:
        return f"{second[side]['x'][to]:.{digits}f}"

    own = {"with `harvest.compile`": "_compiled", "with `shuffle.prefetch`": "_ahead"}
    rows = [[name, *(times(f"hfsae.{s}{how}") for s in _TRAIN)] for name, how in own.items()]
    theirs, of_compiled = times("saelens.train"), times("saelens.train", "hfsae.train_compiled", 1)
    last = ["SAELens", f"{theirs} ({of_compiled} x ours, compiled)", ""]
    rows = [["hfsae", "1", times("hfsae.train_six")], *rows, last]
    yield table([["times as long", *head[1:3]], *rows])


_TRAIN = ("train", "train_six")


def _sides(n_rows: int) -> Iterator[Json]:
    for run in runs_of("end_to_end"):
        if run["rows"] == n_rows:
            yield from run["measured"]


def _rounded(rate: float) -> str:
    return f"{float(f'{rate:.3g}') if rate >= 1e4 else rate:,.0f}"


def listed(parts: Sequence[Any], last: str = " and ") -> str:
    *others, end = map(str, parts)
    return last.join([", ".join(others), end])


def _k(run: Json) -> str:
    return f"{run['d_sae'] // 1024}k"


def _ratios(runs: Sequence[Json], side: str, to: str) -> list[str]:
    rows = ({row["side"]: row for row in run["rows"]} for run in runs)
    return [f"{row[side]['x'][to]:.1f}" for row in rows]


def of_inference() -> str:
    steps, ours = Steps(inference=True), "hfsae.inference"
    names = ("saelens", "dictionary_learning", "sparsify")
    saelens, other, sparsify = (steps.ms(f"{name}.inference") for name in names)
    times = [steps.ratio(f"{name}.inference", ours) for name in ("saelens", "sparsify")]
    return (
        f"take `sae(x, workspace=hfsae.ops.Workspace())` {steps.ms(ours)}, SAELens {saelens} "
        f"(**{times[0]} x**), dictionary_learning {other}, sparsify's TopK {sparsify} "
        f"({times[1]} x), and the product alone {steps.ms(PRODUCTS['bf16'])} in bfloat16."
    )


class Side(NamedTuple):
    """One library's variant at one budget."""

    library: str
    variant: str
    centred: bool
    rate: float
    fvu: float
    half: float | None
    """of Student's 95 % interval over seeds; None: one seed"""
    l0: float
    dead: float
    loss: float | None
    """that it adds to the language model's, in nats"""

    @property
    def low(self) -> float:
        return self.fvu - (self.half or 0)


class Quality:
    """The sides of quality.json, of a recipe's model; of a variant with and without centred input
    the better."""

    def __init__(self, recipe: str = "quickstart", folder: Path = RESULTS) -> None:
        self.sides: dict[int, list[Side]] = {}
        """by tokens, the best first"""
        for run in runs_of("quality", folder):
            if run["recipe"] == recipe and run["passes"] == 1 and not run.get("has_start"):
                self.sides.setdefault(run["tokens"], []).append(_side(run))
        for budget, sides in self.sides.items():
            best: dict[tuple[str, str], Side] = {}
            for side in sorted(sides, key=lambda side: -side.fvu):
                best[side.library, side.variant] = side
            self.sides[budget] = sorted(best.values(), key=lambda side: side.fvu)

    @property
    def budgets(self) -> list[int]:
        return sorted(self.sides)

    def fvu(self, library: str, variant: str, tokens: int) -> float:
        sides = self.sides[tokens]
        return next(s.fvu for s in sides if (s.library, s.variant) == (library, variant))

    def others(self, tokens: int) -> list[Side]:
        return [side for side in self.sides[tokens] if side.library != "hfsae"]

    def libraries(self, tokens: int) -> list[str]:
        """The other libraries, the best first."""
        return [*dict.fromkeys(side.library for side in self.others(tokens))]

    def lead(self, tokens: int) -> str:
        """By how many per cent JumpReLU's FVU is below that of the best of the others."""
        return _below(self.fvu("hfsae", "JumpReLU", tokens), self.others(tokens)[0].fvu)

    def leads(self) -> list[float]:
        return [float(self.lead(tokens)) for tokens in self.budgets]

    def share_of_tokens(self, tokens: int) -> float:
        """The share of so many tokens at which hfsae's JumpReLU has the FVU of the best of the
        others there: budgets are joined by lines in logarithms."""
        ours = {n: self.fvu("hfsae", "JumpReLU", n) for n in self.budgets}
        falling = sorted(ours, key=lambda n: ours[n])
        wanted = np.log(self.others(tokens)[0].fvu)
        at = np.interp(wanted, np.log([ours[n] for n in falling]), np.log(falling))
        return float(np.exp(at) / tokens)


def _below(ours: float, theirs: float) -> str:
    return f"{100 * (1 - ours / theirs):.0f}"


def _side(run: Json) -> Side:
    test = run["test"]
    if "fvu" in test:
        fvu = np.array(test["fvu"])
        mean = float(fvu.mean())
        half = float(t_interval(fvu)[1] - mean) if len(fvu) > 1 else None
    else:  # transcribed from a table
        mean, half = test["fvu_mean"], test["fvu_half"]
    own = {key: run[key] for key in ("library", "variant", "centred", "rate")}
    own |= {key: statistics.mean(test[key]) for key in ("l0", "dead")}
    own |= {"loss": statistics.mean(test["delta_loss"]) if "delta_loss" in test else None}
    return Side(**own, fvu=mean, half=half)


LIBRARIES = {"saelens": "SAELens"}
NUMBERS = {1: "one", 2: "two", 3: "three"}
COLUMNS = ["library, variant", "rate", "FVU on test", "delta loss", "L0", "silent"]


def of_quality(quality: Quality, gemma: Quality) -> Iterator[str]:
    yield quality_table(quality, "SmolLM2, tokens")
    yield quality_table(gemma, "Gemma, tokens")
    both = [
        f"{quality.lead(tokens)} and {gemma.lead(tokens)} % at {tokens:,}"
        for tokens in quality.budgets
    ]
    yield (
        "hfsae's JumpReLU is below the best of the others, on SmolLM2 and on Gemma, by "
        f"{', '.join(both)}"
    )
    (_, middle, *_) = quality.budgets
    shares = (f"{own.share_of_tokens(middle):.2f}" for own in (quality, gemma))
    yield (
        f"What the best of the others has after {middle:,} tokens takes hfsae "
        f"{' and '.join(shares)} of them"
    )
    yield from from_our_start(quality)


def from_our_start(quality: Quality) -> Iterator[str]:
    """What the others have with hfsae's start and moments, and JumpReLU's lead over the best."""
    sides = started(quality)
    if not sides:
        return
    each = [
        f"{LIBRARIES.get(side.library, side.library)}'s {side.variant} has an FVU of {side.fvu:.4f}"
        for side in sides
    ]
    yield f"{', '.join(each)}, and JumpReLU is {lead_with_start(quality)} % below the best of these"


def started(quality: Quality) -> list[Side]:
    """The others' with hfsae's start and moments, at the smallest budget, the best first."""
    where = {"recipe": "quickstart", "passes": 1, "tokens": quality.budgets[0], "has_start": True}
    runs = [r for r in runs_of("quality") if all(r.get(k) == v for k, v in where.items())]
    return sorted(map(_side, runs), key=lambda side: side.fvu)


def lead_with_start(quality: Quality) -> str:
    return _below(quality.fvu("hfsae", "JumpReLU", quality.budgets[0]), started(quality)[0].fvu)


def in_short(steps: Steps, quality: Quality, gemma: Quality) -> Iterator[str]:
    yield steps_in_short(steps)
    yield quality_in_short(quality, gemma)
    yield f"{lead_with_start(quality)} % over libraries that take hfsae's start"


def quality_in_short(quality: Quality, gemma: Quality) -> str:
    """Of each budget the smaller lead of both models first, and on how little it rests."""
    ranges = []
    for tokens in quality.budgets:
        least, most = sorted((quality.lead(tokens), gemma.lead(tokens)), key=float)
        fewest = min(quality.libraries(tokens), gemma.libraries(tokens), key=len)
        of = NUMBERS[len(fewest)] if len(fewest) > 1 else f"{LIBRARIES.get(*fewest * 2)} alone"
        alone = any(own.sides[tokens][0].half is None for own in (quality, gemma))
        note = f"of {of}{', one seed' if alone else ''}"
        ranges.append(f"{least} to {most} % at {tokens:,} ({note})")
    return f"is below the best other library's on two models: {', '.join(ranges)}."


def quality_table(quality: Quality, head: str) -> str:
    """Sides by FVU; bold are those of hfsae whose interval meets that of the best."""
    rows = []
    for tokens in quality.budgets:
        sides = quality.sides[tokens]
        best = sides[0].fvu + (sides[0].half or 0)
        for side in sides:
            cells = _cells(side, is_best=side.low <= best)
            rows.append([f"{tokens:,}" if side is sides[0] else "", *cells])
    lines = table([[head, *COLUMNS], *rows]).split("\n")
    rule = ["---:", "---", *["---:"] * (len(COLUMNS) - 1)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[2:]])


def of_kernels() -> Iterator[str]:
    (run,) = runs_of("compiled_kernels")
    yield from map(table, run["tables"].values())
    kernels, steps = [*run["kernels"].values()], run["steps"]
    (dots,), (sums,) = ({both[name]["bytes"] for both in kernels} for name in ("dots", "sums"))
    yield f"`dots` loads {dots:.0f} bytes and `sums` {sums:.0f}, and multiplies and adds once."
    dense, sparse = steps["dense"], steps["sparse"]
    yield (
        f"a dense step has {dense['products']} products of all pairs and a sparse one "
        f"{sparse['products']}; they read and write {dense['pair']} and {sparse['pair']} bytes a "
        f"pair of a token and a latent, {dense['weight']} and {sparse['weight']} a weight, and an "
        f"entry of a sparse step reads {sparse['rows']} rows."
    )
    below, above = SPARSE_ON_GPU
    yield f"So on a GPU the limits are {below:g} and {above:g}".replace("0.", ".")


def of_real_size() -> Iterator[str]:
    """Seconds and memory of each step on models of real size; the commands and machines."""
    runs = runs_of("real_size", TRIAL_RESULTS)
    rows = [["model", "step", "seconds", "peak, GB", "by plan, GB", "what was seen"]]
    for step in (step for run in runs for step in run["steps"]):
        said = f"{step['said'] / 1e9:.1f}" if "said" in step else ""
        sizes = [f"{step['seconds']:,.0f}", f"{step['peak'] / 1e9:.1f}", said]
        seen = step.get("refused", step.get("note", ""))
        rows.append([step["lm"], step["step"], *sizes, seen])
    yield table(rows)
    rows = [["steps", "command", "machine"]]
    for run in runs:
        names = ", ".join(f"{step['lm']} {step['step']}" for step in run["steps"])
        rows.append([names, f"`{run['command']}`", run["machine"]])
    yield table(rows)


def of_graphs() -> Iterator[str]:
    """How exact graphs are, and Spearman's rho of what they say with removal in the real model."""
    measures = ("weight", "graph", "gradient, MLPs held", "gradient")
    rows = [["transcoders", "replacement", "weight", "through the graph", *measures[2:]]]
    for run in runs_of("graphs"):
        blocks = re.findall(r"\d+", " ".join(run["sites"]))
        first = f"{run['model'].partition('/')[2]}, "
        first += "cross-layer, " if run["kinds"][0].endswith("_clt") else ""
        consecutive = [*map(str, range(int(blocks[0]), int(blocks[-1]) + 1))]
        is_range = len(blocks) > 2 and blocks == consecutive
        first += f"blocks {f'{blocks[0]} to {blocks[-1]}' if is_range else ', '.join(blocks)}"
        rows.append([first])
        for name in ("replacement", *measures):
            values = sorted(row[name] for row in run["rows"])
            digits = 3 if name == "replacement" else 2
            median = statistics.median(values)
            rows[-1].append(
                f"{median:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"
            )
    yield table(rows)
    exact = max(row["check"] for run in runs_of("graphs") for row in run["rows"])
    yield f"exact to {exact:.1e} or better"


def of_agreement() -> Iterator[str]:
    """Faithfulness and completeness of circuits by their size and by what is done with errors."""
    (run,) = runs_of("agreement_circuit")
    sizes, titles = (
        (2, 5, 20, 50, 200, 500),
        {"keep": "kept", "nodes": "nodes", "remove": "removed"},
    )
    rows = [["SAEs' errors", *(f"{n} nodes" for n in sizes)]]
    for errors in dict.fromkeys(row["errors"] for row in run["rows"]):
        rows.append([titles.get(errors, "kept, random latents")])
        by_size = {row["n_nodes"]: row for row in run["rows"] if row["errors"] == errors}
        for row in map(by_size.get, sizes):
            rows[-1].append(f"{row['faithfulness']:.2f} ({row['completeness']:.2f})")
    yield table(rows)
    yield f"{run['seconds']:.0f} s"


def of_shift() -> str:
    """Accuracies of a probe on balanced texts, before and after latents are removed."""
    (run,) = runs_of("shift")
    names = ("biased", "removed", "random", "oracle")
    rows = [["seed", "latents removed", "as trained", "without them", "as many random", "oracle"]]
    for row in run["rows"]:
        rows.append([str(row["seed"]), str(row["latents"]), *(f"{row[n]:.2f}" for n in names)])
    return table(rows)


def sites() -> str:
    """FVU at each site with Student's 95 % interval, and the ranges of L0 and silent latents."""
    rows = []
    for run in runs_of("sites"):
        for row in run["rows"]:
            fvu, l0, dead = (np.array(row[key]) for key in ("fvu", "own_l0", "dead"))
            spread = f" ± {t_interval(fvu)[1] - fvu.mean():.4f}" if len(fvu) > 1 else ""
            silent = f"{100 * dead.min():.1f} to {100 * dead.max():.1f} %"
            where = [row["model"].rpartition("/")[2], row["site"], row["variant"]]
            ends = f"{l0.min():.1f} to {l0.max():.1f}"
            rows.append([*where, f"{fvu.mean():.4f}{spread}", ends, silent])
    return table([["model", "site", "variant", "FVU on test", "own L0", "silent"], *rows])


def _cells(side: Side, is_best: bool) -> list[str]:
    name = f"{LIBRARIES.get(side.library, side.library)}, {side.variant}"
    name += (", centred" if side.centred else "") + (" (one seed)" if side.half is None else "")
    fvu = f"{side.fvu:.4f}" + ("" if side.half is None else f" ± {side.half:.4f}")
    fvu = f"**{fvu}**" if is_best and side.library == "hfsae" else fvu
    loss = "" if side.loss is None else f"{side.loss:.3f}"
    return [name, f"{side.rate:g}", fvu, loss, f"{side.l0:.1f}", f"{side.dead:.1%}"]
