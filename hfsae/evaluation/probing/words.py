"""Words of a vocabulary, and what a language model makes of each where its first letter is asked.

As in SAEBench 0.6.0: tokens of letters alone, with or without a space before; ten shown pairs
"{word} has the first letter: X", then the word, at which the activation is taken. Words in a group
share their shown pairs, which are read once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ...activations.harvest import refuse_not_finite
from ...lm import cache_name, capture

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRAIN_SHARE = 0.8
_WORD = re.compile(r" ?[A-Za-z]+")
_N_SHOWN = 10  # pairs before a word
_GROUP = 64  # words that share them, in one forward pass


class Words(NamedTuple):
    """Words in random order, with the activations at them."""

    tokens: list[str]
    letters: np.ndarray
    """[n] of each word's first letter the place in the alphabet"""
    activations: dict[str, Float[Tensor, "n _"]]
    """by site, float32"""
    n_train: int
    """of the first words, on which probes are fitted; the others are for the test"""


def words_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens of a vocabulary that are of letters A to Z alone, a space before them or not."""
    special, words = {*tokenizer.all_special_ids}, {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = tokenizer.convert_tokens_to_string([token])
        if token.startswith("▁") and not text.startswith(" "):
            text = f" {text}"  # SentencePiece drops the space of a first token
        if number not in special and _WORD.fullmatch(text):
            words[number] = text
    return words


@torch.no_grad()
def read_words(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sites: Sequence[str],
    *,
    n_words: int,
    bos: bool,
    seed: int,
    norm_limits: Mapping[str, float] | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> Words:
    """Read words drawn at random from the vocabulary, each behind ten shown pairs of other words.

    Args:
        n_words: at most; a vocabulary may have fewer.
        bos: begin each text with the tokenizer's BOS token.
        norm_limits: by site, the largest norm of a kept activation; other words are left out.
        progress: called with the number of further words.
    """
    words = words_of(tokenizer)
    rng = np.random.default_rng(seed)
    ids = rng.permutation([*words])[:n_words]
    n_train = int(TRAIN_SHARE * len(ids))
    texts = _Texts(tokenizer, words, bos)
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    for group in [*_groups(ids[:n_train]), *_groups(ids[n_train:])]:
        others = np.setdiff1d(ids[:n_train], group)  # words of the test are not shown
        shown = rng.choice(others, min(_N_SHOWN, len(others)), replace=False)
        for site, acts in _at_last(lm, texts.before(shown), torch.tensor(group), sites).items():
            parts[site].append(acts.float().cpu())
        progress(len(group))
    activations = {site: torch.cat(acts) for site, acts in parts.items()}
    refuse_not_finite(activations)
    return _kept([words[int(i)] for i in ids], activations, n_train, norm_limits or {})


def _groups(ids: np.ndarray) -> list[np.ndarray]:
    return [ids[start : start + _GROUP] for start in range(0, len(ids), _GROUP)]


class _Texts:
    """The tokens before a word."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, words: Mapping[int, str], bos: bool
    ) -> None:
        self._words = words
        self._first: list[Any] = [tokenizer.bos_token_id] if bos else []

        def encoded(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        self._asked, self._line = encoded(" has the first letter:"), encoded("\n")
        self._answers = {letter: encoded(f" {letter.upper()}") for letter in LETTERS}

    def before(self, shown: np.ndarray) -> Int64[Tensor, " n"]:
        """Pairs of the words with these ids, a line each, and a last line's beginning; a word's own
        token comes next."""
        ids = [*self._first]
        for number in map(int, shown):
            letter = self._words[number].strip()[0].lower()
            ids += [*self._line, number, *self._asked, *self._answers[letter]]
        return torch.tensor([*ids, *self._line])


def _at_last(
    lm: PreTrainedModel, before: Tensor, last: Tensor, sites: Sequence[str]
) -> dict[str, Float[Tensor, "n _"]]:
    """Activations at each last token, behind the same tokens; what these need is computed once
    where the model has a cache of keys and values."""
    before, last = before.to(lm.device), last.to(lm.device)[:, None]
    cache = None if getattr(lm, "_is_stateful", False) else DynamicCache()
    if cache is not None:
        more = {cache_name(lm): cache, "use_cache": True}
        with capture(lm, sites, stop_early=True):
            lm(input_ids=before[None], **more)
        if cache.get_seq_length() == len(before):
            cache.batch_repeat_interleave(len(last))
            with capture(lm, sites, stop_early=True) as acts:
                lm(input_ids=last, **more)
            return {site: acts[site][:, -1] for site in sites}
    rows = torch.cat([before.expand(len(last), -1), last], dim=1)
    with capture(lm, sites, stop_early=True) as acts:
        lm(input_ids=rows, use_cache=False)
    return {site: acts[site][:, -1] for site in sites}


def _kept(
    tokens: list[str], activations: dict[str, Tensor], n_train: int, limits: Mapping[str, float]
) -> Words:
    keep = torch.ones(len(tokens), dtype=torch.bool)
    for site, acts in activations.items():
        keep &= acts.norm(dim=-1) <= limits.get(site, float("inf"))
    kept = [token for token, is_kept in zip(tokens, keep.tolist(), strict=True) if is_kept]
    letters = np.array([LETTERS.index(token.strip()[0].lower()) for token in kept], dtype=int)
    activations = {site: acts[keep] for site, acts in activations.items()}
    return Words(kept, letters, activations, int(keep[:n_train].sum()))
