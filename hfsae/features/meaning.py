"""Latents that are about something, whatever words they fire on: by the language model's own word
vectors.

A token's vector is its row of the model's embedding, less the mean of all and the two directions in
which most of them vary, which tell how frequent a token is and little of what it means (Mu and
Viswanath 2018, "All-but-the-Top"). A latent's is the mean over its strongest examples of the words
that it fires on, so that one which fires on many different words is near to none; a name has one of
its own. No further model is needed, and languages are those of the model.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .function_words import is_content
from .store import FeatureStore

N_COMMON = 2
"""Directions that are taken out of all vectors."""
CHANCE = 7e-4
"""A latent is near a query from the cosine on that only this share of pairs of a latent and a token
at random reach."""
_SAMPLE, _ANY = 20_000, 1000  # tokens, at equal distances in the vocabulary; latents likewise
_SHORTEST = 3  # letters of a word


class Meaning:
    """The vectors of an SAE's latents, made at the first search.

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
        self._table, self._ids_of = table.detach(), ids_of
        self._mean, self._common = common_directions(self._table)
        self._words: dict[str, Tensor | None] = {}
        counts = _counts(store)
        silent = {i for i, tokens in counts.items() if all(map(_is_particle, tokens))}
        telling = {i: name for i, name in names.items() if i not in silent}
        fired = self._of_tokens(counts)
        rows, self._n_fired = [*fired, *self._of_names(telling)], len(fired)
        self._latents = [latent for latent, _ in rows]
        self._vectors = torch.stack([v for _, v in rows]) if rows else torch.zeros(0, 1)
        self.least = self._by_chance() if rows else 1.0
        """cosine from which a latent is near"""

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
        words = [spelt for word in words_of(query) if (spelt := self._spelt(word))]
        if not words or not self._latents:
            return torch.full((len(self._latents),), -1.0)
        by_word = torch.stack([self._cosines(torch.stack(w)).amax(dim=1) for w in words], dim=1)
        return by_word.mean(dim=1).where(by_word.amin(dim=1) >= self.least / 2, -1.0)

    def _cosines(self, words: Float[Tensor, "n d"]) -> Float[Tensor, "latents n"]:
        return self._vectors @ nn.functional.normalize(words, dim=-1).T

    def _by_chance(self) -> float:
        """The cosine that a latent has with one of the vocabulary's tokens in `CHANCE` of pairs:
        how near unrelated words are differs from model to model."""
        tokens = range(0, len(self._table), max(1, len(self._table) // _ANY))
        some = self._vectors[:: max(1, len(self._vectors) // _ANY)]
        cosines = (some @ self._of(list(tokens)).T).flatten()
        return float(cosines.kthvalue(max(1, round((1 - CHANCE) * len(cosines)))).values)

    def _of_tokens(self, counts: Mapping[int, Counter[str]]) -> list[tuple[int, Tensor]]:
        """Of each latent the mean over its strongest examples; where none fires on a word that
        stands for something there is none."""
        rows = []
        for latent, tokens in counts.items():
            parts = [
                n / tokens.total() * vector
                for token, n in tokens.items()
                if token[:1].isspace() and (vector := self._vector(token.strip())) is not None
            ]
            if parts:
                rows.append((latent, torch.stack(parts).sum(dim=0)))
        return rows

    def _of_names(self, names: Mapping[int, str]) -> list[tuple[int, Tensor]]:
        rows = []
        for latent, name in names.items():
            vectors = [v for word in words_of(name) if (v := self._vector(word)) is not None]
            if vectors:
                rows.append((latent, torch.stack(vectors).mean(dim=0)))
        return rows

    def _vector(self, word: str) -> Float[Tensor, " d"] | None:
        """Of norm 1 for a word that is one token, else shorter: its pieces tell less. None for what
        is no word of content."""
        if word not in self._words:
            self._words[word] = self._made(word) if _is_word(word) else None
        return self._words[word]

    def _spelt(self, word: str) -> list[Tensor]:
        """Its vectors, with a capital and without: of those spellings that are one token, or else
        of the word as it is."""
        spellings = dict.fromkeys((word, word.lower(), word.capitalize()))
        single = [w for w in spellings if len(self._ids_of(f" {w}")) == 1]
        vectors = (self._vector(w) for w in single or [word])
        return [v for v in vectors if v is not None]

    def _made(self, word: str) -> Tensor | None:
        ids = list(self._ids_of(f" {word}"))
        return self._of(ids).mean(dim=0) if ids else None

    def _of(self, ids: list[int]) -> Float[Tensor, "n d"]:
        """The vectors of tokens, of norm 1."""
        rows = self._table[torch.tensor(ids, device=self._table.device)].float().cpu() - self._mean
        return nn.functional.normalize(rows - rows @ self._common @ self._common.T, dim=-1)


def _counts(store: FeatureStore) -> dict[int, Counter[str]]:
    """{latent: the tokens that its strongest examples fire on}."""
    import pyarrow.compute as pc

    firings = store.firings(pc.field("kind") == "top")
    counts: dict[int, Counter[str]] = {}
    for latent, token in zip(firings.latent, firings.token, strict=True):
        counts.setdefault(latent, Counter())[token] += 1
    return counts


def words_of(text: str) -> list[str]:
    """The different words of content in a text, in their order."""
    words = re.findall(r"[^\W\d_]+", text)
    return list(dict.fromkeys(word for word in words if _is_word(word)))


def _is_particle(token: str) -> bool:
    return token.strip().isalpha() and not _is_word(token.strip())


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
