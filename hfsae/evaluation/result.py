"""The arguments and the result of an evaluation: metrics with definitions, units and intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..io.files import json_safe
from ..io.units import TOKEN, Unit
from .metrics import Definition, Metric

KINDS_OF_DOCUMENTS = {"test": "held-out", "validation": "validation"}
MASK_POLICY = (
    "Kept positions are the same in every arm: special tokens (BOS among them), padding and norm "
    "outliers are neither replaced nor counted; a prediction counts where a kept position predicts "
    "a token of the same document."
)
NO_PREDICTION = (
    "no prediction to evaluate on: no kept token has a next token of the same document in its row; "
    "give more text, longer rows (text.context_size) or higher norm limits"
)


_ABLATION = "ablation of the target site at kept positions"
_MEANS: dict[str, tuple[str, str, Callable[..., Tensor]]] = {
    "ce_clean": ("ce.clean", "cross-entropy of the LM as it is", lambda s: s["clean"]),
    "ce_spliced": (
        "ce.spliced",
        "cross-entropy of the LM on the reconstruction at kept positions",
        lambda s: s["spliced"],
    ),
    "ce_zero": (
        "ce.zero",
        "cross-entropy of the LM with zero at the target site's kept positions",
        lambda s: s["zero"],
    ),
    "ce_mean": (
        "ce.mean",
        "cross-entropy of the LM with a mean activation (whose: `mean_source`) at the target "
        "site's kept positions",
        lambda s: s["mean"],
    ),
    "delta_loss": ("delta_loss", "ce_spliced - ce_clean", lambda s: s["spliced"] - s["clean"]),
    "kl": ("kl.clean_spliced", "KL(clean || spliced) of the next token", lambda s: s["kl"]),
}
LOSSES: dict[str, Definition] = {
    name: Definition(
        f"{key}.v1",
        "nats/token",
        f"{text}, mean over counted predictions",
        lambda s, of=of: of(s) / s["tokens"],
    )
    for name, (key, text, of) in _MEANS.items()
}
for _arm in ("zero", "mean"):
    LOSSES[f"loss_recovered_{_arm}"] = Definition(
        f"loss_recovered.{_arm}.v1",
        "1",
        f"(ce_{_arm} - ce_spliced) / (ce_{_arm} - ce_clean): 1 is lossless, 0 no better than "
        f"{_arm} {_ABLATION}",
        lambda s, arm=_arm: (s[arm] - s["spliced"]) / (s[arm] - s["clean"]),
    )
LOSSES["kl"] = LOSSES.pop("kl")  # the last, as in records


@dataclass
class ForeignText:
    """The same metrics on a text that is unlike the training text."""

    metrics: dict[str, Metric]
    n_tokens: int
    """Kept tokens."""
    n_documents: int
    dataset: str
    """The text's source, without the path of a local one."""
    origin: str
    """In words: the Hub, local files or Python packages."""
    licence: str | None
    """Of a packaged text."""
    held_out: dict[str, Any] | None = None
    """Which of its documents the training did not read, as far as that is known."""


@dataclass
class EvaluationResult:
    metrics: dict[str, Metric]
    density: Float[Tensor, " d_sae"]
    """Fraction of kept tokens on which each latent fired."""
    density_histogram: tuple[Float[Tensor, " edges"], Int[Tensor, " bins"]]
    """(edges, counts): latents that fired, by log10 density."""
    l0_histogram: Int[Tensor, " k"]
    """Entry k: kept tokens with exactly k non-zero latents."""
    n_tokens: int
    """Kept tokens."""
    n_documents: int
    """Documents of these tokens."""
    seed: int
    site: str
    target_site: str
    mean_source: str
    """Source of the mean in mean ablation, in words."""
    side: str | None = "test"
    """Side of the data set that the documents are on (a list is a test side); None: the caller's
    rows."""
    mask_policy: str = field(default=MASK_POLICY)
    texts: dict[str, ForeignText] = field(default_factory=dict)
    """The foreign texts of `EvaluationArguments.texts`, by name."""
    of_documents: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    """The sums behind the metrics by document, for comparing SAEs on the same documents: "fidelity"
    (over kept tokens) and "losses" (over predictions), each float64 [documents]. Not in `to_dict`.
    """

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON: NaN and infinity become None, tensors become lists."""
        own = {k: v for k, v in self.__dict__.items() if k != "of_documents"}
        plain = {key: {k: asdict(v) for k, v in own[key].items()} for key in ("metrics", "texts")}
        return json_safe({**own, **plain})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of `to_dict`; other keys of the record are left out."""
        own = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        metrics, foreign = _metrics(data), data.get("texts", {}).items()
        texts = {name: ForeignText(**{**t, "metrics": _metrics(t)}) for name, t in foreign}
        edges, counts = data["density_histogram"]
        tensors = {
            "density": torch.tensor(data["density"], dtype=torch.float64),
            "density_histogram": (torch.tensor(edges, dtype=torch.float64), torch.tensor(counts)),
            "l0_histogram": torch.tensor(data["l0_histogram"]),
        }
        return cls(**{**own, **tensors, "metrics": metrics, "texts": texts})

    def table(self) -> str:
        """Name, value, 95 % interval and unit of each metric, aligned."""
        rows = [("metric", "value", "95 % interval", "unit")]
        for name, m in self.metrics.items():
            interval = f"{m.low:.4g} to {m.high:.4g}" if isfinite(m.low) else "-"
            rows.append((name, f"{m.value:.4g}", interval, "" if m.unit == "1" else m.unit))
        return aligned(rows)


def in_units(result: EvaluationResult, unit: Unit) -> EvaluationResult:
    """The result with its metrics' definitions in words of other activations than tokens'."""

    def renamed(text: str) -> str:
        text = text.replace("kept token", "token")
        return text.replace(TOKEN.many, unit.many).replace(TOKEN.one, unit.one)

    result.metrics = {
        name: replace(m, unit=renamed(m.unit), definition=renamed(m.definition))
        for name, m in result.metrics.items()
    }
    return result


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _metrics(data: Mapping[str, Any]) -> dict[str, Metric]:
    metrics = {}
    for name, fields in data["metrics"].items():
        missing = [k for k in ("value", "low", "high") if fields[k] is None]
        metrics[name] = Metric(**{**fields, **dict.fromkeys(missing, float("nan"))})
    return metrics
