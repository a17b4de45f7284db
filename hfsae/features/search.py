"""Find latents: by label, by the token or text that fires them, by promoted token, by similarity,
or by what they are about.

Everything runs locally. `FeatureSearch` searches a feature store; `firing_on`, `promoting` and
`similar_latents` use the SAE and its model, and need no store; `Meaning` compares latents, by the
words of their examples and names, with a query's.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
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

K1, B = 1.2, 0.75  # BM25's usual constants (Robertson and Zaragoza 2009, section 3.2)
PREFIX_WEIGHT = 0.5  # weight of a word that only begins with the query's word
N_COMMON = 2
"""Directions that are taken out of all vectors."""
CHANCE = 7e-4
"""A latent is near a query from the cosine on that only this share of pairs of a latent and a token
at random reach."""
_SAMPLE, _ANY = 20_000, 1000  # tokens, at equal distances in the vocabulary; latents likewise
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
        frequency = {}
        for i, text in texts.items():
            n_whole = text[word]
            n_begun = sum(n for w, n in text.items() if w.startswith(word)) if len(word) > 2 else 0
            frequency[i] = n_whole + PREFIX_WEIGHT * max(0, n_begun - n_whole)
        containing = sum(f > 0 for f in frequency.values())
        rarity = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
        for i, f in frequency.items():
            if f > 0:
                length = 1 - B + B * texts[i].total() / mean_length
                scores[i] += rarity * f * (K1 + 1) / (f + K1 * length)
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


class Meaning:
    """Latents that are about something, whatever words they fire on: by the language model's own
    word vectors.

    A token's vector is its row of the model's embedding, less the mean of all and the two
    directions in which most of them vary, which tell how frequent a token is and little of what it
    means (Mu and Viswanath 2018, "All-but-the-Top"). A latent's is the mean over its strongest
    examples of the words that it fires on, so that one which fires on many different words is near
    to none; a name has one of its own. No further model is needed, and languages are those of the
    model.

    Args:
        table: the model's embedding.
        ids_of: the tokens of a text, without special ones.
        names: {latent: name}, each as near as its own words are; those of latents that fire on
            function words or letters alone are left out: they tell what stands beside these.
    """

    def __init__(
        self,
        store: FeatureStore,
        table: Float[Tensor, "vocabulary d"],
        ids_of: Callable[[str], Sequence[int]],
        names: Mapping[int, str],
    ) -> None:
        import pyarrow.compute as pc

        self._table, self._ids_of = table.detach(), ids_of
        self._mean, self._common = common_directions(self._table)
        self._words: dict[str, Tensor | None] = {}
        rows: list[tuple[int, Tensor]] = []
        counts: dict[int, Counter[str]] = {}  # of tokens that its strongest examples fire on
        firings = store.firings(pc.field("kind") == "top")
        for latent, token in zip(firings.latent, firings.token, strict=True):
            counts.setdefault(latent, Counter())[token] += 1
        for latent, tokens in counts.items():
            parts = [
                n / tokens.total() * vector
                for token, n in tokens.items()
                if token[:1].isspace() and (vector := self._vector(token.strip())) is not None
            ]
            if parts:  # where none is a word that stands for something, there is no vector
                rows.append((latent, torch.stack(parts).sum(dim=0)))
        self._n_fired = len(rows)
        for latent, name in names.items():
            fired = [token.strip() for token in counts.get(latent, ())]
            if fired and all(word.isalpha() and not _is_word(word) for word in fired):
                continue
            vectors = [v for word in words_of(name) if (v := self._vector(word)) is not None]
            if vectors:
                rows.append((latent, torch.stack(vectors).mean(dim=0)))
        self._latents = [latent for latent, _ in rows]
        self._vectors = torch.stack([v for _, v in rows]) if rows else torch.zeros(0, 1)
        self.least = 1.0
        """cosine from which a latent is near: how near unrelated words are differs from model to
        model"""
        if rows:
            ids = range(0, len(self._table), max(1, len(self._table) // _ANY))
            some = self._vectors[:: max(1, len(rows) // _ANY)]
            cosines = (some @ self._of(list(ids)).T).flatten()
            at = max(1, round((1 - CHANCE) * len(cosines)))
            self.least = float(cosines.kthvalue(at).values)

    def near(self, query: str, k: int) -> dict[int, float]:
        """{latent: cosine} of latents that are about a query, the nearest first: the cosine is the
        mean over its words, and each word's is at least half of the limit.

        A query of function words alone, and one whose words the tokenizer does not know, has none.
        """
        cosines = self._to(query)
        best: dict[int, float] = {}
        for at in cosines.argsort(descending=True).tolist():
            if float(cosines[at]) < self.least or len(best) == k:
                break
            best.setdefault(self._latents[at], float(cosines[at]))
        return best

    def fired(self, query: str) -> dict[int, float]:
        """{latent: cosine} of latents that fire on what is near, whatever their names are."""
        cosines = self._to(query)[: self._n_fired].tolist()
        pairs = zip(self._latents, cosines, strict=False)
        return {latent: cosine for latent, cosine in pairs if cosine >= self.least}

    def _to(self, query: str) -> Float[Tensor, " latents"]:
        """The cosine of each row: the mean over the query's words, -1 where one is far."""
        words = [vectors for word in words_of(query) if (vectors := self._spellings(word))]
        if not words or not self._latents:
            return torch.full((len(self._latents),), -1.0)
        cosines = [self._vectors @ F.normalize(torch.stack(w), dim=-1).T for w in words]
        by_word = torch.stack([cosine.amax(dim=1) for cosine in cosines], dim=1)
        return by_word.mean(dim=1).where(by_word.amin(dim=1) >= self.least / 2, -1.0)

    def _vector(self, word: str) -> Float[Tensor, " d"] | None:
        """Of norm 1 for a word that is one token, else shorter: its pieces tell less. None for what
        is no word of content."""
        if word not in self._words:
            ids = list(self._ids_of(f" {word}")) if _is_word(word) else []
            self._words[word] = self._of(ids).mean(dim=0) if ids else None
        return self._words[word]

    def _spellings(self, word: str) -> list[Tensor]:
        """Its vectors, with a capital and without: of those spellings that are one token, or else
        of the word as it is."""
        spellings = dict.fromkeys((word, word.lower(), word.capitalize()))
        single = [w for w in spellings if len(self._ids_of(f" {w}")) == 1]
        vectors = (self._vector(w) for w in single or [word])
        return [v for v in vectors if v is not None]

    def _of(self, ids: list[int]) -> Float[Tensor, "n d"]:
        """The vectors of tokens, of norm 1."""
        rows = self._table[torch.tensor(ids, device=self._table.device)].float().cpu() - self._mean
        return F.normalize(rows - rows @ self._common @ self._common.T, dim=-1)


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


@torch.no_grad()
def common_directions(table: Float[Tensor, "vocabulary d"]) -> tuple[Tensor, Tensor]:
    """The mean of the vectors, and the directions [d, N_COMMON] in which most of them vary."""
    every = max(1, len(table) // _SAMPLE)
    sample = table[::every].float().cpu()
    mean = sample.mean(dim=0)
    centred = sample - mean
    _, directions = torch.linalg.eigh(centred.T @ centred)
    return mean, directions[:, -N_COMMON:]
