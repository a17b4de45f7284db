"""A probing.json made by hand, whose numbers are given."""

from typing import Any

CAUTION = "Small language models and small SAEs say little here"
WEAK = "a probe of the model's activations knows 7 of 26 letters: it is too weak"


def around(value: float) -> list[float]:
    """A value with an interval."""
    return [value, value - 0.1, value + 0.1]


def probing_record(
    sae: str = "mine", others: tuple[str, ...] = (), value: float = 0.5, *, is_weak: bool = False
) -> dict[str, Any]:
    """Of an SAE whose values are all `value`, or a tenth of it for untrained latents."""
    names, means, rows, evenness = [sae, *others], [], [], {}
    for name in names:
        kinds = {(name, ""): value, ("untrained", name): value / 10}
        for (kind, of), own in kinds.items():
            entry = {"features": kind, "of": of, "k": 1, "n_tasks": 12, "auc": around(own)}
            gain = {"auc_above_untrained": around(0.9 * value)} if kind == name else {}
            means.append(entry | gain)
            figures = {"full": around(own), "fraction": around(own), "f1_of_main": around(own)}
            letters = {"n_main": 1.0, "letters": [{"letter": "a"}, {"letter": "b"}]}
            rows.append({"features": kind, "of": of, **figures, **letters})
        both = {"mean": around(value), "untrained": around(value / 10)}
        evenness[name] = {**both, "n_tokens": 64}
    means.append(
        {"features": "model's dimensions", "of": "layers.1", "k": 1, "auc": around(0.7)}
        | {"n_tasks": 12}
    )
    if is_weak:
        rows = [{"features": name, "of": "", "refused": WEAK} for name in names]
    return {
        "tasks_of": "reviews.jsonl",
        "saes": names,
        "sae": sae,
        "site": "layers.1",
        "arguments": {"n_texts": 100, "k": [1]},
        "tasks": {f"task {i}": 100 for i in range(12)},
        "means": means,
        "about": "by hand",
        "absorption": {"rows": rows, "probe_f1": {}, "about": "by hand", "caution": CAUTION},
        "uniformity": {"saes": evenness, "about": "by hand"},
        "rows": [{"task": "task 0", "features": sae, "of": "", "k": 1, "auc": value}],
    }
