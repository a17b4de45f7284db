"""A study's further control: an SAE of re-drawn weights, on the run's own text."""

import logging
from dataclasses import replace

from ..evaluation.untrained import SAMPLE_TOKENS
from ..explanations import ExplainArguments, Explainer, Explanations, Inquiry, explain
from ..explanations.kept import Kept
from ..explanations.redrawn import compared, section_of, untrained_like
from ..explanations.windows import TooFew
from ..lm import LoadedLM
from ..models import SAE
from .asked import UNTRAINED
from .fields import Recipe
from .text import read_rows, token_bar

logger = logging.getLogger(__name__)


def untrained(
    recipe: Recipe,
    loaded: LoadedLM,
    sae: SAE,
    args: ExplainArguments,
    limits: dict[str, float],
    *,
    explainer: Explainer,
    inquiry: Inquiry,
    keep: Kept | None = None,
) -> Explanations | str:
    """Explanations of an SAE of re-drawn weights, made and scored as those of `sae`: of as many
    latents as are judged there. Where too few of its latents qualify, it returns the reason.

    The text is read again: once for densities, once for windows; not where this is kept.

    Args:
        limits: by site, the largest norm of a kept activation.
        keep: as in `explain`.

    Raises:
        PendingAnswers: the judge is asked by file, and answers are not there yet.
    """
    other = sae  # which encodes nothing where all was found before
    if keep is None or keep.found is None:
        rows = read_rows(recipe, loaded, "test", SAMPLE_TOKENS)
        other = untrained_like(loaded.lm, sae, rows, seed=args.seed, norm_limits=limits)
    if (n_judged := inquiry.args.latents) is not None and args.latents is None:
        n = n_judged if args.n_latents == "all" else min(n_judged, args.n_latents)
        args = replace(args, n_latents=n)
    with token_bar("untrained", args.n_tokens) as progress:
        try:
            return explain(
                loaded.lm,
                other,
                read_rows(recipe, loaded, "test", args.n_tokens),
                args,
                explainer=explainer,
                source=UNTRAINED,
                tokenizer=loaded.tokenizer,
                norm_limits=limits,
                progress=progress,
                inquiry=_inquiry(inquiry),
                keep=keep,
            )
        except TooFew as error:  # and no refusal of the judge, which may pass
            logger.warning("no scores of re-drawn weights: %s", error)
            return str(error)


def _inquiry(inquiry: Inquiry) -> Inquiry:
    """Without random directions, and with a progress bar of its own."""
    on_progress = inquiry.on_progress

    def as_control(name: str, n_done: int, n_in_all: int, mean: float) -> None:
        if on_progress is not None:
            on_progress(f"{UNTRAINED} {name}", n_done, n_in_all, mean)

    return inquiry._replace(args=replace(inquiry.args, directions=0), on_progress=as_control)


def add_untrained(result: Explanations, other: Explanations | str) -> None:
    """Put the scores of an SAE of re-drawn weights into the result's record and report."""
    if isinstance(other, str):
        result.record[UNTRAINED] = {"refused": other}
        return
    means = compared(result, other)
    result.record[UNTRAINED] = {"n_latents": other.record["n_latents"], **means}
    result.report += "\n" + section_of(means)
