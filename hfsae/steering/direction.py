"""A direction between two kinds of texts, which needs no SAE."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.arguments import text_list
from ..activations.token_text import tokenise
from ..lm import capture, tokenizer_of


@torch.no_grad()
def mean_difference(
    lm: PreTrainedModel,
    site: str,
    texts: Sequence[str],
    others: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Float[Tensor, " d"]:
    """The mean activation at the last token of texts, less that of others: float32, raw units.

        calm = hfsae.mean_difference(lm, "layers.12", calm_texts, angry_texts)
        with hfsae.patch(lm, {"layers.12": lambda x: x + calm.to(x)}):
            lm.generate(**tokens)

    As in arXiv:2605.07990, where it switches the tool that a model calls. Two sides of different
    length or content differ in more than what they are meant to; give pairs where you can.

    Args:
        site: any place of the model, as an SAE's (`hfsae.lm.hooks`).
        tokenizer: None: the one that `hfsae.load_lm` loaded with the model.

    Raises:
        ValueError: a side has no text, a text is empty, or there is no such site.
    """
    speller, means = tokenizer or tokenizer_of(lm), list[Tensor]()
    for side in (texts, others):
        rows = [tokenise(speller, text).ids for text in text_list(side)]
        last = []
        for ids in rows:
            with capture(lm, [site], stop_early=True) as activations:
                lm(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
            last.append(activations[site][0, -1].double().cpu())
        means.append(torch.stack(last).mean(dim=0))
    return (means[0] - means[1]).float()
