"""A study's further control: an SAE of re-drawn weights, on the run's own text."""

import logging

from ..evaluation.untrained import SAMPLE_TOKENS
from ..explanations import ExplainArguments, Explanations, explain
from ..explanations.untrained import compared, section_of, untrained_like
from ..lm import LoadedLM
from ..machine.refused import Refused
from ..models import SAE
from .fields import Recipe
from .text import read_rows, token_bar

logger = logging.getLogger(__name__)
UNTRAINED = "untrained"
CONTROLS = (UNTRAINED,)


def add_untrained(
    result: Explanations,
    recipe: Recipe,
    loaded: LoadedLM,
    sae: SAE,
    args: ExplainArguments,
    limits: dict[str, float],
) -> None:
    """Score an SAE of re-drawn weights as `sae` was; put it into the result's record and report.

    The text is read again: once for densities, once for windows. Where too few of its latents fit,
    the record has the reason instead.

    Args:
        limits: by site, the largest norm of a kept activation.
    """
    try:
        other = _untrained(recipe, loaded, sae, args, limits)
    except Refused as error:
        logger.warning("no scores of re-drawn weights: %s", error)
        result.record[UNTRAINED] = {"refused": str(error)}
        return
    means = compared(result, other)
    result.record[UNTRAINED] = {"n_latents": other.record["n_latents"], "lexical": means}
    result.report += "\n" + section_of(means)


def _untrained(
    recipe: Recipe,
    loaded: LoadedLM,
    sae: SAE,
    args: ExplainArguments,
    limits: dict[str, float],
) -> Explanations:
    rows = read_rows(recipe, loaded, "test", SAMPLE_TOKENS)
    untrained = untrained_like(loaded.lm, sae, rows, seed=args.seed, norm_limits=limits)
    with token_bar("untrained", args.n_tokens) as progress:
        return explain(
            loaded.lm,
            untrained,
            read_rows(recipe, loaded, "test", args.n_tokens),
            args,
            source="template",
            tokenizer=loaded.tokenizer,
            norm_limits=limits,
            progress=progress,
        )
