"""What a comparison's SAEs do on texts unlike the training text (`evaluation.texts`), at equal L0.

L0 is that of the held-out documents, at which arms are compared; on another text an SAE has another
one. Logarithms of the values are interpolated, as `at_l0` has it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from hfsae.comparison import Comparison, Measured

from .at_l0 import AtL0, seeds_at_l0
from .markdown import one_line, table

_METRICS = ("fvu", "delta_loss", "l0")


class ForeignSection:
    """The report's section on foreign texts; empty where none was measured."""

    def __init__(self, comparison: Comparison, measured: Sequence[Measured]) -> None:
        self.c, self.measured = comparison, measured
        self.names = list(dict.fromkeys(name for m in measured for name in m.foreign))

    def all(self) -> Iterator[str]:
        """Its paragraphs and tables."""
        if not self.names:
            return
        yield "## Beyond the training text"
        yield (
            "FVU / delta LM loss / L0 on each text, means over seeds; in brackets, FVU over that "
            "on held-out documents. None of these texts is a part of the training text, and a "
            "document that is also there is left out where that text can be listed. L0 in the "
            "headings is that on held-out documents."
        )
        for l0 in self.c.at_l0:
            rows = [row for arm in self.c.arms if (row := self._row(arm, l0))]
            if rows:
                head = ["arm", "held-out", *map(one_line, self.names)]
                yield f"### At an L0 of {l0:g}\n\n{table([head, *rows])}"

    def _row(self, arm: str, l0: float) -> list[str]:
        at = [*seeds_at_l0(self.measured, arm, l0, lambda m: bool(m.foreign)).values()]
        if not at:
            return []
        of_texts = [_mean(at, name) for name in ("", *self.names)]
        held_out = of_texts[0]["fvu"]
        return [self.c.title(arm), *(_cell(values, held_out) for values in of_texts)]


def _mean(at: Iterable[AtL0], text: str) -> dict[str, float]:
    """Means over seeds on a text; "": on held-out documents."""
    return {key: float(np.mean([_between(each, key, text) for each in at])) for key in _METRICS}


def _between(at: AtL0, key: str, text: str) -> float:
    """A metric between two SAEs, in logarithms; a loss that is not above 0 as it is."""

    def value(m: Measured) -> float:
        return (m.foreign.get(text, {}) if text else m.metrics).get(key, np.nan)

    if min(value(m) for m, _ in at.shares) <= 0:
        return float(at.mean(value))
    return float(np.exp(at.mean(lambda m: np.log(value(m)))))


def _cell(values: Mapping[str, float], held_out: float) -> str:
    if np.isnan(values["fvu"]):
        return "-"
    fvu, delta, l0 = (values[key] for key in _METRICS)
    times = "" if fvu == held_out else f" ({fvu / held_out:.2f} x)"
    return f"{fvu:.3f} / {delta:.3f} / {l0:.1f}{times}"
