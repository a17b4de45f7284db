"""The number of tokens of the stages after training, where a recipe leaves it to the training."""

from typing import Literal, NamedTuple

from ..evaluation.arguments import AUTO, AUTO_TOKENS

Count = int | Literal["auto"]
# Shares of training.n_tokens, and the most tokens. At these shares evaluation, examples and names
# take less time together than training does; they are the quickstart's, in two digits.
_EVALUATION = (0.0125, AUTO_TOKENS)
_EXAMPLES = (0.095, 1_000_000)
_NAMES = (0.032, 50_000)


class Sizes(NamedTuple):
    """The size of each stage after training, in tokens that it reads; 0: the stage is left out."""

    evaluation: int | None
    """None: all held-out text"""
    examples: int
    names: int
    probing: int
    """texts of a task"""
    presets: int
    """seconds"""


def sizes_of(
    n_tokens: int,
    evaluation: Count | None,
    examples: Count,
    names: Count,
    probing: int,
    presets: int,
) -> Sizes:
    """The given numbers; for "auto" a share of the training's tokens. Names are shown beside
    examples: without those, "auto" makes no names. Presets are looked for among examples.

    Args:
        n_tokens: activations of the training.
    """
    if evaluation == AUTO:
        evaluation = _share(n_tokens, *_EVALUATION)
    if examples == AUTO:
        examples = _share(n_tokens, *_EXAMPLES)
    if names == AUTO:
        names = _share(n_tokens, *_NAMES) if examples else 0
    return Sizes(evaluation, examples, names, probing, presets if examples else 0)


def _share(n_tokens: int, share: float, most: int) -> int:
    """Rounded to two significant digits."""
    return min(most, max(1, int(float(f"{share * n_tokens:.1e}"))))
