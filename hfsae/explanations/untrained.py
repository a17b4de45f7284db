"""The control of an SAE that has not learned anything: weights drawn anew, densities as before.

Each input's weights are shuffled over latents: an encoder with the same scales in each dimension,
and no direction that training chose. The bias of each latent lets it fire on as many tokens as the
trained latent of its index. All else of a study is repeated on it: windows, explanations, scores.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ..activations import HarvestArguments, TokenBatch
from ..evaluation.untrained import firings, limits, sample
from ..io.markdown import table
from ..models import SAE
from ..models.relu import rectified
from .arguments import LEXICAL as LEXICAL_SCORES
from .lexical import LEXICAL
from .study import Explanations


@torch.no_grad()
def untrained_like(
    lm: PreTrainedModel,
    sae: SAE,
    rows: Iterable[TokenBatch],
    *,
    seed: int = 0,
    norm_limits: dict[str, float] | None = None,
    harvest: HarvestArguments | None = None,
) -> SAE:
    """An SAE of re-drawn weights whose latents fire as often as those of `sae`.

    Its latents are relu((x - b_dec) W + b), W the encoder with each row shuffled over latents.

    Args:
        rows: text on which densities are matched; its first SAMPLE_TOKENS are read.
        norm_limits: the training Harvester's; those of other sites are ignored.
        harvest: how activations are taken; with a cache they are kept for other SAEs.

    Raises:
        ValueError: no token is left.
    """
    x = sample(lm, sae.config.reads, rows, norm_limits=norm_limits, harvest=harvest).to(sae.W_dec)
    untrained = rectified(sae)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(sae.W_enc.shape, generator=generator).argsort(dim=1)  # of each row its own
    untrained.W_enc.copy_(sae.W_enc.gather(1, order.to(sae.W_enc.device)))
    beyond = limits(untrained.encoder_input(x), untrained.W_enc, firings(sae, x))
    untrained.b_enc.copy_(-beyond / untrained.latent_scale)
    return untrained


def comparison_of(
    trained: Explanations, untrained: Explanations
) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """By score and metric [value, low, high]: the means over latents of both SAEs, their
    difference, and what the untrained one's latents score above their control (another latent's
    explanation, or random directions). A judge's score with too many failures is absent.

    The two means are over different latents: the interval of the difference adds the squares of
    theirs.
    """
    ours, theirs = trained.record["scores"], untrained.record["scores"]
    metrics = {LEXICAL_SCORES: LEXICAL} | {
        name: [m for m in (of["headline"], "balanced_accuracy") if m in of["uniform"]]
        for name, of in ours.items()
        if name != LEXICAL_SCORES and of["headline"] and theirs[name]["headline"]
    }
    result: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for score, of_score in metrics.items():
        result[score] = {}
        for metric in of_score:
            own, other = (of[score]["uniform"][metric] for of in (ours, theirs))
            difference: list[float | None] = [None, None, None]
            if None not in own["own"] and None not in other["own"]:
                (a, a_low, a_high), (b, b_low, b_high) = own["own"], other["own"]
                low, high = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
                difference = [a - b, a - b - low, a - b + high]
            result[score][metric] = {
                "trained": own["own"],
                "untrained": other["own"],
                "trained_minus_untrained": difference,
                "untrained_minus_control": other["difference"],
            }
    return result


def section_of(
    means: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]],
) -> str:
    """The report's section on this control, as Markdown."""
    keys = ("trained", "untrained", "trained_minus_untrained", "untrained_minus_control")
    titles = ["score", *(key.replace("_", " ") for key in keys)]
    rows = []
    for score, of_score in means.items():
        for metric, of in of_score.items():
            is_lexical = score == LEXICAL_SCORES
            title = metric if is_lexical else f"{score} {metric.replace('_', ' ')}"
            numbers = (of[key] for key in keys)
            cells = ("-" if None in n else "{:.3f} [{:.3f}, {:.3f}]".format(*n) for n in numbers)
            rows.append([title, *cells])
    return (
        "## Beside an SAE of re-drawn weights\n\n"
        "The encoder with each input's weights shuffled over latents, and biases with which each "
        "latent fires as often as the trained one of its index; the same windows, explainer and "
        f"scores, on its own latents.\n\n{table([titles, *rows])}\n"
    )
