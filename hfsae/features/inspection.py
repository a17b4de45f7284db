"""An SAE's latents on text: in one tensor, or of one text token by token, for people and programs.

    out = latents(lm, sae, ["The cat sat", "on the mat"])
    out.values, out.top(5)

    seen = inspect(lm, sae, tokenise(tokenizer, "The cat sat", bos=True))
    seen.ranking()         the latents of the whole text, strongest first
    seen.at(3).ranking()   those of token 3
    seen.trace(17)         latent 17 along the text
    compare(seen, other)   what differs between two texts

Special tokens (BOS, chat roles) are shown, but nothing is computed on them: SAEs are not trained on
them, and their activations are outliers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.arguments import Columns, text_list
from ..activations.token_text import Tokens, spell, tokenise
from ..io.errors import Refused
from ..lm import (
    activations_read,
    cast_for,
    check_arguments,
    contract,
    known_tokenizer,
    special_ids,
    tokenizer_of,
    unspared,
)
from ..models.config import check_latent

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
    sae: Any,
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
    text = {"input_ids": text} if isinstance(text, Tensor) else text
    if isinstance(text, Mapping):
        input_ids = torch.atleast_2d(text["input_ids"]).to(lm.device)
        mask = text.get("attention_mask", torch.ones_like(input_ids))
        mask = torch.atleast_2d(mask).to(lm.device).bool()
        ids = input_ids.tolist()
        texts = [[str(i) for i in r] if tokenizer is None else spell(tokenizer, r) for r in ids]
    else:
        listed, speller = text_list(text), tokenizer or tokenizer_of(lm)
        bos = getattr(sae.config, "bos", None) != "none"
        rows = [tokenise(speller, one, bos=bos) for one in listed]
        length = max((len(row.ids) for row in rows), default=0)
        if not length:
            raise Refused("there is no text; give one or several")
        input_ids = torch.tensor([[*row.ids, *[0] * (length - len(row.ids))] for row in rows])
        lengths = torch.tensor([len(row.ids) for row in rows])
        mask = torch.arange(length) < lengths[:, None]
        input_ids, mask = input_ids.to(lm.device), mask.to(lm.device)
        texts = [[*row.texts, *[""] * (length - len(row.texts))] for row in rows]
    contract.check_bos(lm, sae, input_ids, mask)
    keep = mask & unspared(input_ids, special_ids(lm))
    x = activations_read(lm, sae.config, input_ids=input_ids, attention_mask=mask.long())
    kept = sae.encode(cast_for(sae, x[keep.to(x.device)]))
    values = kept.new_zeros(*input_ids.shape, kept.shape[-1])
    values[keep.to(values.device)] = kept
    return Latents(texts, input_ids, keep, values)


class Ranked(NamedTuple):
    """A latent in a whole text."""

    latent: int
    max: float
    """its largest activation, raw units"""
    mean: float
    """over all tokens that are not special"""
    n_tokens: int
    """on which it fires"""
    peak: int
    """position of the largest activation"""


class Inspection(NamedTuple):
    """The latents that fire in one text: n firings in order of position."""

    tokens: Tokens
    position: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    activation: Float[Tensor, " n"]
    d_sae: int
    fvu: float
    """fraction of variance unexplained over this text's tokens, of several sites the mean of each
    one's; nan for a single token, and for a transcoder"""

    @property
    def n_kept(self) -> int:
        """Tokens that are not special."""
        return self.tokens.special.count(False)

    @property
    def l0(self) -> list[int]:
        """Latents that fire on each token."""
        return torch.bincount(self.position, minlength=len(self.tokens.ids)).tolist()

    def at(self, position: int) -> "Inspection":
        """The firings on one token, as an `Inspection` whose `ranking` is that token's."""
        here = self.position == position
        return self._replace(
            position=self.position[here],
            latent=self.latent[here],
            activation=self.activation[here],
        )

    def trace(self, latent: int) -> list[float]:
        """Activation of one latent on each token, raw units; 0 where it does not fire.

        Raises:
            ValueError: there is no such latent.
        """
        check_latent(latent, self.d_sae)
        trace, mine = torch.zeros(len(self.tokens.ids)), self.latent == latent
        trace[self.position[mine]] = self.activation[mine]
        return trace.tolist()

    def ranking(self) -> list[Ranked]:
        """Latents of the text, those with the largest activation first."""
        activation, position = self.activation, self.position
        latent, group, n = self.latent.unique(return_inverse=True, return_counts=True)
        largest = torch.zeros(len(latent)).scatter_reduce_(
            0, group, activation, "amax", include_self=False
        )
        mean = torch.zeros(len(latent)).scatter_add_(0, group, activation) / max(1, self.n_kept)
        at_peak = activation == largest[group]
        peak = torch.full((len(latent),), len(self.tokens.ids))
        peak.scatter_reduce_(0, group[at_peak], position[at_peak], "amin")
        order = largest.argsort(descending=True, stable=True)
        columns = (column[order].tolist() for column in (latent, largest, mean, n, peak))
        return [Ranked(*row) for row in zip(*columns, strict=True)]


@torch.no_grad()
def inspect(lm: PreTrainedModel, sae: Any, tokens: Tokens) -> Inspection:
    """Latents on every token of a text except special ones; the layers above are not run.

    Args:
        sae: anything with `encode(x)`, `decode(latents, x)`, `config.site` and `config.d_sae`.

    Raises:
        ValueError: the SAE names no site, or is not for this model (`hfsae.lm.contract`).
    """
    batch = tokens.batch(lm.device)
    contract.check_model(lm, sae)
    contract.check_bos(lm, sae, batch.input_ids)
    x = activations_read(lm, sae.config, input_ids=batch.input_ids)
    x = cast_for(sae, x[0][batch.keep[0]])
    return firings_in(sae, x, batch.keep[0].nonzero()[:, 0], tokens)


@torch.no_grad()
def firings_in(
    sae: Any, x: Float[Tensor, "kept d_in"], positions: Int[Tensor, " kept"], tokens: Tokens
) -> Inspection:
    """Latents on activations that are there already.

    Args:
        sae: as for `inspect`.
        x: activations, in the SAE's dtype and on its device.
        positions: the place of each among the tokens.
        tokens: or what stands for them, such as patches: their places, captions, and none special.
    """
    latents, d_sae = sae.encode(x), sae.config.d_sae
    row, latent = (latents != 0).nonzero(as_tuple=True)
    position = positions.to(row.device)[row]
    firings = (position.cpu(), latent.cpu(), latents[row, latent].float().cpu())
    fvu = float("nan")
    if len(x) > 1 and getattr(sae.config, "where_to", None) is None:
        recon = sae.decode(latents, x)
        sides = [(x, recon)]
        if getattr(sae.config, "has_several_sites", False):
            sides = [*zip(sae.split(x).values(), sae.split(recon).values(), strict=True)]
        each = [
            float((a - b).float().square().sum() / (a - a.mean(0)).float().square().sum())
            for a, b in sides
        ]
        fvu = sum(each) / len(each)
    return Inspection(tokens, *firings, d_sae, fvu)


def compare(
    first: Inspection, second: Inspection, k: int | None = None
) -> list[tuple[int, float, float]]:
    """Latents whose largest activations differ between two texts, the most different first: each
    with that in the first text and in the second, raw units, 0 where it does not fire."""
    largest = torch.zeros(2, first.d_sae)
    for row, seen in zip(largest, (first, second), strict=True):
        row.scatter_reduce_(0, seen.latent, seen.activation, "amax")
    gap = (largest[0] - largest[1]).abs()
    order = gap.argsort(descending=True, stable=True)[: int((gap > 0).sum())][:k]
    return [(i, *largest[:, i].tolist()) for i in order.tolist()]
