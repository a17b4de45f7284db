"""The tables and sentences that rest on what `make.py` measured: on the pages of recipes, and on
those of comparisons."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anew import Claim, Told, read_json, table

RECIPES, LATENTS = "scripts/recipes", "scripts/comparisons/latents.md"
NAMES, PROBING = (f"{RECIPES}/{name}.md" for name in ("names", "probing"))
ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


def results(name: str) -> Json:
    return read_json(ROOT / "scripts/pages/results" / f"{name}.json")


def told() -> Iterator[Told]:
    for page, section, texts in (
        (NAMES, "Names for latents", (*judged(), *redrawn())),
        (PROBING, "Probing", (*probed(), *letters(results("probing_drawn")), *evenness())),
        (PROBING, "Beyond the training text", on_texts()),
        (f"{RECIPES}/short_runs.md", "Short runs", papers_method()),
        (LATENTS, "Do latents tell texts apart?", probed_arms()),
    ):
        yield from (Told(page, section, text) for text in texts)


def claims() -> Iterator[Claim]:
    at_both = "is above them](../recipes/probing.md#probing) at both.)"
    of_arms = (*arm_claims(), (at_both, all(map(is_above, gains("probing", "1", "5")))))
    for page, section, of in (
        (NAMES, "Names for latents", judge_claims()),
        (PROBING, "Probing", probing_claims()),
        (PROBING, "Beyond the training text", text_claims()),
        (LATENTS, "Do latents tell texts apart?", of_arms),
    ):
        yield from (Claim(page, section, words, holds) for words, holds in of)


def is_above(interval: Sequence[float], chance: float = 0.0) -> bool:
    return interval[1] > chance


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


def judge_claims() -> Iterator[tuple[str, bool]]:
    scores = results("judge")["scores"]

    def tells(name: str) -> bool:
        own = headline(scores[name])
        return is_above(own["difference"]) and is_above(own["own"], scores[name]["chance"])

    words = "Asked yes or no, or for the intruder, so small a model cannot tell"
    yield words, not tells("detection") and not tells("intruder")


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


def gains(name: str, *ks: str) -> list[list[float]]:
    """AUC above untrained latents, with intervals."""
    return [results(name)["auc"]["gain"][k] for k in ks]


def probing_claims() -> Iterator[tuple[str, bool]]:
    few, many = gains("probing", "1", "5"), gains("probing", "16", "all")
    words = "One latent, and five, tell more than untrained ones do; of 16 or all no difference is"
    yield words, all(map(is_above, few)) and not any(map(is_above, many))
    of_drawn = gains("probing_drawn", "1", "5")
    yield "are too few to show it", not any(map(is_above, of_drawn))
    absorption = results("probing_drawn")["absorption"]
    own, untrained = (absorption[of]["full"][0] for of in ("own", "untrained"))
    yield "untrained latents have a *lower* rate", untrained < own
    evenness = [results(name)["uniformity"] for name in ("probing_drawn", "probing_packaged")]
    yield "A more even SAE is not better", all(of["own"][2] < of["untrained"][1] for of in evenness)


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


def arm_claims() -> Iterator[tuple[str, bool]]:
    """Results that were taken from a page lack the number of seeds above untrained latents."""
    made = results("probing_arms")
    arms, controls = made["arms"], made["controls"]
    first = [gap for arm in arms.values() for gap in arm.get("above_first", {}).values()]
    words = "No difference from JumpReLU is shown: paired over tasks, every interval holds 0"
    yield words, all(low <= 0 <= high for _, low, high in first)

    def seeds(*names: str, k: str, least: int, most: int) -> bool:
        counts = (arms[name].get("n_above_untrained", {}).get(k, least) for name in names)
        return all(least <= n <= most for n in counts)

    own, others = ("jumprelu", "batch_topk"), ("gated", "topk")
    is_so = seeds(*own, k="1", least=0, most=1) and seeds(*own, k="5", least=0, most=0)
    words = "one or none of JumpReLU's or BatchTopK's is above them at k = 1 and none at 5"
    yield words, is_so and all(seeds(*others, k=k, least=2, most=3) for k in ("1", "5"))
    ceiling = min(controls[name]["all"][0] for name in ("dimensions", "tokens"))
    words = "No SAE reaches the dimensions of a model of 135M parameters, or a bag of tokens"
    yield words, all(arm["auc"]["all"][0] < ceiling for arm in arms.values())


def letters(probing: Json) -> Iterator[str]:
    made = probing.get("absorption")
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


def text_claims() -> Iterator[tuple[str, bool]]:
    """A card warns where the lower end of an interval is above 1.5 times the upper end of the
    held-out text's."""
    texts = dict(results("texts")["texts"])
    held_out = texts.pop("held-out")
    warned = {
        key: {name for name, of in texts.items() if of[key][1] > 1.5 * held_out[key][2]}
        for key in ("fvu", "delta_loss")
    }
    is_so = warned == {"fvu": {"code"}, "delta_loss": {*texts}} and len(texts) == 3
    yield "here delta loss on all three, FVU on code.", is_so


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
