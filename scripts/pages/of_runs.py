"""The tables and sentences that rest on trained SAEs whose records are kept: cards, comparisons."""

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from anew import Told, read_json, table

from hfsae import cli

README, RECIPES = "README.md", "scripts/recipes"
QUICKSTART = f"{RECIPES}/quickstart.md"
ROOT = Path(__file__).parents[2]
CARDS, COMPARISONS = ROOT / "model_cards", ROOT / "scripts" / "comparisons"
IN_SHORT = ("l0", "fvu", "delta_loss")
Json = dict[str, Any]


def told() -> Iterator[Told]:
    quickstart, budget = CARDS / "quickstart", Controlled()
    for page, section, texts in (
        (QUICKSTART, "The quickstart", (measured(quickstart), *trained(quickstart))),
        (QUICKSTART, "Gemma 3 270M", gemma(CARDS / "gemma3_270m")),
        (README, "Two commands", (measured(quickstart, IN_SHORT),)),
        (f"{RECIPES}/variants.md", "An L0 that obeys", (budget.table(),)),
        (f"{RECIPES}/README.md", "5. Set the L0", (budget.in_short(),)),
    ):
        yield from (Told(page, section, text) for text in texts)


def metrics_of(folder: Path) -> dict[str, Json]:
    return read_json(folder / "evaluation.json")["metrics"]


ORDER = ("l0", "fvu", "cosine", "relative_reconstruction_bias", "dead_share")
ORDER += ("above_1_percent_share", "above_10_percent_share", "ce_clean", "ce_spliced", "ce_zero")
ORDER += ("ce_mean", "delta_loss", "loss_recovered_zero", "loss_recovered_mean", "kl")
"""As `EvaluationResult.table` shows them; a card's record has them by name."""


def measured(folder: Path, names: tuple[str, ...] = ORDER) -> str:
    """The lines that `hfsae evaluate` prints, or some of them."""
    metrics = metrics_of(folder)
    rows = [("metric", "value", "95 % interval", "unit")]
    rows += [_line(name, metrics[name]) for name in ORDER]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows)
    head, *lines = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([head, *(line for line in lines if line.split()[0] in names)])


def _line(name: str, metric: Mapping[str, Any]) -> tuple[str, ...]:
    value, low, high = (f"{metric[key]:.4g}" for key in ("value", "low", "high"))
    unit = "" if metric["unit"] == "1" else metric["unit"]
    return name, value, f"{low} to {high}", unit


def trained(folder: Path) -> Iterator[str]:
    # A card's record has no densities of latents, which `show` wants after this line.
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()):
        cli.main(["show", str(folder)])
    (line,) = (line for line in printed.getvalue().split("\n") if ": trained on " in line)
    yield line.replace(str(folder), "runs/quickstart")
    evaluation = read_json(folder / "evaluation.json")
    yield f"{evaluation['n_tokens']:,} held-out tokens of {evaluation['n_documents']} documents:"
    seconds = read_json(folder / "training.json")["seconds"]
    yield (
        f"activations {seconds['harvest']:.0f} s, the SAE's start and steps {seconds['sae']:.0f} s"
    )


def gemma(folder: Path) -> Iterator[str]:
    metrics = {name: metric["value"] for name, metric in metrics_of(folder).items()}
    yield (
        f"`hfsae train gemma3_270m`: FVU {metrics['fvu']:.3f}, L0 {metrics['l0']:.1f}, delta loss "
        f"{metrics['delta_loss']:.3f}, {100 * metrics['dead_share']:.1f} % silent"
    )
    memory = read_json(folder / "training.json")["peak_memory_bytes"] / 1e9
    yield f"beside other work, at {memory:.1f} GB"


class Controlled:
    """JumpReLU's SAEs of the comparison at a small budget, by their target L0."""

    def __init__(self) -> None:
        self.by_target: dict[int, list[Json]] = {}
        for sae in read_json(COMPARISONS / "small_budget" / "results.json")["saes"]:
            if "target_l0" in sae["fields"]:
                target = sae["fields"]["target_l0"]
                self.by_target.setdefault(target, []).append(sae["metrics"])

    def table(self) -> str:
        head = ["target", "L0 of three seeds", "FVU", "delta loss, nats/token", "dead"]
        rows = [
            [
                str(target),
                ", ".join(f"{sae['l0']:.1f}" for sae in saes),
                _range([sae["fvu"] for sae in saes], 3),
                _range([sae["delta_loss"] for sae in saes], 3),
                f"{_range([100 * sae['dead_share'] for sae in saes], 0)} %",
            ]
            for target, saes in self.by_target.items()
        ]
        lines = table([head, *rows]).split("\n")
        return "\n".join([lines[0], "| ---: | --- | ---: | ---: | ---: |", *lines[2:]])

    def in_short(self) -> str:
        l0s = [sae["l0"] for sae in self.by_target[50]]
        return f"three runs with a target of 50 ended at {min(l0s):.1f} to {max(l0s):.1f}"


def _range(values: list[float], digits: int) -> str:
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
