"""The tables and sentences that rest on the results of scripts/recipes: on its page, and of arms on
that of comparisons."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anew import Told, table

from hfsae.machine.files import read_json

PAGE, COMPARISONS = "scripts/recipes/README.md", "scripts/comparisons/README.md"
ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


def results(name: str) -> Json:
    return read_json(ROOT / "scripts/recipes/results" / f"{name}.json")


def told() -> Iterator[Told]:
    for section, texts in (
        ("Names for latents", (*judged(), *redrawn())),
        ("Probing", (*probed(), *letters(), *evenness())),
        ("Beyond the training text", on_texts()),
        ("Short runs", papers_method()),
    ):
        yield from (Told(PAGE, section, text) for text in texts)
    section = "Do latents tell texts apart?"
    yield from (Told(COMPARISONS, section, text) for text in probed_arms())


def decimal(value: float, digits: int | None = None) -> str:
    """.684, -.002, 1.83, 39.1: three digits, or so many after the point, and no 0 before it."""
    text = f"{value:.{_digits(value) if digits is None else digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _digits(value: float) -> int:
    """Digits after the point."""
    return 3 if abs(value) < 1 else max(0, 3 - len(str(int(abs(value)))))


def spread(interval: Sequence[float] | None) -> str:
    """A value with its interval, all with the value's digits; empty where there is none."""
    if interval is None:
        return ""
    value, low, high = (decimal(part, _digits(interval[0])) for part in interval)
    return f"{value} [{low}, {high}]" if any(interval) else "0"


SCORES = {
    "lexical": "`lexical` Pearson",
    "detection": "`detection` AUC",
    "likelihood": "`likelihood` AUC",
    "intruder": "`intruder` accuracy",
}
SIDES = ("own", "shuffled", "difference", "direction", "anything")


def headline(score: Json) -> dict[str, list[float]]:
    """A score's first metric: means with intervals, of own names and controls.

    Raises:
        ValueError: too many of the judge's answers failed, so that there is none.
    """
    metrics = [value for value in score.values() if isinstance(value, dict)]
    if not metrics:
        raise ValueError(f"a score has no headline: {score['n_failed']:,} items failed")
    return metrics[0]


def judged() -> Iterator[str]:
    made = results("judge")
    usage, n = made["usage"], made["n_latents"]
    failed = f"{usage['n_failed']:,} failures" if usage["n_failed"] else "no failure"
    yield (
        f"as judge; {n} latents, mean with a 95 % interval over latents ({usage['n_calls']:,} "
        f"calls, {usage['n_tokens_in']:,} tokens, {failed}; {made['cpu_seconds']:.0f} CPU seconds"
    )
    head = ["score", "own name", "another's", "difference", "random directions", '"any text"']
    rows = [
        [title, *(spread(headline(made["scores"][name]).get(side)) for side in SIDES)]
        for name, title in SCORES.items()
    ]
    yield table([head, *rows])


LEXICAL = ("pearson", "auprc", "auc")


def redrawn() -> Iterator[str]:
    names, other = results("names"), results("redrawn")
    yield f"{names['n_latents']} latents each on {names['n_tokens'] // 1000 * 1000:,} tokens"
    ours, theirs = names["scores"]["lexical"], other["scores"]["lexical"]
    rows = {
        "the quickstart's": {m: ours[m]["own"] for m in LEXICAL},
        "re-drawn weights, as dense": names["untrained"],
        "random directions, as dense": {m: ours[m]["direction"] for m in LEXICAL},
        "of a model with re-drawn weights, L0 50": {m: theirs[m]["own"] for m in LEXICAL},
    }
    body = [[title, *(spread(row[m]) for m in LEXICAL)] for title, row in rows.items()]
    yield table([["SAE", "Pearson", "average precision", "AUC of windows"], *body])


FEATURES = {
    "own": "the SAE's latents",
    "untrained": "untrained latents",
    "dimensions": "the model's dimensions",
    "tokens": "bag of tokens",
    "gain": "SAE above untrained, paired",
}


def probed() -> Iterator[str]:
    made, drawn = results("probing"), results("probing_drawn")
    yield (
        f"All {made['n_tasks']} packaged binary sets that are not faulty, up to 500 texts each "
        f"(`--n_tasks all --n_words 0 --uniformity_tokens 0`, {_minutes(made)} min of CPU)"
    )
    ks = ("1", "5", "16", "all")
    rows = [[FEATURES[of], *(spread(made["auc"][of].get(k)) for k in ks)] for of in FEATURES]
    yield table([["features", *_KS], *rows])
    one, five = (spread(drawn["auc"]["gain"][k]) for k in ("1", "5"))
    yield (
        f"The {drawn['n_tasks']} sets that are drawn without `--n_tasks` ({_minutes(drawn)} min of "
        f"CPU) are too few to show it: {one} at k = 1, {five} at 5."
    )


def _minutes(made: Json) -> str:
    return f"{made['cpu_seconds'] / 60:.0f}"


ARMS = {"jumprelu": "JumpReLU", "batch_topk": "BatchTopK", "gated": "Gated (RI-L1)", "topk": "TopK"}


def probed_arms() -> Iterator[str]:
    made = results("probing_arms")
    yield f"probed on {made['n_tasks']} tasks of {made['n_texts']} texts"
    yield f"{_minutes(made)} min of one core"
    ks = ("1", "5", "16", "all")
    rows = []
    for name, title in ARMS.items():
        arm = made["arms"][name]
        control = [decimal(arm["untrained"][k]) for k in ks[:2]]
        rows.append([title, *(spread(arm["auc"][k]) for k in ks), *control])
    for name in ("dimensions", "tokens"):
        rows.append([FEATURES[name], *(spread(made["controls"][name].get(k)) for k in ks), "", ""])
    yield table([["arm", *_KS, f"random directions, {_KS[0]}", _KS[1]], *rows])
    title, k, gap = largest_gap(made)
    with_k = "with all latents" if k == "all" else f"at k = {k}"
    yield f"(largest {spread(gap)}, {title} {with_k})"


_KS = ("k = 1", "k = 5", "k = 16", "all")


def largest_gap(made: Json) -> tuple[str, str, list[float]]:
    """The arm's title, k and the difference of AUC from the first arm's that is largest."""
    gaps = [
        (title, k, gap)
        for name, title in ARMS.items()
        for k, gap in made["arms"][name].get("above_first", {}).items()
    ]
    return max(gaps, key=lambda entry: abs(entry[2][0]))


def letters() -> Iterator[str]:
    made = results("probing_drawn").get("absorption")
    if made is None:
        raise ValueError("probing_drawn.json has no figures of absorption, which the page tells")
    yield (
        f"the probe knows {made['own']['n_letters']} letters (mean F1 "
        f"{decimal(made['probe_mean_f1'], 2)})"
    )
    columns = ("full", "fraction", "f1_of_main")
    rows = [
        [title, *(spread(made[of][column]) for column in columns)]
        for of, title in (("own", "the SAE's"), ("untrained", "untrained"))
    ]
    yield table([["latents", "full absorption", "fraction", "F1 of the main latents"], *rows])


def evenness() -> Iterator[str]:
    own, packaged = (results(name)["uniformity"] for name in ("probing_drawn", "probing_packaged"))
    yield (
        f"over {own['n_tokens']} tokens of the tasks' texts is {spread(own['own'])}, of untrained "
        f"latents {spread(own['untrained'])}."
    )
    yield (
        f"of the SAE in this package it is {spread(packaged['own'])}, of untrained latents "
        f"{spread(packaged['untrained'])} ({packaged['n_tokens']} tokens)"
    )


def on_texts() -> Iterator[str]:
    made = results("texts")["texts"]
    first, *others = ((name, of["n_tokens"] // 1000 * 1000) for name, of in made.items())
    yield f"{first[1]:,} tokens of held-out text, {others[0][1]:,} of each other:"
    keys = ("l0", "fvu", "delta_loss")
    rows = [[name, *(spread(of[key]) for key in keys)] for name, of in made.items()]
    yield table([["text", "L0", "FVU", "delta loss"], *rows])


def papers_method() -> Iterator[str]:
    runs = read_json(ROOT / "scripts/bench/results/paper.json")["runs"]
    short, long = sorted({run["tokens"] for run in runs})

    def of(tokens: int, passes: int = 1, rate: float | None = None) -> Json:
        """The paper's run at a rate; without one, the quickstart's settings."""
        wanted = {"tokens": tokens, "passes": passes, "paper": rate is not None}
        wanted |= {} if rate is None else {"rate": rate}
        return next(r for r in runs if all(r[key] == value for key, value in wanted.items()))

    passes = max(run["passes"] for run in runs)
    slow = [of(short, 1, 7e-5), of(long, 1, 7e-5), of(long, passes, 7e-5)]
    l0s = [f"{run['l0_as_trained']:.0f}" for run in slow]
    yield (
        f"after {short:,} tokens {l0s[0]} latents fire on a token, after {long:,} still {l0s[1]}, "
        f"after four passes over these ({passes * long / 1e6:.1f} million) {l0s[2]}, as lambda"
    )
    fvu = slow[2]["validation"]["fvu"]
    yield f"the last one reconstructs nothing (FVU {decimal(fvu)})"
    fast, ours = [of(n, 1, 1e-3) for n in (short, long)], [of(n) for n in (short, long)]
    a, b = (f"{run['l0_as_trained']:.0f}" for run in fast)
    c, d, e, f = (decimal(run["validation"]["fvu"]) for run in (*fast, *ours))
    yield (
        f"they end at an L0 of {a} and of {b}, and at 50 (thresholds times one factor) with an FVU "
        f"of {c} and {d}, where the quickstart's settings have {e} and {f}."
    )
