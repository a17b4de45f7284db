"""Find latents: by label, by the token or text that fires them, by promoted token, by similarity.

Everything runs locally. `FeatureSearch` searches a feature store; `firing_on`, `promoting` and
`similar_latents` use the SAE and its model, and need no store.
"""

import re
from collections.abc import Mapping
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
from .logit_lens import output_embedding, through_final_norm, written_directions
from .store import FeatureStore

PREFIX_WEIGHT = 0.5  # weight of a word that only begins with the query's word
_SHORTEST = 3  # letters of a word
_CLOSED = """
a an the this that these those some any no every each either neither both all half several many
much few little more most other another such same own i me my mine myself you your yours yourself
yourselves he him his himself she her hers herself it its itself we us our ours ourselves they
them their theirs themselves one ones oneself who whom whose which what whatever whoever whichever
someone somebody something anyone anybody anything everyone everybody everything nobody nothing
none am is are was were be been being have has had having do does did doing done will would shall
should can could may might must ought need dare let lets get gets got getting go goes went gone
going make makes made making take takes took taken come comes came about above across after
against along among amongst around as at before behind below beneath beside besides between beyond
but by concerning despite down during except for from in including inside into like near of off on
onto out outside over past per since than through throughout till to toward towards under
underneath until unto up upon via versus with within without and or nor so yet if because although
though while whereas unless whether lest once when whenever where wherever why how however not
never also too very quite rather almost nearly just only even still already again ever often
always sometimes usually seldom soon now then here there hence thus therefore otherwise moreover
furthermore nevertheless nonetheless meanwhile instead perhaps maybe indeed certainly simply
really actually well away back together apart especially particularly generally mainly mostly
partly largely first second third last next former latter previous following certain various
different said say says called known used use using based part united one two three four five six
seven eight nine ten eleven twelve hundred thousand million billion
"""
FUNCTION_WORDS = frozenset(_CLOSED.split())
"""English words that say nothing by themselves: what a latent that fires on them means, nobody sees
in a text. Of other languages none are known here: all their words count as words of content."""


class Hit(NamedTuple):
    """A result of a search: a latent; larger scores come first. Each search defines its score."""

    latent: int
    score: float
    why: str
    """The label, token or text that matched; "" if there is none. Plain text: escape it."""


class FeatureSearch:
    """Searches of a feature store. The index of its examples is built at the first search."""

    def __init__(self, store: FeatureStore):
        self.store = store

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

    @cached_property
    def _firings(self) -> tuple[dict[str, list[tuple[int, float]]], list[int]]:
        """{firing token: (latent, activation / maximum) of its examples}; examples of a latent."""
        firings, most = self.store.firings(), self.store.max_activations.clamp(min=1e-30).tolist()
        shares: dict[str, list[tuple[int, float]]] = {}
        rows = zip(firings.latent, firings.token, firings.activation, strict=True)
        for latent, token, activation in rows:
            shares.setdefault(_normal(token), []).append((latent, activation / most[latent]))
        return shares, np.bincount(firings.latent, minlength=len(self.store)).tolist()


def _normal(text: str) -> str:
    return text.strip().casefold() or text


def _best(scores: Mapping[int, float], why: Mapping[int, str], k: int) -> list[Hit]:
    ranked = sorted(scores, key=lambda latent: (-scores[latent], latent))
    return [Hit(latent, float(scores[latent]), why.get(latent, "")) for latent in ranked[:k]]


def search_labels(labels: Mapping[int, str], query: str, k: int = 20) -> list[Hit]:
    """Latents by the share of words that their labels have in common with the query, from 0 to 1; a
    word of three letters or more that a label's word begins with counts half."""
    asked, scores = {*_words(query)}, dict[int, float]()
    for latent, label in labels.items():
        words = {*_words(label)}
        begun = sum(len(w) > 2 and any(own.startswith(w) for own in words) for w in asked - words)
        if common := len(asked & words) + PREFIX_WEIGHT * begun:
            scores[latent] = 2 * common / (len(asked) + len(words))
    return _best(scores, labels, k)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


@torch.no_grad()
def firing_on(
    lm: PreTrainedModel,
    sae: SAE,
    tokens: Mapping[str, Tensor],
    k: int = 20,
    *,
    max_activations: Float[Tensor, " d_sae"] | None = None,
) -> list[Hit]:
    """Latents that fire most strongly in a text, its BOS, EOS and padding apart: the score is the
    largest activation, raw units.

    Args:
        tokens: one or more rows, as the model's arguments.
        max_activations: each latent's over much text; the score is then a share of it, so that
            latents with a small range count as much as others.
    """
    ids = tokens["input_ids"].to(lm.device)
    batch: dict[str, Any] = {name: tensor.to(lm.device) for name, tensor in tokens.items()}
    x = activations_read(lm, sae.config, **batch)
    x = x[unspared(ids, special_ids(lm)).to(x.device)]
    if not len(x):
        return []
    peak = sae.encode(cast_for(sae, x)).float().amax(dim=0).cpu()  # [d_sae]
    if max_activations is not None:
        peak = torch.where(max_activations > 0, peak / max_activations.clamp(min=1e-30), 0.0)
    return [hit for hit in _top(peak, k) if hit.score > 0]


@torch.no_grad()
def promoting(lm: PreTrainedModel, sae: SAE, token_id: int, k: int = 20) -> list[Hit]:
    """Latents that promote a token most: its logit under the logit lens, per unit of activation.

    Raises:
        ValueError: the SAE does not write to the residual stream, or the token is not in the
            vocabulary.
    """
    directions, W_U = written_directions(lm, sae), output_embedding(lm)
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


def words_of(text: str) -> list[str]:
    """The different words of content in a text, in their order."""
    words = re.findall(r"[^\W\d_]+", text)
    return list(dict.fromkeys(word for word in words if _is_word(word)))


def is_content(word: str) -> bool:
    """Whether a word, in any case, stands for something by itself."""
    return word.casefold() not in FUNCTION_WORDS


def content_word(token: str, shortest: int) -> str:
    """The word, in small letters, that a token with a blank before it spells; "" where it is a
    piece of a word, has fewer than `shortest` letters or says nothing by itself."""
    word = token.strip().casefold()
    is_word = token[:1].isspace() and word.isalpha() and len(word) >= shortest
    return word if is_word and is_content(word) else ""


def _is_word(word: str) -> bool:
    return word.isalpha() and len(word) >= _SHORTEST and is_content(word)
