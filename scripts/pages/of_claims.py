"""The table of claims of papers that cite JumpReLU's, on the page of scripts/citing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anew import Claim, Told
from of_bench import runs_of

PAGE, SECTION = "scripts/citing/README.md", "Claims tested by a script"
RESULTS = Path(__file__).parents[1] / "citing" / "results"
SHOWN, NOT_HERE = "*shown here*", "*not shown at this size*"
CONTRADICTED, UNTESTED = "*contradicted here*", "*cannot be tested here*"
NAMES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "SmolLM2-135M", "google/gemma-3-270m": "Gemma"}
Json = dict[str, Any]


def told() -> Iterator[Told]:
    head = ["paper", "claim", "run", "figure [95 % interval] beside control", "verdict"]
    rows = (violations, dimensionality, signal, confounded, tools, echo, phase)
    lines = [head, ["---"] * len(head), *(row() for row in rows)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    yield Told(PAGE, SECTION, text)


def claims() -> Iterator[Claim]:
    """Verdicts that stand in the table, and whether the results show them."""
    shared = [
        run["latents"][key]
        for key in ("of_all_rules", "of_all_rules_and_facts")
        for _, run in of_models("constraint_violations")
    ]
    half = len(shared) // 2
    words = "*shown here*: no latent of all five rules is silent on false facts"
    yield Claim(PAGE, SECTION, words, shared[:half] == shared[half:])
    falls = []
    for _, run in of_models("causal_dimensionality"):
        first, *_, last = run["rows"]
        falls.append(last["ratio"][2] < first["ratio"][1] and last["unit"][2] < first["unit"][1])
    yield Claim(PAGE, SECTION, "*contradicted here*: it falls with depth", all(falls))


def of_models(name: str) -> Iterator[tuple[str, Json]]:
    """The runs of a script, SmolLM2's first, by the short name of their model."""
    runs = {NAMES[run["model"]]: run for run in runs_of(name, RESULTS)}
    yield from sorted(runs.items(), reverse=True)


def with_interval(value: Sequence[float], digits: int = 2) -> str:
    """Such as ".66 [.57, .75]"."""
    own, low, high = (f"{x:.{digits}f}".replace("0.", ".", 1) for x in value)
    return f"{own} [{low}, {high}]"


def paper(number: str, script: str) -> str:
    return f"[{number}](https://arxiv.org/abs/{number}) `{script}.py`"


def violations() -> list[str]:
    figures = []
    for name, run in of_models("constraint_violations"):
        own, dimensions = run["latents"], run["dimensions"]
        figures.append(
            f"{name}: {own['of_all_rules']} latents pass in all five rules (dimensions "
            f"{dimensions['of_all_rules']}), {own['of_all_rules_and_facts']} of them on facts; "
            f"a rule left out is told by latents {with_interval(own['rule_left_out'])}, by "
            f"dimensions {with_interval(dimensions['rule_left_out'])}, and so are facts: "
            f"{with_interval(own['facts'])}, {with_interval(dimensions['facts'])}"
        )
    return [
        paper("2605.12055", "constraint_violations"),
        "no latent is shared by violations of all rules of grammar",
        "200 pairs of 5 rules, facts as control, shuffled labels: under one latent passes a rule",
        "; ".join(figures),
        f"{SHOWN}: no latent of all five rules is silent on false facts",
    ]


def dimensionality() -> list[str]:
    figures = []
    for name, run in of_models("causal_dimensionality"):
        first, last = run["rows"][0], run["rows"][-1]
        random = [row["random"][0] for row in run["rows"]]
        figures.append(
            f"{name}, width {run['width']}: {with_interval(first['ratio'], 0)} after the first "
            f"block, {with_interval(last['ratio'], 0)} near the last; of unit norm "
            f"{with_interval(first['unit'], 0)}, {with_interval(last['unit'], 0)}; random "
            f"directions {min(random):.0f} to {max(random):.0f}"
        )
    return [
        paper("2605.08740", "causal_dimensionality"),
        "the causal dimension of a layer is the same at all depths",
        f"eight depths, a token of each of {run['texts']} texts; participation ratio alone",
        "; ".join(figures),
        f"{CONTRADICTED}: it falls with depth (smaller models than the paper's)",
    ]


def signal() -> list[str]:
    figures = []
    for name, run in of_models("class_signal"):
        parts = [f"{kind} {with_interval(value)}" for kind, value in run["rows"].items()]
        figures.append(f"{name}: {', '.join(parts)}")
    return [
        paper("2604.19031", "class_signal"),
        "classes have a signal to noise 12.7 times as high on latents as on activations",
        f"{run['texts']} news of 4 classes; the 20 best units of one half, on the other",
        "; ".join(figures),
        CONTRADICTED,
    ]


def confounded() -> list[str]:
    figures = []
    for name, run in of_models("confounded_labels"):
        rows = {key: with_interval(value) for key, value in run["rows"].items()}
        figures.append(
            f"{name}: false {rows['by_length, plain']} without it, {rows['by_length, partial']} "
            f"with it (shuffled {rows['by_length, shuffled, partial']}); true ones found "
            f"{rows[true + 'plain']} and {rows[true + 'partial']}, others "
            f"{rows['by_text, of others, plain']} and {rows['by_text, of others, partial']}"
        )
    return [
        paper("2605.01829", "confounded_labels"),
        "labels of latents need the confounder (age) taken out",
        f"{run['texts']} news, {run['plantings']} planted tables; length is the confounder",
        "; ".join(figures),
        SHOWN,
    ]


true = "by_text, of the reference's, "


def tools() -> list[str]:
    figures = []
    for name, run in of_models("tool_switching"):
        best = max(run["rows"], key=lambda row: row["switched"][0] if row["switched"] else 0)
        figures.append(
            f"{name}, {best['site']}: called rightly {with_interval(best['right'])}; of these "
            f"switched {with_interval(best['switched'])}, by a random vector "
            f"{with_interval(best['random, to'])}"
        )
    return [
        paper("2605.07990", "tool_switching"),
        "the difference of two tools' means switches 77 to 100 % of calls, a random vector none",
        "4 tools, 24 requests to call, best of 3 sites",
        "; ".join(figures),
        SHOWN,
    ]


def echo() -> list[str]:
    figures = []
    for name, run in of_models("echo"):
        good, by = run["good"], run["choice, difference"]
        figures.append(
            f"{name}: good choices A {with_interval(good['A'])}, B {with_interval(good['B'])}, C "
            f"{with_interval(good['C'])}, BC {with_interval(good['BC'])}; in nats BC less B "
            f"{with_interval(by['BC - B'])}, BC less random latents "
            f"{with_interval(by['BC - random'])}; slope of threat, C less A "
            f"{with_interval(run['slope, difference']['C - A'])}"
        )
    return [
        paper("2605.08611", "echo"),
        "an echo of fear makes knowledge (B) into good choices (BC), alone (C) it does nothing",
        f"{run['events']} events",
        "; ".join(figures),
        NOT_HERE,
    ]


def phase() -> list[str]:
    (run,) = runs_of("phase_rotation", RESULTS)
    parts = [f"{kind} {with_interval(run['rows'][kind])}" for kind in ORDER]
    return [
        paper("2604.04946", "phase_rotation"),
        "latents are the better basis to rotate phases; constant factors fail",
        f"simulated wave, {run['seeds']} seeds",
        f"error after a period: {', '.join(parts)}",
        f"{UNTESTED} (no fluid model); on this wave PCA is the better basis, and constants do fail",
    ]


ORDER = ("none", "latents", "PCA", "dimensions", "static")
