"""Presets that work: latents, strengths and prompts at which steering is seen, found by trying.

    candidates   latents whose examples fire on few words; and those with a label
    screen       one forward pass each: how much likelier the words become as the next token
    try          texts at each strength, of each prompt and seed, read again by the model as it
                 is: does the latent fire on more of their tokens than on texts without steering?
    confirm      the texts that the app writes, with other seeds: on all of them, or it is dropped

So a text counts as steered if it is about what the latent fires on, whatever words it has for that.
Bounds: KL from the model as it is in nats a token, and the share of sequences of three tokens that
recur (see `hfsae.steering`).
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.spelling import tokenise
from ..features import FeatureStore
from ..features.function_words import is_content
from ..lm import capture, cast_for, contract
from ..machine.files import parse_json, write_whole
from ..machine.names import PRESETS
from ..machine.refused import Refused
from ..machine.weights import stamp
from ..models import SAE
from ..steering import SeededSampling, repetition, steer
from ..steering.pair import Pair, Sampling, generate_pair
from ..steering.strength import sampled_kl

logger = logging.getLogger(__name__)

PROMPTS = (
    "The story is about",
    "Once upon a time there was a",
    "My favourite thing to do is",
    "Today I want to tell you about",
)
SEEDS = (16, 17, 18)
"""The first is the app's."""
_DENSITIES = (1e-4, 0.02)  # often enough to have examples, and not on every page
_SHORTEST = 3  # letters of a word that means something
_COMMON = 0.01  # of all latents: words in the examples of more are function words
_FIRING = 0.3  # of a latent's largest activation: tokens from there on are about it
_CLEAR = 0.5  # of the strongest examples that fire on a candidate's words


class PresetArguments(NamedTuple):
    """How far to search."""

    n_candidates: int = 24
    """latents whose texts are tried, of all that are screened"""
    n_presets: int = 6
    strengths: tuple[float, ...] = (1.5, 2.5)
    """of the largest activation"""
    max_kl: float = 1.2
    """beyond that, texts of a small model are hardly sentences"""
    max_repetition: float = 0.3
    n_tokens: int = 30

    def check(self) -> None:
        """Refuse numbers with which no preset can be found.

        Raises:
            ValueError: a number is out of its range.
        """
        for name, least in {"n_candidates": 0, "n_presets": 1}.items():
            if (value := getattr(self, name)) < least:
                raise Refused(f"{name} is {value}; it must be {least} or more")
        if not self.max_kl > 0:
            raise Refused(f"max_kl is {self.max_kl}; it must be larger than 0")
        if not 0 <= self.max_repetition <= 1:
            raise Refused(f"max_repetition is {self.max_repetition}; it must be from 0 to 1")


class Model(NamedTuple):
    """What is steered."""

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sae: SAE
    store: FeatureStore

    def steered(self, latent: int, strength: float) -> AbstractContextManager[None]:
        """The block in which a latent is added, in multiples of its largest activation."""
        largest = self.store.max_activations
        return steer(self.lm, self.sae, {latent: strength}, unit="max", max_activations=largest)

    def ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt."""
        bos = self.sae.config.bos != "none"
        return tokenise(self.tokenizer, prompt, bos=bos, max_tokens=512).ids


class Candidate(NamedTuple):
    """A latent, and the words that it stands for, in small letters, the commonest first."""

    latent: int
    words: tuple[str, ...]
    raised: float = 0.0
    """nats that steering adds to its words' log-probability as the next token"""


class Attempt(NamedTuple):
    """One strength at one prompt."""

    candidate: Candidate
    prompt: str
    strength: float
    kl: float
    """mean over the texts at this strength"""
    repetition: float
    """largest of the texts"""
    hits: float
    """tokens of a text on which the latent fires, mean; less those without steering"""
    n_seeds: int
    """texts in which it fires on more tokens than without steering"""


class Found(NamedTuple):
    """What a search found, and all that it tried."""

    presets: list[dict[str, Any]]
    attempts: list[Attempt]


def find_presets(
    model: Model,
    labels: Mapping[int, str],
    args: PresetArguments = PresetArguments(),
    progress: Callable[[str], object] = logger.info,
    tick: Callable[[str, int, int], object] = lambda *_: None,
) -> Found:
    """Presets of an SAE that work with all of three seeds each: those of labelled latents first,
    then the most striking.

    Args:
        labels: {latent: label}: these latents are candidates whatever they promote, and their
            labels are the presets' names.
        progress: called with a line for each candidate.
        tick: called before each candidate with the part of the search, how many it is done with,
            and of how many; an error that it raises ends the search.

    Raises:
        ValueError: a number in args is out of its range, or the model is not the SAE's own.
    """
    args.check()
    contract.hold(model.lm, model.sae, model.tokenizer)
    pool = _screened(model, candidates(model.store, labels), tick)
    chosen = [c for c in pool if c.latent in labels]
    chosen += [c for c in pool if c.latent not in labels and c.raised > 0][: args.n_candidates]
    progress(f"{len(pool)} candidates screened; {len(chosen)} are tried")
    attempts: list[Attempt] = []
    texts = _unsteered(model, args.n_tokens)
    for i, candidate in enumerate(chosen):
        tick("latents tried", i, len(chosen))
        attempts += _attempts(model, candidate, texts, args)
        best = max(attempts[-len(PROMPTS) * len(args.strengths) :], key=_striking)
        progress(f"{i + 1} of {len(chosen)}: {_line(best)}")
    presets = []
    working = [attempt for attempt in attempts if works(attempt, args)]
    working.sort(key=lambda a: (a.candidate.latent in labels, _striking(a)), reverse=True)
    for attempt in working:
        if len(presets) == args.n_presets:
            break
        if any(str(attempt.candidate.latent) in preset["latents"] for preset in presets):
            continue
        tick("presets confirmed", len(presets), args.n_presets)
        if preset := _confirmed(model, attempt, labels, args):
            progress(f"works with {len(SEEDS)} of {len(SEEDS)} seeds: {_line(attempt)}")
            presets.append(preset)
    return Found(presets, attempts)


def candidates(store: FeatureStore, labels: Mapping[int, str]) -> list[Candidate]:
    """Latents that fire on few words, most of which are words of content; labelled ones too."""
    import pyarrow.compute as pc

    firings = store.firings(pc.field("kind") == "top")
    words: dict[int, Counter[str]] = {}
    for latent, token in zip(firings.latent, firings.token, strict=True):
        words.setdefault(latent, Counter())[token.strip().casefold()] += 1
    latents_of = Counter(word for counts in words.values() for word in counts)
    most, density, rows = max(12, _COMMON * len(words)), store.densities.tolist(), []
    for latent, counts in words.items():
        meant = [
            word
            for word, _ in counts.most_common()
            if word.isalpha() and len(word) >= _SHORTEST and is_content(word)
            if latents_of[word] <= most
        ]
        share = sum(counts[w] for w in meant[:3]) / counts.total()
        fits = _DENSITIES[0] <= density[latent] <= _DENSITIES[1] and share >= _CLEAR
        label = re.findall(r"\w{4,}|^\w{3}$", labels.get(latent, "").casefold())
        if fits or label:
            rows.append(Candidate(latent, tuple(dict.fromkeys([*label, *meant[:4]]))))
    return rows


@torch.no_grad()
def _screened(
    model: Model, pool: Sequence[Candidate], tick: Callable[[str, int, int], object]
) -> list[Candidate]:
    """Candidates by how much likelier their words become, after a prompt, at twice the largest
    activation."""
    ids = torch.tensor([model.ids(PROMPTS[0])], device=model.lm.device)

    def logs() -> Tensor:
        return model.lm(input_ids=ids, use_cache=False).logits[0, -1].float().log_softmax(-1)

    plain, rows = logs(), []
    for i, candidate in enumerate(pool):
        tick("latents screened", i, len(pool))
        tokens = _first_tokens(model.tokenizer, candidate.words)
        with model.steered(candidate.latent, 2.0):
            raised = logs()[tokens].logsumexp(0) - plain[tokens].logsumexp(0)
        rows.append(candidate._replace(raised=float(raised)))
    return sorted(rows, key=lambda c: -c.raised)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    spelt = [f" {form}" for word in words for form in (word, word.capitalize())]
    return sorted({tokenizer(s, add_special_tokens=False)["input_ids"][0] for s in spelt})


class Texts(NamedTuple):
    """The prompts with each seed, one row each, and their texts without steering."""

    tokens: dict[str, Tensor]
    plain: Tensor
    """[rows, n_tokens]"""


@torch.no_grad()
def _unsteered(model: Model, n_tokens: int) -> Texts:
    rows = [model.ids(prompt) for prompt in PROMPTS for _ in SEEDS]
    longest = max(map(len, rows))
    pad = model.tokenizer.pad_token_id or 0
    tokens = {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
    }
    _, plain = sampled_kl(model.lm, tokens, nullcontext(), n_tokens, _sampling())
    return Texts(tokens, plain)


def _sampling() -> SeededSampling:
    """The same random numbers at each call, others in each row."""
    return SeededSampling(SEEDS[0], Sampling.temperature)


@torch.no_grad()
def _attempts(
    model: Model, candidate: Candidate, texts: Texts, args: PresetArguments
) -> list[Attempt]:
    """All strengths at all prompts; the texts of one strength are written at once."""
    latent, made = candidate.latent, []
    before = _firings(model, latent, texts.plain)
    for strength in args.strengths:
        block = model.steered(latent, strength)
        kl, generated = sampled_kl(model.lm, texts.tokens, block, args.n_tokens, _sampling())
        after = _firings(model, latent, generated)
        for i, prompt in enumerate(PROMPTS):
            part = slice(i * len(SEEDS), (i + 1) * len(SEEDS))
            gains = [new - old for new, old in zip(after[part], before[part], strict=True)]
            again = max(repetition(row[None]) for row in generated[part])
            hits, n_seeds = sum(gains) / len(gains), sum(gain > 0 for gain in gains)
            made.append(Attempt(candidate, prompt, strength, kl, again, hits, n_seeds))
    return made


def _firings(model: Model, latent: int, ids: Tensor) -> list[int]:
    """On how many tokens of each row [rows, n] the latent fires, read without steering."""
    site = model.sae.config.places[0]
    with capture(model.lm, [site], stop_early=True) as activations:
        model.lm(input_ids=ids.to(model.lm.device), use_cache=False)
    x = cast_for(model.sae, activations[site].flatten(0, 1))
    activation = model.sae.encode(x)[:, latent].float().cpu().reshape(ids.shape)
    about = activation >= _FIRING * float(model.store.max_activations[latent])
    return about[:, 1:].sum(1).tolist()  # the first token's activations are outliers


def works(attempt: Attempt, args: PresetArguments) -> bool:
    """Whether steering was seen with every seed, within the bounds."""
    within = attempt.kl <= args.max_kl and attempt.repetition <= args.max_repetition
    return within and attempt.n_seeds == len(SEEDS)


def _striking(attempt: Attempt) -> float:
    return attempt.n_seeds * min(attempt.hits, 4.0) - attempt.kl


def _confirmed(
    model: Model, attempt: Attempt, labels: Mapping[int, str], args: PresetArguments
) -> dict[str, Any] | None:
    """The preset, with the app's own texts of the first seed, if these seeds show it too."""
    texts = list(_written(model, attempt))
    latent, words, _ = attempt.candidate
    for pair in texts:
        ids = (torch.tensor([new]) for new in (pair.plain_ids, pair.steered_ids))
        before, after = (_firings(model, latent, row)[0] for row in ids)
        again = repetition(torch.tensor([pair.steered_ids]))
        if after <= before or (pair.kl or 0) > args.max_kl or again > args.max_repetition:
            return None
    plain, steered, kl = texts[0].plain, texts[0].steered, texts[0].kl or 0.0
    return {
        "name": labels.get(latent) or words[0],
        "prompt": attempt.prompt,
        "latents": {str(latent): attempt.strength},
        "mode": "add",
        "seeds": len(SEEDS),
        "plain": plain,
        "steered": steered,
        "kl": round(kl, 3),
    }


def _written(model: Model, attempt: Attempt) -> Iterator[Pair]:
    """The app's two texts with each seed."""
    latent, strength = attempt.candidate.latent, attempt.strength
    for seed in SEEDS:
        *_, pair = generate_pair(
            model.lm,
            model.tokenizer,
            model.ids(attempt.prompt),
            lambda phase: model.steered(latent, strength),
            Sampling(seed=seed),
        )
        yield pair


def save_presets(folder: Path, presets: Sequence[Mapping[str, Any]]) -> None:
    """Write presets.json: these, then those that people wrote. Found ones have "seeds", and the
    hash of the folder's weights."""
    path = folder / PRESETS
    before = parse_json(path) if path.is_file() else []
    if not isinstance(before, list):
        raise Refused(f"{path} holds no list of presets; move it away")
    kept = [p for p in before if not (isinstance(p, dict) and "seeds" in p)]
    found = [{**preset, **stamp(folder)} for preset in presets]
    write_whole(path, json.dumps([*found, *kept], indent=1, ensure_ascii=False) + "\n")


def table(found: Found) -> str:
    """Markdown: the best attempt of each latent, the most striking first."""
    best: dict[int, Attempt] = {}
    for attempt in sorted(found.attempts, key=_striking):
        best[attempt.candidate.latent] = attempt
    lines = [
        "| latent | words | prompt | strength | seeds | tokens more | KL | repetition | offered |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    offered = {latent for preset in found.presets for latent in preset["latents"]}
    for a in sorted(best.values(), key=_striking, reverse=True):
        latent, words, _ = a.candidate
        mark = "yes" if str(latent) in offered else ""
        lines.append(
            f"| {latent} | {', '.join(words)} | {a.prompt} | {a.strength:g} | "
            f"{a.n_seeds} of {len(SEEDS)} | {a.hits:+.1f} | {a.kl:.2f} | {a.repetition:.0%} | "
            f"{mark} |"
        )
    return "\n".join(lines)


def _line(a: Attempt) -> str:
    return (
        f"latent {a.candidate.latent} ({', '.join(a.candidate.words)}) at {a.strength:g} x: "
        f"{a.n_seeds} of {len(SEEDS)} seeds, {a.hits:+.1f} tokens, KL {a.kl:.2f}"
    )
