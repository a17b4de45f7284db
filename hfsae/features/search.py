"""Find latents: by label, by the token or text that fires them, by promoted token, by similarity.

Everything runs locally. `FeatureSearch` searches a feature store; `firing_on`, `promoting` and
`similar_latents` use the SAE and its model, and need no store.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..io.errors import Refused
from ..lm import activations_read, cast_for, special_ids, unspared
from ..models import SAE
from ..models.config import check_latent
from .logit_lens import last_written, output_embedding, residual_directions, through_final_norm
from .store import FeatureStore

K1, B = 1.2, 0.75  # BM25's usual constants (Robertson and Zaragoza 2009, section 3.2)
PREFIX_WEIGHT = 0.5  # weight of a word that only begins with the query's word


class Hit(NamedTuple):
    """A result of a search: a latent; larger scores come first. Each search defines its score."""

    latent: int
    score: float
    why: str
    """The label, token or text that matched; "" if there is none. Plain text: escape it."""


class FeatureSearch:
    """Searches of a feature store. The index of its examples is built at the first search by token.

    Args:
        labels: {latent: label}, from `read_labels`.
    """

    def __init__(self, store: FeatureStore, labels: Mapping[int, str] | None = None):
        self.store, self.labels = store, dict(labels or {})

    def by_label(self, query: str, k: int = 20) -> list[Hit]:
        """Latents whose labels have the query's words, ranked by BM25."""
        return search_labels(self.labels, query, k)

    def by_token(self, text: str, k: int = 20) -> list[Hit]:
        """Latents that a token fires; case and surrounding blanks are ignored.

        The score is the share of a latent's examples (top and sampled ones) that fire on the token,
        times the largest of these activations over the latent's maximal one.
        """
        token = _normal(text)
        shares, n_examples = self._firings
        relative: dict[int, list[float]] = {}
        for latent, share in shares.get(token, ()):
            relative.setdefault(latent, []).append(share)
        scores = {i: len(r) / n_examples[i] * max(r) for i, r in relative.items()}
        return _best(scores, {i: token for i in scores}, k)

    def by_caption(self, text: str, k: int = 20) -> list[Hit]:
        """Latents that fire in documents whose captions have this text, where a feature store is of
        rows or patches: a latent has one example in a document at most.

        The score is the largest activation there over the latent's maximal one.
        """
        scores: dict[int, float] = {}
        whole = r"(?!\d)" if text.strip()[-1:].isdigit() else ""  # "row 1" is no part of "row 12"
        part = re.compile(re.escape(_normal(text)) + whole)
        for caption, firings in self._firings[0].items():
            if part.search(caption):
                for latent, share in firings:
                    scores[latent] = max(share, scores.get(latent, 0.0))
        return _best(scores, {i: text.strip() for i in scores}, k)

    def by_promoted(self, text: str, k: int = 20) -> list[Hit]:
        """Latents among whose promoted tokens this one is; the score is its logit (logit lens)."""
        scores: dict[int, float] = {}
        why: dict[int, str] = {}
        for latent, token, logit in self._promoted.get(_normal(text), ()):
            if logit > scores.get(latent, -math.inf):
                scores[latent], why[latent] = logit, token
        return _best(scores, why, k)

    @cached_property
    def _firings(self) -> tuple[dict[str, list[tuple[int, float]]], list[int]]:
        """{firing token: (latent, activation / maximum) of its examples}; examples of a latent."""
        firings, most = self.store.firings(), self.store.max_activations.clamp(min=1e-30).tolist()
        shares: dict[str, list[tuple[int, float]]] = {}
        rows = zip(firings.latent, firings.token, firings.activation, strict=True)
        for latent, token, activation in rows:
            shares.setdefault(_normal(token), []).append((latent, activation / most[latent]))
        return shares, np.bincount(firings.latent, minlength=len(self.store)).tolist()

    @cached_property
    def _promoted(self) -> dict[str, list[tuple[int, str, float]]]:
        """{token: (latent, token as it is, logit)} of the latents that promote it."""
        table, latents = self.store.latents, {}
        columns = (table["promoted_tokens"].to_pylist(), table["promoted_logits"].to_pylist())
        for latent, (tokens, logits) in enumerate(zip(*columns, strict=True)):
            for token, logit in zip(tokens, logits, strict=True):
                latents.setdefault(_normal(token), []).append((latent, token, logit))
        return latents


def _normal(text: str) -> str:
    return text.strip().casefold() or text


def _best(scores: Mapping[int, float], why: Mapping[int, str], k: int) -> list[Hit]:
    ranked = sorted(scores, key=lambda latent: (-scores[latent], latent))
    return [Hit(latent, float(scores[latent]), why.get(latent, "")) for latent in ranked[:k]]


def search_labels(labels: Mapping[int, str], query: str, k: int = 20) -> list[Hit]:
    """Latents ranked by BM25 of their labels; a label's word may also begin with the query's.

    Words of two letters or fewer match whole words only.
    """
    words = set(_words(query))
    texts = {latent: Counter(_words(label)) for latent, label in labels.items()}
    if not words or not texts:
        return []
    mean_length = sum(map(Counter.total, texts.values())) / len(texts)
    scores: defaultdict[int, float] = defaultdict(float)
    for word in words:
        frequency = {i: _frequency(word, text) for i, text in texts.items()}
        containing = sum(f > 0 for f in frequency.values())
        rarity = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        for i, f in frequency.items():
            if f > 0:
                length = 1 - B + B * texts[i].total() / mean_length
                scores[i] += rarity * f * (K1 + 1) / (f + K1 * length)
    return _best(scores, labels, k)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _frequency(word: str, text: Counter[str]) -> float:
    n_beginning = sum(n for w, n in text.items() if w.startswith(word)) if len(word) > 2 else 0
    return text[word] + PREFIX_WEIGHT * max(0, n_beginning - text[word])


@torch.no_grad()
def firing_on(
    lm: PreTrainedModel,
    sae: SAE,
    tokens: Mapping[str, Tensor],
    k: int = 20,
    *,
    max_activations: Float[Tensor, " d_sae"] | None = None,
    densities: Float[Tensor, " d_sae"] | None = None,
    max_density: float = 1.0,
    spare_tokens: Sequence[int] | None = None,
) -> list[Hit]:
    """Latents that fire most strongly in a text: the score is the largest activation, raw units.

    Args:
        tokens: one or more rows, as the model's arguments.
        max_activations: each latent's over much text; the score is then a share of it, so that
            latents with a small range count as much as others.
        densities: of each latent; those above `max_density` are left out.
        spare_tokens: ids to ignore; None: the model's BOS, EOS and padding.
    """
    ids = tokens["input_ids"].to(lm.device)
    batch: dict[str, Any] = {name: tensor.to(lm.device) for name, tensor in tokens.items()}
    x = activations_read(lm, sae.config, **batch)
    spare = special_ids(lm) if spare_tokens is None else spare_tokens
    x = x[unspared(ids, spare).to(x.device)]
    if not len(x):
        return []
    peak = sae.encode(cast_for(sae, x)).float().amax(dim=0).cpu()  # [d_sae]
    if max_activations is not None:
        peak = torch.where(max_activations > 0, peak / max_activations.clamp(min=1e-30), 0.0)
    if densities is not None:
        peak = torch.where(densities <= max_density, peak, 0.0)
    return [hit for hit in _top(peak, k) if hit.score > 0]


@torch.no_grad()
def promoting(lm: PreTrainedModel, sae: SAE, token_id: int, k: int = 20) -> list[Hit]:
    """Latents that promote a token most: its logit under the logit lens, per unit of activation.

    Raises:
        ValueError: the SAE does not write to the residual stream, or the token is not in the
            vocabulary.
    """
    site, rows = last_written(sae)
    directions = residual_directions(lm, rows, site)
    W_U = output_embedding(lm)
    if directions is None:
        raise Refused(
            f"site {site!r} does not write to the residual stream, so there is no logit lens; "
            "use an SAE that does, such as one at layers.12"
        )
    if not 0 <= token_id < len(W_U):
        raise Refused(f"token {token_id} is not in the vocabulary: it has 0 to {len(W_U) - 1}")
    directions = through_final_norm(lm, directions.to(W_U.device))
    return _top((directions @ W_U[token_id].to(directions)).cpu(), k)


@torch.no_grad()
def similar_latents(sae: SAE, latent: int, k: int = 20) -> list[Hit]:
    """Other latents whose decoder rows point most nearly the same way; the score is the cosine.

    Raises:
        ValueError: there is no such latent.
    """
    check_latent(latent, sae.config.d_sae)
    rows = F.normalize(sae.W_dec.float(), dim=1)
    cosines = rows @ rows[latent]
    cosines[latent] = -torch.inf
    return _top(cosines.cpu(), min(k, len(rows) - 1))


def _top(scores: Float[Tensor, " d_sae"], k: int) -> list[Hit]:
    best = scores.topk(min(k, len(scores)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Hit(latent, score, "") for latent, score in pairs]
