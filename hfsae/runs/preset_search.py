"""Presets that work: latents, strengths and prompts that visibly steer texts, found by trying.

    candidates   latents whose examples fire on few words; and those with a label
    screen       one pass, a row for each: how much likelier do its words become as the next token?
                 And of the best the largest strength at which this token stays within the bound
    try          texts at this strength, of each prompt and seed, read again by the model as it is:
                 does the latent fire on more of their tokens than on texts without steering?
    confirm      the texts that the app writes, with other seeds: on all of them, or it is dropped
    test         the text that is shown: does the model as it is find it as likely as it expects?

So a text counts as steered if it is about what the latent fires on, whatever words it has for that.
Bounds: KL from the model as it is in nats a token, the share of sequences of three tokens that
recur (see `hfsae.steering`), and `max_surprise`.
"""

import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.token_text import tokenise
from ..features import FeatureStore
from ..features.labels import read_labels
from ..features.search import content_word
from ..io.checksums import sealed, stamp
from ..io.errors import Refused
from ..io.file_names import PRESETS, PRESETS_SEARCH
from ..io.files import parse_json, write_whole
from ..lm import Moment, activations_read, cast_for, contract, intervene, special_ids, unspared
from ..models import SAE
from ..models.fingerprint import refuse_values_of_others
from ..ops import kl_of_logs
from ..steering import SeededSampling, repetition, steer
from ..steering.pair import Pair, Sampling, generate_pair
from ..steering.strength import sampled_kl
from .arguments import PresetArguments
from .inputs import Job

logger = logging.getLogger(__name__)
PROMPTS = (
    "The story is about",
    "Once upon a time there was a",
    "My favourite thing to do is",
    "Today I want to tell you about",
)
SEEDS = (16, 17, 18)
"""The first is the app's."""
_FIRING = 0.3  # of a latent's largest activation: tokens from there on are about it
_TOGETHER, _LOGITS = 4, 2**30  # candidates whose texts are one batch; bytes of its logits
_DENSITIES = (1e-4, 0.02)  # often enough to have examples, and not on every page
_SHORTEST = 3  # letters of a word that means something
_COMMON = 0.01  # of all latents: words in the examples of more are function words
_CLEAR = 0.5  # of the strongest examples that fire on a candidate's words
_ROWS = 32  # candidates screened in one pass
_CLOSELY = 3  # so many times n_candidates are screened at every strength
_SCREENED = 2.0  # the strength at which all are
_NEXT = 1.2  # times max_kl is what the token after a prompt may differ: texts differ less
_SCREENING, _CLOSELY_BY, _TRYING = 0.2, 0.35, 0.6  # of the time, by when each part ends


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

    def each_steered(
        self, latents: Sequence[int], strengths: float | Sequence[float]
    ) -> AbstractContextManager[None]:
        """The block in which each row of a batch has one latent added, as by `steered`."""
        maxima = self.store.max_activations
        refuse_values_of_others(maxima, self.sae.W_dec, "max_activations")
        largest = maxima[latents].to(self.sae.W_dec)
        amounts = torch.as_tensor(strengths).to(largest) * largest
        added = (amounts[:, None] * self.sae.W_dec[latents].detach())[:, None]
        spared = special_ids(self.lm)

        def write(moment: Moment) -> Tensor:
            new = moment.target + (added * self.sae.row_factor(moment.source)).to(moment.target)
            is_changed = unspared(moment.input_ids, spared).to(new.device)
            return new.where(is_changed[..., None], moment.target)

        return intervene(self.lm, self.sae, write)

    def ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt."""
        bos = self.sae.config.bos != "none"
        return tokenise(self.tokenizer, prompt, bos=bos, max_tokens=512).ids


class Candidate(NamedTuple):
    """A latent, and the words that it stands for, in small letters, the commonest first."""

    latent: int
    words: tuple[str, ...]
    strength: float = 0.0
    """at which its texts are written"""
    raised: float = 0.0
    """nats: what its words contribute to the KL of the next token"""


class Attempt(NamedTuple):
    """A candidate at one prompt."""

    candidate: Candidate
    prompt: str
    kl: float
    """mean over the texts of all prompts"""
    repetition: float
    """largest of the texts"""
    hits: float
    """tokens of a text on which the latent fires, mean; less those without steering"""
    n_seeds: int
    """texts in which it fires on more tokens than without steering"""
    surprise: float = 0.0
    """`surprise_of` the texts of all prompts, mean"""


@torch.no_grad()
def plain_texts(model: Model, n_tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    """The prompts with each seed, one row each, and their texts [rows, n_tokens] without
    steering."""
    rows = [model.ids(prompt) for prompt in PROMPTS for _ in SEEDS]
    longest = max(map(len, rows))
    pad = model.tokenizer.pad_token_id or 0
    tokens = {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
    }
    _, plain = sampled_kl(model.lm, tokens, nullcontext(), n_tokens, _sampling())
    return tokens, plain


@torch.no_grad()
def surprise_of(model: Model, prompt: str, text: str) -> float:
    """How much less likely the model as it is finds a text behind a prompt than it expects, nats a
    token: minus its log-probability, less the entropy of the predictions along it. Of texts drawn
    from the model at temperature 1 the mean is 0."""
    row = torch.tensor([model.ids(prompt)])
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    tokens = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    return float(surprises(model, tokens, ids)) if ids.numel() else 0.0


def surprises(model: Model, tokens: Mapping[str, Tensor], ids: Tensor) -> Float[Tensor, " rows"]:
    """`surprise_of`, of texts [rows, n] behind their prompts."""
    whole = torch.cat([tokens["input_ids"], ids], dim=1).to(model.lm.device)
    mask = torch.cat([tokens["attention_mask"], torch.ones_like(ids)], dim=1).to(model.lm.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    n = ids.shape[1]
    logits = model.lm(input_ids=whole, attention_mask=mask, position_ids=positions).logits
    more = []
    for row, new in zip(logits, whole, strict=True):  # logits may be large: row by row
        log = row[-n - 1 : -1].float().log_softmax(-1)
        entropy = -(log.exp() * log).sum(-1)
        more.append((-log.gather(-1, new[-n:, None])[:, 0] - entropy).mean())
    return torch.stack(more).cpu()


def texts_at_once(vocab_size: int, n_tokens: int) -> int:
    """Candidates whose texts are written in one batch: fewer for a large vocabulary."""
    each = 4 * len(PROMPTS) * len(SEEDS) * n_tokens * vocab_size
    return max(1, min(_TOGETHER, _LOGITS // each))


def _sampling(repeats: int = 1) -> SeededSampling:
    """The same random numbers at each call, others in each row of texts."""
    return SeededSampling(SEEDS[0], Sampling.temperature, repeats)


@torch.no_grad()
def attempts_of(
    model: Model,
    some: Sequence[Candidate],
    texts: tuple[Mapping[str, Tensor], Tensor],
    n_tokens: int,
) -> Iterator[list[Attempt]]:
    """Each candidate at all prompts; all texts are written at once.

    Args:
        texts: as `plain_texts` gives them.
    """
    prompts, plain = texts
    n_rows = len(plain)
    tokens = {name: rows.repeat(len(some), 1) for name, rows in prompts.items()}
    each = [candidate for candidate in some for _ in range(n_rows)]
    block = model.each_steered([c.latent for c in each], [c.strength for c in each])
    how, cached = _sampling(len(some)), not model.sae.config.needs_whole_text
    kls, generated = sampled_kl(model.lm, tokens, block, n_tokens, how, use_cache=cached)
    surprise = surprises(model, tokens, generated)
    parts = (each.split(n_rows) for each in (kls, generated, surprise))
    for candidate, kl, rows, surprise in zip(some, *parts, strict=True):
        before = firings(model, candidate.latent, plain)
        after = firings(model, candidate.latent, rows)
        made = []
        for i, prompt in enumerate(PROMPTS):
            part = slice(i * len(SEEDS), (i + 1) * len(SEEDS))
            gains = [new - old for new, old in zip(after[part], before[part], strict=True)]
            again = max(repetition(row[None]) for row in rows[part])
            hits, n_seeds = sum(gains) / len(gains), sum(gain > 0 for gain in gains)
            numbers = float(kl.mean()), again, hits, n_seeds, float(surprise.mean())
            made.append(Attempt(candidate, prompt, *numbers))
        yield made


def firings(model: Model, latent: int, ids: Tensor) -> list[int]:
    """On how many tokens of each row [rows, n] the latent fires, read without steering."""
    x = activations_read(model.lm, model.sae.config, input_ids=ids.to(model.lm.device))
    latents = model.sae.encode(cast_for(model.sae, x.flatten(0, 1)))
    activation = latents[:, latent].float().cpu().reshape(ids.shape)
    about = activation >= _FIRING * float(model.store.max_activations[latent])
    return about[:, 1:].sum(1).tolist()  # the first token's activations are outliers


def find_presets(
    model: Model,
    labels: Mapping[int, str],
    args: PresetArguments = PresetArguments(),
    progress: Callable[[str], object] = logger.info,
    tick: Callable[[str, int, int], object] = lambda *_: None,
) -> tuple[list[dict[str, Any]], list[Attempt]]:
    """Presets of an SAE that work with all of three seeds each: those of labelled latents first,
    then the most striking; and all attempts.

    Args:
        labels: {latent: label}: these latents are candidates whatever they promote, and their
            labels are the presets' names.
        progress: called with a line for each candidate.
        tick: called before each batch with the part of the search, how many latents it is done
            with, and of how many; an error that it raises ends the search.

    Raises:
        ValueError: a number in args is out of its range, or the model is not the SAE's own.
    """
    args.check()
    contract.check_model(model.lm, model.sae, model.tokenizer)
    start, seconds = time.monotonic(), args.max_seconds

    def is_past(share: float) -> bool:
        """Whether that share of the time that is given was used."""
        return seconds is not None and time.monotonic() - start > share * seconds

    pool = candidates(model.store, labels)
    chosen = _choose(model, pool, labels, args, is_past, tick)
    progress(f"{len(pool)} candidates screened; {len(chosen)} are tried")
    attempts: list[Attempt] = []
    texts = plain_texts(model, args.n_tokens)
    at_once = texts_at_once(model.lm.config.get_text_config().vocab_size, args.n_tokens)
    for i in range(0, len(chosen), at_once):
        if is_past(_TRYING):
            break
        tick("latents tried", i, len(chosen))
        for tried in attempts_of(model, chosen[i : i + at_once], texts, args.n_tokens):
            attempts += tried
            progress(_line(max(tried, key=_striking)))
    presets: list[dict[str, Any]] = []
    working = [attempt for attempt in attempts if works(attempt, args)]
    working.sort(key=lambda a: (a.candidate.latent in labels, _striking(a)), reverse=True)
    for attempt in working:
        if len(presets) == args.n_presets or is_past(1.0):
            break
        if any(str(attempt.candidate.latent) in preset["latents"] for preset in presets):
            continue
        tick("presets confirmed", len(presets), args.n_presets)
        if preset := _confirm(model, attempt, labels, args):
            progress(f"works with {len(SEEDS)} of {len(SEEDS)} seeds: {_line(attempt)}")
            presets.append(preset)
    return presets, attempts


def candidates(store: FeatureStore, labels: Mapping[int, str]) -> list[Candidate]:
    """Latents that fire on few words, most of which are words of content; labelled ones too."""
    import pyarrow.compute as pc

    firings = store.firings(pc.field("kind") == "top")
    words: dict[int, Counter[str]] = {}
    for latent, token in zip(firings.latent, firings.token, strict=True):
        words.setdefault(latent, Counter())[content_word(token, _SHORTEST)] += 1
    latents_of = Counter(word for counts in words.values() for word in counts)
    most, density, rows = max(12, _COMMON * len(words)), store.densities.tolist(), []
    for latent, counts in words.items():
        meant = [w for w, _ in counts.most_common() if w and latents_of[w] <= most]
        share = sum(counts[w] for w in meant[:3]) / counts.total()
        fits = _DENSITIES[0] <= density[latent] <= _DENSITIES[1] and share >= _CLEAR
        label = re.findall(r"\w{4,}|^\w{3}$", labels.get(latent, "").casefold())
        if fits or label:
            rows.append(Candidate(latent, tuple(dict.fromkeys([*label, *meant[:4]]))))
    return rows


def _choose(
    model: Model,
    pool: Sequence[Candidate],
    labels: Mapping[int, str],
    args: PresetArguments,
    is_past: Callable[[float], bool],
    tick: Callable[[str, int, int], object],
) -> list[Candidate]:
    """The candidates to try, each with its strength: labelled ones, then those whose words become
    the likeliest."""

    def best(n: int) -> list[Candidate]:
        named = [c for c in pool if c.latent in labels]
        return named + [c for c in pool if c.latent not in labels and c.raised > 0][:n]

    def screen(prompts: Sequence[str], strengths: Sequence[float], by: float) -> list[Candidate]:
        rows = list[Candidate]()
        for some in (pool[i : i + _ROWS] for i in range(0, len(pool), _ROWS)):
            if is_past(by):
                break
            tick("latents screened", len(rows), len(pool))
            rows += _screen_rows(model, some, prompts, strengths, _NEXT * args.max_kl)
        return sorted(rows, key=lambda c: -c.raised)

    pool = screen(PROMPTS[:1], (_SCREENED,), _SCREENING)
    pool = best(_CLOSELY * args.n_candidates)
    pool = screen(PROMPTS[:2], sorted(args.strengths), _CLOSELY_BY)
    return best(args.n_candidates)


@torch.no_grad()
def _screen_rows(
    model: Model,
    some: Sequence[Candidate],
    prompts: Sequence[str],
    strengths: Sequence[float],
    max_kl: float,
) -> list[Candidate]:
    """Candidates at the largest of the strengths, which ascend, at which the next token after a
    prompt has a mean KL of at most `max_kl`; at the smallest, if it has that at none."""
    words = []  # by candidate, the first tokens of its words
    for candidate in some:
        forms = [f" {form}" for w in candidate.words for form in (w, w.capitalize())]
        ids = [model.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
        words.append(sorted({own[0] for own in ids}))
    best = list[Candidate]()
    for strength in strengths:
        # means over prompts, nats: what its words contribute to the next token's KL, and that KL
        found = torch.zeros(len(some), 2)
        for prompt in prompts:
            row = torch.tensor([model.ids(prompt)], device=model.lm.device)
            (plain,) = _logs(model, row)
            with model.each_steered([c.latent for c in some], strength):
                steered = _logs(model, row.expand(len(some), -1))
            for i, tokens in enumerate(words):
                log = steered[i, tokens].logsumexp(0)
                found[i, 0] += float(log.exp() * (log - plain[tokens].logsumexp(0)))
            found[:, 1] += kl_of_logs(steered, plain.expand_as(steered)).cpu()
        means = (found / len(prompts)).tolist()
        rows = zip(some, best or some, means, strict=True)
        best = [
            c._replace(strength=strength, raised=raised) if kl <= max_kl or not best else former
            for c, former, (raised, kl) in rows
        ]
    return best


def _logs(model: Model, ids: Tensor) -> Tensor:
    """Of the next token's probabilities [rows, vocab]."""
    return model.lm(input_ids=ids, use_cache=False).logits[:, -1].float().log_softmax(-1)


def works(attempt: Attempt, args: PresetArguments) -> bool:
    """Whether steering was seen with every seed, in texts near the model's own that do not go
    round."""
    is_within = attempt.kl <= args.max_kl and attempt.repetition <= args.max_repetition
    return is_within and attempt.n_seeds == len(SEEDS)


def _striking(attempt: Attempt) -> float:
    return attempt.n_seeds * min(attempt.hits, 4.0) - attempt.kl


def _confirm(
    model: Model,
    attempt: Attempt,
    labels: Mapping[int, str],
    args: PresetArguments,
) -> dict[str, Any] | None:
    """The preset, with the app's own texts of the first seed, if these seeds show it too."""
    texts, (latent, words, strength, _) = list[Pair](), attempt.candidate
    for seed in SEEDS:
        *_, pair = generate_pair(
            model.lm,
            model.tokenizer,
            model.ids(attempt.prompt),
            lambda phase: model.steered(latent, strength),
            Sampling(seed=seed),
            cached=not model.sae.config.needs_whole_text,
        )
        texts.append(pair)
        ids = (torch.tensor([new]) for new in (pair.plain_ids, pair.steered_ids))
        before, after = (firings(model, latent, row)[0] for row in ids)
        again = repetition(torch.tensor([pair.steered_ids]))
        if after <= before or (pair.kl or 0) > args.max_kl or again > args.max_repetition:
            return None
    plain, steered, kl = texts[0].plain, texts[0].steered, texts[0].kl or 0.0
    surprise = surprise_of(model, attempt.prompt, steered)
    if surprise > args.max_surprise:
        return None
    return {
        "name": labels.get(latent) or words[0],
        "prompt": attempt.prompt,
        "latents": {str(latent): strength},
        "mode": "add",
        "seeds": len(SEEDS),
        "plain": plain,
        "steered": steered,
        "kl": round(kl, 3),
        "surprise": round(surprise, 3),
    }


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


def table(presets: Sequence[Mapping[str, Any]], attempts: Sequence[Attempt]) -> str:
    """Markdown: the best attempt of each latent, the most striking first."""
    best: dict[int, Attempt] = {}
    for attempt in sorted(attempts, key=_striking):
        best[attempt.candidate.latent] = attempt
    lines = [
        "| latent | words | prompt | strength | seeds | tokens more | KL | repetition | surprise | "
        "offered |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    offered = {latent for preset in presets for latent in preset["latents"]}
    for a in sorted(best.values(), key=_striking, reverse=True):
        latent, words, strength, _ = a.candidate
        mark = "yes" if str(latent) in offered else ""
        lines.append(
            f"| {latent} | {', '.join(words)} | {a.prompt} | {strength:g} | "
            f"{a.n_seeds} of {len(SEEDS)} | {a.hits:+.1f} | {a.kl:.2f} | {a.repetition:.0%} | "
            f"{a.surprise:+.2f} | {mark} |"
        )
    return "\n".join(lines)


def _line(a: Attempt) -> str:
    latent, words, strength, _ = a.candidate
    return (
        f"latent {latent} ({', '.join(words)}) at {strength:g} x: "
        f"{a.n_seeds} of {len(SEEDS)} seeds, {a.hits:+.1f} tokens, KL {a.kl:.2f}, surprise "
        f"{a.surprise:+.2f}"
    )


def stage_presets(job: Job) -> None:
    """Search presets as `hfsae presets` does, and write those that were found beside those that
    people wrote; and a record of the search, so that a finished run is not searched again."""
    folder, seconds = job.folder, job.recipe.sizes.presets
    model = Model(job.with_lm.lm, job.with_lm.tokenizer, job.sae, FeatureStore.load(folder))
    args = PresetArguments(max_seconds=seconds)
    again = f"`hfsae presets {folder}` looks longer"
    record = {"seconds": seconds, "latents_tried": 0, "names": list[str]()}
    try:
        with _bar(seconds) as tick:
            presets, attempts = find_presets(model, read_labels(folder), args, logger.debug, tick)
    except Refused as error:
        save_presets(folder, [])
        logger.info("note: presets cannot be found: %s; %s", error, again)
    else:
        save_presets(folder, presets)
        record["names"] = names = [preset["name"] for preset in presets]
        record["latents_tried"] = len({attempt.candidate.latent for attempt in attempts})
        said = "presets that work with three seeds each, of %d latents tried: %s; %s"
        logger.info(said, record["latents_tried"], ", ".join(names) or "none", again)
    record = sealed({**record, **stamp(folder), **(job.more or {})})
    write_whole(folder / PRESETS_SEARCH, json.dumps(record, indent=1) + "\n")


@contextmanager
def _bar(seconds: float) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar of the time that there is; gives what `find_presets` calls."""
    every, start = 0.2 if sys.stderr.isatty() else 15.0, time.monotonic()
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=seconds, desc="presets", bar_format=shape, mininterval=every) as bar:

        def tick(part: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{part}: {done} of {total}", refresh=False)
            bar.update(min(seconds, time.monotonic() - start) - bar.n)

        yield tick
