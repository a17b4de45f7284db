"""A study's further control: an SAE of re-drawn weights, on the run's own text."""

from ..explain import ExplainArguments, Explanations, explain
from ..explain.untrained import SAMPLE_TOKENS, compared, section_of, untrained_like
from ..lm import LoadedLM
from ..models import SAE
from .fields import Recipe
from .text import read_rows, token_bar


def add_untrained(
    result: Explanations,
    recipe: Recipe,
    loaded: LoadedLM,
    sae: SAE,
    args: ExplainArguments,
    limits: dict[str, float],
) -> None:
    """Score an SAE of re-drawn weights as `sae` was; put it into the result's record and report.

    The text is read again: once for densities, once for windows.

    Args:
        limits: by site, the largest norm of a kept activation.

    Raises:
        ValueError: as `hfsae.explain.explain`.
    """
    rows = read_rows(recipe, loaded, "test", SAMPLE_TOKENS)
    untrained = untrained_like(loaded.lm, sae, rows, seed=args.seed, norm_limits=limits)
    with token_bar("untrained", args.n_tokens) as progress:
        other = explain(
            loaded.lm,
            untrained,
            read_rows(recipe, loaded, "test", args.n_tokens),
            args,
            source="template",
            tokenizer=loaded.tokenizer,
            norm_limits=limits,
            progress=progress,
        )
    means = compared(result, other)
    result.record["untrained"] = {"n_latents": other.record["n_latents"], "lexical": means}
    result.report += "\n" + section_of(means)
