"""The settings of a probing. Importing this imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...io.bounds import check_least
from ...io.errors import Refused
from .tasks import LEAST

LEAST_WORDS = 500


@dataclass
class ProbeArguments:
    """The tasks, and the numbers of texts and features."""

    n_tasks: int | Literal["all"] = 20
    """packaged sets, drawn at random, or "all"; of a file all tasks are taken"""
    n_texts: int = 500
    """texts of a task, half of them of the class; two fifths are for the test"""
    k: Sequence[int] = (1, 2, 5, 16)
    """numbers of latents, or of a control's features, that a probe reads, beside all of them"""
    max_tokens: int = 128
    """tokens of a text, its BOS included: of longer ones the end is read"""
    n_words: int = 6000
    """words for first-letter absorption, a fifth of them to test on; 0: no absorption"""
    uniformity_tokens: int = 64
    """tokens of the tasks' texts for the uniformity of effects; 0: none"""
    bootstrap_samples: int = 2000
    """resamples of tasks, letters or tokens, for intervals"""
    seed: int = 0
    """seed of all that is drawn"""

    def __post_init__(self) -> None:
        self.k = sorted({*self.k})
        if not self.k or self.k[0] < 1:
            raise Refused(f"k is {list(self.k)}; give numbers of latents, each 1 or more")
        check_least(self, n_tasks=1, n_texts=2 * LEAST, max_tokens=2, bootstrap_samples=1)
        check_least(self, seed=0, n_words=0, uniformity_tokens=0)
        if 0 < self.n_words < LEAST_WORDS:
            raise Refused(
                f"n_words is {self.n_words}; give {LEAST_WORDS} or more for 26 letters, or 0 for "
                "no absorption"
            )
