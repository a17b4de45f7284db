"""The section `evaluation` of a recipe. Importing it imports no torch."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..io.bounds import MOST_TOKENS, check_least, check_most
from ..io.errors import Refused

Side = Literal["test", "validation"]
AUTO: Literal["auto"] = "auto"
AUTO_TOKENS = 100_000
PREDICTIONS_AT_ONCE = 128  # whose float32 log-probabilities are in memory together
_LOGITS = 2**27  # of one arm at a time, where a row has fewer
_TEXTS_ARE = "must be names with a text each, as {code: packaged:python}"


@dataclass
class EvaluationArguments:
    """Settings for measuring the trained SAE on documents that it was not trained on."""

    n_tokens: int | Literal["auto"] | None = AUTO
    """Kept tokens, in whole rows; "auto": 100,000, at most 1.25 % of a training's n_tokens; None:
    all; 0: no evaluation."""
    side: Side = "test"
    """Documents to measure on: "test" for results, "validation" for choosing settings."""
    bootstrap_samples: int = 1000
    """Resamples of the documents behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling; values do not depend on it."""
    sae_batch_tokens: int = 4096
    """Tokens that the SAE reads at once; bounds the memory of the [tokens, d_sae] latents."""
    texts: dict[str, str] = field(default_factory=dict)
    """Further texts to measure on, each under a name: `{code: packaged:python}`. A text is a
    file, a folder, a Hub data set or packaged texts, as in text.dataset, and is read whole, with
    the other settings of text. No part of it may be in the training text."""
    n_foreign_tokens: int = 10_000
    """Tokens of each of these texts, like n_tokens."""

    def __post_init__(self) -> None:
        least = {"bootstrap_samples": 1, "sae_batch_tokens": 1, "n_foreign_tokens": 1}
        check_least(self, "evaluation.", n_tokens=0, **least)
        for name in ("n_tokens", *least):
            if isinstance(value := getattr(self, name), int | float):
                check_most(f"evaluation.{name}", value, MOST_TOKENS)
        if self.side not in get_args(Side):
            raise Refused(f"evaluation.side is {self.side!r}; it can be 'test' or 'validation'")
        if not isinstance(self.texts, dict):
            raise Refused(f"evaluation.texts {_TEXTS_ARE}, got {self.texts!r}")
        for item in self.texts.items():
            if not all(isinstance(part, str) and part.strip() for part in item):
                raise Refused(
                    f"evaluation.texts {_TEXTS_ARE}, got the name {item[0]!r} with {item[1]!r}"
                )

    @property
    def most_tokens(self) -> int | None:
        """n_tokens as a number, for an evaluation that no training precedes; None: all."""
        return AUTO_TOKENS if self.n_tokens == AUTO else self.n_tokens


def rows_at_once(context: int, vocabulary: int) -> int:
    """Rows of text whose logits are in memory together, for each of two arms."""
    return max(1, _LOGITS // (context * vocabulary))
