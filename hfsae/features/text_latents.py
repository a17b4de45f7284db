"""The latents of a text, as one tensor: the shortest way from text to an SAE's activations."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.arguments import Columns, text_list
from ..activations.token_text import spell, tokenise
from ..io.errors import Refused
from ..lm import (
    Encoder,
    NamesSite,
    activations_read,
    cast_for,
    check_arguments,
    contract,
    known_tokenizer,
    special_ids,
    tokenizer_of,
    unspared,
)

Texts = str | Sequence[str] | Columns | Int[Tensor, "rows ctx"] | Mapping[str, Tensor]
"""A text, several texts, a `datasets.Dataset`, token ids, or a tokenizer's output: input_ids and
attention_mask."""


class TopLatent(NamedTuple):
    """A latent at its strongest token."""

    latent: int
    activation: float
    """raw units"""
    token: str
    row: int
    position: int


class Latents(NamedTuple):
    """Activations of all latents on all tokens; 0 on special tokens and padding."""

    tokens: list[list[str]]
    """The texts of each row's tokens, special ones included; without a tokenizer, their ids."""
    input_ids: Int[Tensor, "rows ctx"]
    keep: Bool[Tensor, "rows ctx"]
    """False on special tokens (BOS among them) and padding: SAEs are not trained on them."""
    values: Float[Tensor, "rows ctx d_sae"]
    """Raw units."""

    def top(self, k: int = 10) -> list[TopLatent]:
        """The k latents with the largest activations, each at its strongest token."""
        flat = self.values.flatten(0, 1)  # [rows * ctx, d_sae]
        largest, place = flat.max(dim=0)
        activations, order = largest.sort(descending=True, stable=True)
        n_context = self.values.shape[1]
        strongest = []
        for latent, activation in zip(order[:k].tolist(), activations[:k].tolist(), strict=True):
            if activation <= 0:
                break
            row, position = divmod(int(place[latent]), n_context)
            token = self.tokens[row][position]
            strongest.append(TopLatent(latent, activation, token, row, position))
        return strongest


@torch.no_grad()
def latents(
    lm: PreTrainedModel,
    sae: Encoder,
    text: Texts,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Latents:
    """Latents of a text: tokens, and activations [rows, ctx, d_sae] with BOS left out.

        out = hfsae.latents(lm, sae, "The president addressed Congress")
        out.values.shape, out.top(5)

    The language model runs up to the SAE's site and no further.

    Args:
        lm: a causal language model.
        sae: anything with `encode(x)` and `config.site`.
        text: a text, several texts (padded on the right), token ids [rows, ctx], or a tokenizer's
            output: {"input_ids": ..., "attention_mask": ...}.
        tokenizer: for text; None: the one that `hfsae.load_lm` loaded with the model.

    Raises:
        ValueError: there is no text, the SAE names no site, the text needs a tokenizer and none is
            known, or the SAE is not for this model or tokenizer (`hfsae.lm.contract`).
    """
    check_arguments("latents", lm, sae)
    tokenizer = tokenizer or known_tokenizer(lm)
    contract.check_model(lm, sae, tokenizer)
    input_ids, mask, tokens = _read(lm, sae.config, text, tokenizer)
    contract.check_bos(lm, sae, input_ids, mask)
    keep = mask & unspared(input_ids, special_ids(lm))
    x = activations_read(lm, sae.config, input_ids=input_ids, attention_mask=mask.long())
    kept = sae.encode(cast_for(sae, x[keep.to(x.device)]))
    values = kept.new_zeros(*input_ids.shape, kept.shape[-1])
    values[keep.to(values.device)] = kept
    return Latents(tokens, input_ids, keep, values)


def _read(
    lm: PreTrainedModel, config: NamesSite, text: Texts, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Ids, mask and the texts of tokens."""
    if isinstance(text, Tensor):
        text = {"input_ids": text}
    if isinstance(text, Mapping):
        input_ids = torch.atleast_2d(text["input_ids"]).to(lm.device)
        mask = text.get("attention_mask", torch.ones_like(input_ids))
        mask = torch.atleast_2d(mask).to(lm.device).bool()
        if tokenizer is None:
            return input_ids, mask, [[str(i) for i in row] for row in input_ids.tolist()]
        return input_ids, mask, [spell(tokenizer, row) for row in input_ids.tolist()]
    text, speller = text_list(text), tokenizer or tokenizer_of(lm)
    bos = getattr(config, "bos", None) != "none"
    rows = [tokenise(speller, one, bos=bos) for one in text]
    length = max((len(row.ids) for row in rows), default=0)
    if not length:
        raise Refused("there is no text; give one or several")
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = True
    texts = [[*row.texts, *[""] * (length - len(row.texts))] for row in rows]
    return input_ids.to(lm.device), mask.to(lm.device), texts
