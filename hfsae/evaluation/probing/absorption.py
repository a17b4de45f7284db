"""First-letter absorption: words on which the latents of a letter are silent, and others speak.

Words of a vocabulary are read where their first letter is asked, a probe of the model's activations
says what there is to know of letters, and latents of SAEs, beside untrained ones, are held against
it.

Words are as in SAEBench 0.6.0: tokens of letters alone, with or without a space before; ten shown
pairs "{word} has the first letter: X", then the word, at which the activation is taken. Words in a
group share their shown pairs, which are read once.

Absorption is Chanin et al.'s, 2024 (arXiv:2409.14507), by both formulas of SAEBench 0.6.0. For a
word whose first letter a probe of the model's activations gets right, with p the probe's unit
direction, a_i the latents, c_i = cos(p, W_dec_i), and x the activation:

    full      all main latents silent, and the largest a_i c_i has c_i >= 0.025 and is at least
              0.4 of x . p, which is not negative
    fraction  A / (A + main), with main = sum of a_i c_i over main latents, A that of at most three
              others with c_i >= 0.1, no more than x . p - main; 0 if these three are less than 0.4
              of x . p, 1 if main <= 0

The main latents of a letter are those of a sparse probe: one more as long as its F1 rises by more
than 0.03. Where SAEBench draws shown words anew, activations here are those of the probe's test.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ...activations.harvest import refuse_not_finite
from ...lm import cache_name, capture
from ...models import SAE
from ..untrained import Untrained
from .arguments import LEAST_WORDS
from .regression import scikit_learn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRAIN_SHARE = 0.8
_WORD = re.compile(r" ?[A-Za-z]+")
_N_SHOWN = 10  # pairs before a word
_GROUP = 64  # words that share them, in one forward pass
LEAST_F1, LEAST_LETTERS = 0.6, 20
"""A letter counts from this F1 of the model's probe on; a report needs so many letters."""
_SILENT = 1e-8
_FULL_COSINE, _FRACTION_COSINE, _PROPORTION, _N_ABSORBING = 0.025, 0.1, 0.4, 3
_RISE, _MOST_MAIN = 0.03, 10
_LR, _END_LR, _EPOCHS = 1e-2, 1e-5, 50
CAUTION = (
    "Small language models and small SAEs say little here: SAEBench advises models of "
    "at least 1 billion parameters and SAEs of at least 16k latents. Where the F1 of "
    "the main latents is low, as it is for untrained ones, they stand for no letter, "
    "and the rate does not measure absorption"
)
ABOUT = (
    "Chanin et al. 2024 (arXiv:2409.14507), both formulas of SAEBench 0.6.0: of the words whose "
    "first letter a probe of the model's activations gets right, the share on which the letter's "
    "main latents are silent and another latent has 0.4 or more of the probe's projection (full), "
    "and the mean share of the projection of main and absorbing latents that the latter have "
    "(fraction); means over letters with 95 % bootstrap intervals over letters"
)


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
    sides = ids[:n_train], ids[n_train:]
    groups = [side[at : at + _GROUP] for side in sides for at in range(0, len(side), _GROUP)]
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    for group in groups:
        others = np.setdiff1d(ids[:n_train], group)  # words of the test are not shown
        shown = rng.choice(others, min(_N_SHOWN, len(others)), replace=False)
        before = shown_pairs(tokenizer, words, shown, bos=bos)
        for site, acts in _at_last(lm, before, torch.tensor(group), sites).items():
            parts[site].append(acts.float().cpu())
        progress(len(group))
    activations = {site: torch.cat(acts) for site, acts in parts.items()}
    refuse_not_finite(activations)
    keep = torch.ones(len(ids), dtype=torch.bool)
    for site, acts in activations.items():
        keep &= acts.norm(dim=-1) <= (norm_limits or {}).get(site, float("inf"))
    tokens = [words[int(i)] for i in ids[keep.numpy()]]
    letters = np.array([LETTERS.index(token.strip()[0].lower()) for token in tokens], dtype=int)
    activations = {site: acts[keep] for site, acts in activations.items()}
    return Words(tokens, letters, activations, int(keep[:n_train].sum()))


def shown_pairs(
    tokenizer: PreTrainedTokenizerBase, words: Mapping[int, str], shown: np.ndarray, *, bos: bool
) -> Int64[Tensor, " n"]:
    """The tokens before a word: pairs of the words with these ids, a line each, and a last line's
    beginning; a word's own token comes next."""

    def encoded(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids: list[Any] = [tokenizer.bos_token_id] if bos else []
    asked, line = encoded(" has the first letter:"), encoded("\n")
    for number in map(int, shown):
        letter = words[number].strip()[0].upper()
        ids += [*line, number, *asked, *encoded(f" {letter}")]
    return torch.tensor([*ids, *line])


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


def absorbed(
    latents: Float[Tensor, "n f"],
    cosines: Float[Tensor, " f"],
    projections: Float[Tensor, " n"],
    main: Sequence[int],
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """(full, fraction) of each word, for words with the main latents' letter.

    Args:
        latents: in units of directions of norm 1.
        cosines: of the latents' directions with the probe's.
        projections: of the activations on the probe's direction.
        main: indices of the letter's main latents.
    """
    along = latents * cosines
    is_main = torch.zeros(len(cosines), dtype=torch.bool)
    is_main[list(main)] = True
    top, index = along.max(dim=1)
    full = (latents[:, is_main] < _SILENT).all(dim=1) & (cosines[index] >= _FULL_COSINE)
    full &= (projections >= 0) & (top / projections >= _PROPORTION)
    can_absorb = ~is_main & (cosines >= _FRACTION_COSINE)
    others = along[:, can_absorb].clamp(min=0)
    absorbing = others.topk(min(_N_ABSORBING, others.shape[1]), dim=1).values.sum(dim=1)
    of_main = along[:, is_main].sum(dim=1)
    taken = torch.minimum(absorbing, projections - of_main)
    fraction = torch.where(of_main <= 0, 1.0, (taken / (taken + of_main)).clamp(0, 1))
    is_none = (of_main >= projections) | ~(absorbing / projections >= _PROPORTION)
    return full, torch.where(is_none, 0.0, fraction)


def fit(
    x: Float[Tensor, "n d"],
    classes: np.ndarray,
    *,
    batch: int,
    weight_decay: float,
    l1: float = 0.0,
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """(weights, biases) of logistic regressions, one class against the rest; a logit is x . weights
    + biases.

    SAEBench's probes: Adam, 50 epochs, positives weighted up to the negatives; from zeros.

    Args:
        classes: [n] places in the alphabet.
        batch: rows of a step.
        l1: factor on the sum of the absolute weights of a class, mean over classes.
    """
    y = F.one_hot(torch.from_numpy(classes), len(LETTERS)).to(x)
    n_positive = y.sum(dim=0).clamp(min=1)
    positive = (len(y) - n_positive) / n_positive
    weights = torch.zeros(len(LETTERS), x.shape[1], dtype=x.dtype, requires_grad=True)
    biases = torch.zeros(len(LETTERS), dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([weights, biases], lr=_LR, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, (_END_LR / _LR) ** (1 / _EPOCHS))
    generator = torch.Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            logits = x[rows] @ weights.T + biases
            loss = F.binary_cross_entropy_with_logits(logits, y[rows], pos_weight=positive)
            loss = loss + l1 * weights.abs().sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        decay.step()
    return weights.detach(), biases.detach()


class Truth(NamedTuple):
    """The probe of the model's activations, against which latents are held."""

    directions: Float[Tensor, "26 d"]
    """of unit norm"""
    is_right: np.ndarray
    """[test, 26] whether a word is of a letter and its score above 0"""
    f1: list[float]
    """of each letter, on the test's words"""

    @property
    def letters(self) -> list[int]:
        """Letters of which the probe knows enough."""
        return [letter for letter, value in enumerate(self.f1) if value > LEAST_F1]


def truth_of(words: Words, site: str) -> Truth:
    """Fit the probe on the training words, and score it on the others."""
    x, n = words.activations[site], words.n_train
    weights, biases = fit(x[:n], words.letters[:n], batch=64, weight_decay=1e-4)
    scores = (x[n:] @ weights.T + biases).numpy()
    is_so = words.letters[n:, None] == np.arange(len(LETTERS))
    f1 = partial(scikit_learn().metrics.f1_score, zero_division=0.0)
    f1s = [float(f1(is_so[:, k], scores[:, k] > 0)) for k in range(len(LETTERS))]
    return Truth(F.normalize(weights, dim=1), is_so & (scores > 0), f1s)


@torch.no_grad()
def letters_of(
    words: Words,
    site: str,
    truth: Truth,
    encode: Callable[[Tensor], Tensor],
    directions: Float[Tensor, "f d"],
) -> list[dict[str, Any]]:
    """Absorption of each letter of which the model's probe knows enough: `letter`; `n_words` of the
    test whose letter the probe gets right; its main `latents`; `f1` of the sparse probe on them;
    `full` and `fraction`.

    Args:
        encode: activations [n, d] to latents [n, f].
        directions: what a latent adds to the activation, times its value.
    """
    x, n = words.activations[site], words.n_train
    # Encoded twice, since all latents of a wide SAE may not fit into memory.
    parts = x.split(512)
    fires = torch.stack([(encode(part) != 0).any(dim=0) for part in parts]).any(dim=0)
    firing = fires.nonzero()[:, 0]
    latents = torch.cat([encode(part)[:, firing] for part in parts])
    directions = directions[firing].float().cpu()
    latents = latents * directions.norm(dim=1)
    along = truth.directions @ F.normalize(directions, dim=1).T  # [26, firing]
    with torch.enable_grad():
        sparse, _ = fit(latents[:n], words.letters[:n], batch=4096, weight_decay=1e-6, l1=1e-2)
    results = []
    for letter in truth.letters:
        main, main_f1 = main_latents(latents, words, letter, sparse[letter])
        is_right = torch.from_numpy(truth.is_right[:, letter])
        projections = x[n:][is_right] @ truth.directions[letter]
        own = {"letter": LETTERS[letter], "n_words": len(projections)}
        own |= {"latents": firing[main].tolist(), "f1": main_f1}
        result = absorbed(latents[n:][is_right], along[letter], projections, main)
        for name, part in zip(("full", "fraction"), result, strict=True):
            own[name] = float(part.double().mean())
        results.append(own)
    return results


def main_latents(
    latents: Float[Tensor, "n f"], words: Words, letter: int, weights: Float[Tensor, " f"]
) -> tuple[list[int], float]:
    """A letter's latents, and the F1 of a logistic regression on them on the test's words: those of
    the largest positive weights of the sparse probe, one more as long as F1 rises by more than
    0.03, at most ten."""
    sklearn = scikit_learn()
    is_so, n = words.letters == letter, words.n_train
    order = weights.argsort(descending=True, stable=True)
    order = order[: min(_MOST_MAIN, int((weights > 0).sum()))].tolist()
    best, main = 0.0, order[:1]
    for k in range(1, len(order) + 1):
        features = latents[:, order[:k]].numpy()
        model = sklearn.linear_model.LogisticRegression(max_iter=500, class_weight="balanced")
        model.fit(features[:n], is_so[:n])
        fires = model.decision_function(features[n:]) > 0
        value = float(sklearn.metrics.f1_score(is_so[n:], fires, zero_division=0.0))
        if k > 1 and not value > best + _RISE:
            break
        best, main = value, order[:k]
    return main, best


def first_letters(
    words: Words,
    saes: Mapping[str, SAE],
    untrained: str,
    controls: Mapping[str, Untrained],
    mean: Callable[[list[float]], Any],
) -> dict[str, Any]:
    """The record of absorption: what the probe at each site knows, and rows of SAEs and controls,
    or why there are none.

    Args:
        untrained: the name of the controls.
        controls: of each SAE.
        mean: of values over letters, with an interval.
    """
    sites = {name: sae.config.reads.only_site for name, sae in saes.items()}
    truths = {site: truth_of(words, site) for site in dict.fromkeys(sites.values())}
    rows = []
    for name, sae in saes.items():
        truth = truths[sites[name]]
        refused = None
        if (n := len(truth.letters)) < LEAST_LETTERS:
            refused = (
                f"a probe of the model's activations has an F1 above {LEAST_F1} for {n} of 26 "
                f"letters (mean F1 {np.mean(truth.f1):.2f}), and SAEBench asks for "
                f"{LEAST_LETTERS}: it is too weak a baseline for latents; more words (n_words), "
                "another site or a larger model may do"
            )
        elif sae.config.is_transcoder:
            refused = "latents of a transcoder write at another site than they read; give an SAE"
        elif (norm := sae.config.token_norm) != "none":
            refused = f"token_norm is {norm}: latents are not in the activation's unit"
        if refused is not None:
            rows.append({"features": name, "of": "", "refused": refused})
            continue

        def encode(x: Tensor, sae: SAE = sae) -> Tensor:
            return sae.encode(x.to(sae.W_dec)).float().cpu()

        control = controls[name]
        for features, of, coder, directions in (
            (name, "", encode, sae.W_dec.detach()),
            (untrained, name, control.encode, control.directions),
        ):
            letters = letters_of(words, sites[name], truth, coder, directions)
            row: dict[str, Any] = {"features": features, "of": of}
            for key, title in (("full", "full"), ("fraction", "fraction"), ("f1", "f1_of_main")):
                row[title] = mean([each[key] for each in letters])
            row["n_main"] = float(np.mean([len(each["latents"]) for each in letters]))
            rows.append({**row, "letters": letters})
    f1s = {site: dict(zip(LETTERS, truth.f1, strict=True)) for site, truth in truths.items()}
    n_words = {"train": words.n_train, "test": len(words.tokens) - words.n_train}
    return {"n_words": n_words, "probe_f1": f1s, "rows": rows, "about": ABOUT, "caution": CAUTION}


def no_letters(saes: Iterable[str], n_words: int) -> dict[str, Any]:
    """The record for a vocabulary with too few words."""
    reason = (
        f"the vocabulary has {n_words} tokens of the letters A to Z alone, and {LEAST_WORDS} are "
        "needed; give a model of a language with these letters"
    )
    rows = [{"features": name, "of": "", "refused": reason} for name in saes]
    about = {"about": ABOUT, "caution": CAUTION}
    return {"n_words": {"train": 0, "test": 0}, "probe_f1": {}, "rows": rows, **about}
