"""Actions that change the language model's behaviour: steering, and the strength for it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import partial
from itertools import count
from math import log2
from pathlib import Path
from typing import Annotated, cast

import torch

from .. import steering
from ..activations.token_text import Tokens, spell
from ..activations.tokens import special_ids
from ..io.errors import Refused
from ..steering import MODES, SCOPES, UNITS, Mode, Scope, Unit
from ..steering.pair import Sampling, generate_pair
from . import validate
from .address import Steer
from .inspect_actions import latent_of, weak_match
from .parts import cited
from .rows import Json, as_rows
from .subject import Exchange, Subject

LIMITS = {"max": 20.0, "norm": 500.0, "raw": 1e6}
"""Of strengths, by unit: multiples of the largest activation, per cent of the norm, raw."""
_SWEEP = {"max": (0.25, 0.5, 1.0, 2.0, 4.0), "norm": (5.0, 10.0, 20.0, 40.0, 80.0)}
_AROUND = {"max": (0.5, 1.0, 2.0), "norm": (10.0, 20.0, 40.0)}
"""Fewer, for one latent: somebody waits for its text."""
MAX_KL, MAX_REPETITION = 1.2, 0.3
"""The budget of a search for a strength: nats a token, beyond which texts of a small model are
hardly sentences, and a share of three-token sequences."""
SWEPT_MODES, SWEPT_UNITS = ("add", "clamp", "orthogonal"), tuple(_SWEEP)
KL, REPETITION = (0.01, 20), validate.SHARE
TEMPERATURE, N_NEW, PENALTY = (0, 5), (1, 256), (1, 5)
N_TRIED = 24
"""tokens of a trial"""
_REFINED = 1  # times that the gap between within and over budget is halved


def steer(
    subject: Subject,
    prompt: str,
    latents: str,
    mode: Annotated[str, MODES] = Steer.mode,
    unit: Annotated[str, UNITS] = Steer.unit,
    scope: Annotated[str, SCOPES] = Steer.scope,
    error_term: bool = Steer.error_term,
    chat: bool = Steer.chat,
    temperature: Annotated[float, TEMPERATURE] = Steer.temperature,
    max_new_tokens: Annotated[int, N_NEW] = Steer.max_new_tokens,
    repetition_penalty: Annotated[float, PENALTY] = Steer.repetition_penalty,
    seed: Annotated[int, validate.SEED] = Steer.seed,
) -> Iterator[Json]:
    """Continue a prompt twice with the same random numbers: unsteered, and steered.

    Args:
        prompt: the text to go on from, without a space at its end: most words begin with one.
        latents: which latents to steer and how strongly, at most 8: `12:1.5, sea:-2` is latent 12
            at 1.5, and at -2 the one that is named "sea" or that a search by this word finds first.
        mode: add: add the strength to the latent's activation; clamp: set it to the strength;
            scale: multiply it by the strength; ablate: set it to 0, whatever the strength;
            orthogonal: replace the component along its direction; cap: lower it to the strength at
            most.
        unit: of the strengths: max (multiples of a latent's largest activation: of some latents
            1 to 2 shows in the text, more breaks it), norm (per cent of the activation's norm) or
            raw (activation units).
        scope: which tokens to steer: all, those of the prompt, or those generated.
        error_term: keep what the SAE does not explain.
        chat: the prompt is a user's message in the model's chat template.
        temperature: 0 takes the likeliest token.
        max_new_tokens: length of the continuations.
        repetition_penalty: above 1, tokens that were there become less likely.
        seed: of the random numbers.

    Returns:
        latents (list[Latent]): those that are steered; "value" is the strength.
        notes (list[str]): of each word, which latent was taken for it, and whether none was found
            that is about it.
        plain (str): the continuation without steering.
        steered (str): the continuation with steering.
        n_plain (int): tokens of the continuation without steering.
        n_steered (int): tokens of the continuation with steering.
        kl (float | None): KL(steered || plain) of the next token, nats per generated token: the
            size of the effect; null until both texts are done.
        likelier (list | None): the tokens that steering made likelier, the most first: {token, id,
            plain, steered}, its mean probability as the next token along the steered text, without
            and with steering; null until both texts are done.
        less_likely (list | None): likewise those that steering made less likely.
        steered_tokens (list | None): each token of the steered text: {text, raised}, the nats that
            steering added to its log-probability; null until both texts are done.
        plain_repetition (float): share of three-token sequences that recur in the plain text.
        steered_repetition (float): the same of the steered text.
        done (bool): both texts are at their end.
    """
    settings = (mode, unit, scope, error_term, chat, temperature, max_new_tokens)
    how = Steer("", {}, *settings, repetition_penalty, seed)
    how, plain, steered = check(subject, prompt, latents, how)
    rows = as_rows(subject, [{"latent": i, "value": value} for i, value in how.latents.items()])
    notes = _notes(subject, latents)
    for texts in write(subject, how, plain, steered):
        yield {"latents": rows, "notes": notes, **texts}


def write(
    subject: Subject,
    how: Steer,
    plain: Tokens,
    steered: Tokens,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Json]:
    """`steer`, of what `check` returns, until it is stopped."""
    lm, tokenizer, _ = subject.language_model
    block, needs_whole_text = _block(subject, how), subject.sae.config.needs_whole_text
    if how.scope != "all" and needs_whole_text:
        raise Refused(
            f"scope is {how.scope!r}, but this SAE reads several sites and so the whole text in "
            "each pass: use the scope 'all'"
        )
    spare = set(special_ids(tokenizer))
    for pair in generate_pair(
        lm,
        tokenizer,
        steered.ids,
        lambda phase: block(how.latents) if how.scope in ("all", phase) else nullcontext(),
        Sampling(**{f.name: getattr(how, f.name) for f in fields(Sampling)}),
        stopped,
        plain_ids=plain.ids,
        cached=not needs_whole_text,
    ):
        raised = None
        if pair.raised is not None:  # at the end: of each token the nats that steering added to it
            new = zip(
                pair.steered_ids, spell(tokenizer, pair.steered_ids), pair.raised, strict=True
            )
            raised = [{"text": text, "raised": round(r, 3)} for i, text, r in new if i not in spare]
        likelier, less_likely = (
            None
            if shifts is None
            else [
                {
                    "token": str(tokenizer.decode([shift.token_id])),
                    "id": shift.token_id,
                    "plain": round(shift.plain, 5),
                    "steered": round(shift.steered, 5),
                }
                for shift in shifts
            ]
            for shifts in (pair.likelier, pair.less_likely)
        )
        yield {
            "plain": pair.plain,
            "steered": pair.steered,
            "n_plain": len(pair.plain_ids),
            "n_steered": len(pair.steered_ids),
            "kl": pair.kl,
            "likelier": likelier,
            "less_likely": less_likely,
            "steered_tokens": raised,
            "plain_repetition": steering.repetition(torch.tensor([pair.plain_ids])),
            "steered_repetition": steering.repetition(torch.tensor([pair.steered_ids])),
            "done": pair.done,
        }


def suggest_strength(
    subject: Subject,
    prompt: str,
    latents: str,
    mode: Annotated[str, SWEPT_MODES] = Steer.mode,
    unit: Annotated[str, SWEPT_UNITS] = Steer.unit,
    max_kl: Annotated[float, KL] = MAX_KL,
    max_repetition: Annotated[float, REPETITION] = MAX_REPETITION,
    scope: Annotated[str, SCOPES] = Steer.scope,
    error_term: bool = Steer.error_term,
    chat: bool = Steer.chat,
) -> Json:
    """The largest strength that leaves the text within a budget, found by trying.

    Args:
        prompt: the text to go on from; see steer.
        latents: the latents to steer, by index or by a word, and their proportions, which are kept,
            at most 8: `12:1, sea:-0.5`.
        mode: as for steer.
        unit: of the strengths: max (multiples of a latent's largest activation) or norm (per cent
            of the activation's norm).
        max_kl: how far next-token predictions may be from the unsteered model's, nats a token.
        max_repetition: share of three-token sequences that may recur.
        scope: which tokens to steer: all, prompt or generated.
        error_term: keep what the SAE does not explain.
        chat: the prompt is a user's message in the model's chat template.

    Returns:
        latents (dict): {latent: its strength}, to be given to steer as `latent:strength`.
        notes (list[str]): of each word, which latent was taken for it; see steer.
        strength (float): the largest of them; 0: no strength that was tried is within the budget.
        passed (bool): a larger strength was tried and is over the budget; false: a larger one than
            `strength` may be within it, too.
        trials (list): {strength, kl, repetition, within, text} of each that was tried.
    """
    how = Steer("", {}, mode, unit, scope, error_term, chat)
    found = sweep(subject, prompt, latents, how, max_kl, max_repetition)
    return {**found, "notes": _notes(subject, latents)}


def _notes(subject: Subject, latents: str) -> list[str]:
    """A sentence for each word of `latents`: which latent it stands for."""
    words = (part.partition(":")[0].strip() for part in latents.split(","))
    return [
        weak_match(subject, word) or f"{cited(word)} is taken as latent {latent_of(subject, word)}."
        for word in words
        if any(map(str.isalpha, word))
    ]


def sweep(
    subject: Subject,
    prompt: object,
    latents: object,
    how: Steer,
    max_kl: object = MAX_KL,
    max_repetition: object = MAX_REPETITION,
    progress: Callable[[int, int], object] = lambda done, n: None,
    only: int | None = None,
) -> Json:
    """`suggest_strength`, with progress (trials done, trials in all) before each trial: each is
    the beginning of the text that these settings give. Earlier messages are left out.

    Args:
        only: the latent to find a strength for, while the others keep theirs; None: for all.
    """
    validate.choice(how.mode, "mode", SWEPT_MODES)
    validate.choice(how.unit, "unit", SWEPT_UNITS)
    how, tokens, _ = check(subject, prompt, latents, how)
    scaled = {i: s for i, s in how.latents.items() if only in (None, i)}
    largest = max(map(abs, scaled.values()))
    if not largest:
        raise Refused(
            "all strengths are 0; give at least one latent another strength: their "
            "proportions are kept"
        )
    tried = (_SWEEP if only is None else _AROUND)[how.unit]
    strengths = [strength / largest for strength in tried]
    block, scope = _block(subject, how), cast(Scope, how.scope)
    doublings = int(log2(LIMITS[how.unit] / tried[-1]))
    n, done = 1 + len(strengths) + _REFINED, count(1)
    progress(0, n)
    suggestion = steering.suggest_strength(
        subject.lm,
        {"input_ids": torch.tensor([tokens.ids])},
        lambda by: block(how.latents | {i: by * s for i, s in scaled.items()}, scope=scope),
        strengths=strengths,
        doublings=doublings,
        max_kl=validate.number(max_kl, "max_kl", *KL),
        max_repetition=validate.number(max_repetition, "max_repetition", *REPETITION),
        n_tokens=N_TRIED,
        refine=_REFINED,
        seed=how.seed,
        temperature=how.temperature,
        repetition_penalty=how.repetition_penalty,
        use_cache=not subject.sae.config.needs_whole_text,
        progress=lambda trial: progress(at := next(done), max(n, at + 1)),
    )
    trials = [
        {
            "strength": trial.strength * largest,
            "kl": trial.kl,
            "repetition": trial.repetition,
            "within": trial.within,
            "text": str(subject.tokenizer.decode(trial.generated[0], skip_special_tokens=True)),
        }
        for trial in suggestion.trials
    ]
    strength = suggestion.strength
    kept = {str(i): s for i, s in how.latents.items() if i not in scaled}
    return {
        "latents": kept | {str(i): round(strength * s, 3) for i, s in scaled.items()},
        "strength": strength * largest,
        "passed": suggestion.passed,
        "trials": trials,
    }


def check(
    subject: Subject,
    prompt: object,
    latents: object,
    how: Steer,
    earlier: Sequence[Exchange] = (),
) -> tuple[Steer, Tokens, Tokens]:
    """A caller's latents (a mapping, or text such as `12:1.5, 7:-2`) and settings, valid, and the
    prompt as tokens, of the unsteered and of the steered text.

    Args:
        earlier: the conversation before the prompt, which is then a message in it.
    """
    mode = validate.choice(how.mode, "mode", MODES)
    unit = validate.choice(how.unit, "unit", UNITS)
    strengths = validate.strengths(
        latents, subject.d_sae, LIMITS[unit], partial(latent_of, subject), unit=unit
    )
    if unit == "max" and mode not in ("scale", "ablate"):
        if (largest := subject.largest()) is None:
            raise Refused(
                "the largest activations are not known, as there is no feature store; use the "
                "unit norm, per cent of the activation's norm"
            )
        if silent := [latent for latent in strengths if largest[latent] == 0]:
            raise Refused(
                f"latent {silent[0]} never fired, so it has no largest activation; use the unit "
                "norm"
            )
    validate.choice(how.scope, "scope", SCOPES)
    validate.flag(how.error_term, "error_term")
    if earlier:
        plain, steered = subject.conversations(earlier, prompt)
    else:
        plain = steered = subject.tokens(prompt, how.chat)
    penalty = validate.number(how.repetition_penalty, "repetition_penalty", *PENALTY)
    how = replace(
        how,
        latents=strengths,
        max_new_tokens=validate.whole(how.max_new_tokens, "max_new_tokens", *N_NEW),
        temperature=validate.number(how.temperature, "temperature", *TEMPERATURE),
        repetition_penalty=penalty,
        seed=validate.whole(how.seed, "seed", *validate.SEED),
    )
    return how, plain, steered


def direction(subject: Subject, latent: int) -> Path:
    """A file with a latent's decoder row, to add to activations elsewhere."""
    kind = "steering" if subject.unit.is_text else "direction"
    path = subject.directions / f"{kind}-{latent}.safetensors"
    return steering.save_steering_vector(path, subject.sae, {latent: 1.0}, unit="raw")


def _block(subject: Subject, how: Steer) -> Callable[..., AbstractContextManager[None]]:
    """`hfsae.steer` with these settings, of strengths, and of the option scope."""
    lm, tokenizer, _ = subject.language_model
    return partial(
        steering.steer,
        lm,
        subject.sae,
        mode=cast(Mode, how.mode),
        unit=cast(Unit, how.unit),
        max_activations=subject.largest(),
        error_term=how.error_term,
        spare_tokens=special_ids(tokenizer),
    )
