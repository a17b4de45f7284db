"""Actions that change what the language model does: steering, its strength, and why this token."""

import atexit
import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from ..activations.tokens import special_ids
from ..attribution import Attribution, Objective, attribute, logit
from ..features.inspection import Tokens
from ..steering import (
    MODES,
    SCOPES,
    UNITS,
    Mode,
    Scope,
    Unit,
    repetition,
    save_steering_vector,
    steer,
    suggest_strength,
)
from ..steering.pair import Pair, Phase, Sampling, generate_pair
from . import validate
from .base import SHOWN, Json
from .look import Look
from .subject import Subject

LIMITS = {"max": 20.0, "norm": 500.0, "raw": 1e6}
"""Of strengths, by unit: multiples of the largest activation, per cent of the norm, raw."""
_SWEEP = {"max": (0.25, 0.5, 1.0, 2.0, 4.0), "norm": (5.0, 10.0, 20.0, 40.0, 80.0)}
_REFINED = 1  # times that the gap between within and over budget is halved
_ABLATED = 4  # in the first answer; the others one by one, when they are asked for
_CANDIDATES = 8
_MOST_EXACT_BYTES = 4e9  # of a second copy of the model in float32


class Settings(NamedTuple):
    """Checked settings of a steering."""

    tokens: Tokens
    latents: dict[int, float]
    mode: Mode
    unit: Unit
    scope: Scope
    error_term: bool


class Act(Look):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._copying = threading.Lock()

    def steer(
        self,
        prompt: str,
        latents: str,
        mode: str = "add",
        unit: str = "max",
        scope: str = "all",
        error_term: bool = True,
        chat: bool = False,
        temperature: float = 0.7,
        max_new_tokens: int = 40,
        repetition_penalty: float = 1.1,
        seed: int = 16,
    ) -> Iterator[Json]:
        """Continue a prompt twice with the same random numbers: as the model is, and steered.

        Args:
            prompt: the text to go on from.
            latents: what to steer and how strongly, as `12:1.5, 7:-2`.
            mode: add, clamp, scale, ablate, orthogonal (set the component along the direction) or
                cap.
            unit: of the strengths: max (multiples of a latent's largest activation), norm (per cent
                of the activation's norm) or raw.
            scope: which tokens to steer: all, prompt or generated.
            error_term: keep what the SAE does not explain.
            chat: the prompt is a user's message in the model's chat template.
            temperature: 0 takes the likeliest token.
            max_new_tokens: length of the continuations.
            repetition_penalty: above 1, tokens that were there become less likely.
            seed: of the random numbers.
        """
        wanted = self.settings(prompt, latents, mode, unit, scope, error_term, chat)
        yield from self.write(
            wanted, sampling(temperature, max_new_tokens, repetition_penalty, seed)
        )

    def write(
        self, wanted: Settings, how: Sampling, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Json]:
        """`steer`, of checked settings, until it is stopped."""
        block = self._block(wanted)

        def steering(phase: Phase) -> AbstractContextManager[object]:
            return block(1.0) if wanted.scope in ("all", phase) else nullcontext()

        subject = self.subject
        ids = wanted.tokens.ids
        for pair in generate_pair(subject.lm, subject.tokenizer, ids, steering, how, stopped):
            yield _pair_json(pair)

    def settings(
        self,
        prompt: Any,
        latents: Any,
        mode: Any,
        unit: Any,
        scope: Any,
        error_term: Any,
        chat: Any,
    ) -> Settings:
        mode = validate.choice(mode, "mode", MODES)
        unit = validate.choice(unit, "unit", UNITS)
        strengths = validate.strengths(latents, self.subject.d_sae, LIMITS[unit])
        if unit == "max" and mode not in ("scale", "ablate"):
            self._refuse_unmeasured(list(strengths))
        return Settings(
            self.tokens(prompt, chat),
            strengths,
            cast(Mode, mode),
            cast(Unit, unit),
            cast(Scope, validate.choice(scope, "scope", SCOPES)),
            validate.flag(error_term, "error_term"),
        )

    def _refuse_unmeasured(self, latents: list[int]) -> None:
        if self.largest is None:
            raise ValueError(
                "the largest activations are not known, as there is no feature store; use the "
                "unit norm, per cent of the activation's norm"
            )
        for latent in latents:
            if self.largest[latent] == 0:
                raise ValueError(f"latent {latent} never fired, so it has no unit; use norm")

    def _block(
        self, wanted: Settings, scope: Scope = "all"
    ) -> Callable[[float], AbstractContextManager[None]]:
        """The block in which the model is steered, with all strengths times a factor."""

        def block(factor: float) -> AbstractContextManager[None]:
            return steer(
                self.subject.lm,
                self.subject.sae,
                {i: factor * strength for i, strength in wanted.latents.items()},
                mode=wanted.mode,
                unit=wanted.unit,
                max_activations=self.largest,
                error_term=wanted.error_term,
                scope=scope,
                spare_tokens=special_ids(self.subject.tokenizer),
            )

        return block

    def suggest_strength(
        self,
        prompt: str,
        latents: str,
        mode: str = "add",
        unit: str = "max",
        max_kl: float = 2.0,
        max_repetition: float = 0.3,
        scope: str = "all",
        error_term: bool = True,
        chat: bool = False,
    ) -> Json:
        """The largest strength that leaves the text within a budget, found by trying.

        Args:
            prompt: the text to go on from.
            latents: what to steer, as `12:1, 7:-0.5`: their proportions are kept.
            mode: add, clamp or orthogonal.
            unit: max or norm, as for steering.
            max_kl: how far next-token predictions may be from the unsteered model's, nats a token.
            max_repetition: share of three-token sequences that may recur.
            scope: which tokens to steer: all, prompt or generated.
            error_term: keep what the SAE does not explain.
            chat: the prompt is a user's message in the model's chat template.
        """
        how = (mode, unit, scope, error_term, chat)
        return self.sweep(prompt, latents, how, max_kl, max_repetition)

    def sweep(
        self,
        prompt: Any,
        latents: Any,
        how: tuple[Any, Any, Any, Any, Any],
        max_kl: Any = 2.0,
        max_repetition: Any = 0.3,
        progress: Callable[[int, int], object] = lambda done, n: None,
    ) -> Json:
        """`suggest_strength`, telling how many of how many trials are done, before each.

        Args:
            how: mode, unit, scope, error_term and chat.
        """
        mode, unit, *rest = how
        mode = validate.choice(mode, "mode", ("add", "clamp", "orthogonal"))
        unit = validate.choice(unit, "unit", tuple(_SWEEP))
        wanted = self.settings(prompt, latents, mode, unit, *rest)
        largest = max(map(abs, wanted.latents.values()))
        if not largest:
            raise ValueError("all strengths are 0; give the latents some, for their proportions")
        strengths = [strength / largest for strength in _SWEEP[unit]]
        n, done = 1 + len(strengths) + _REFINED, count(1)
        progress(0, n)
        found = suggest_strength(
            self.subject.lm,
            {"input_ids": torch.tensor([wanted.tokens.ids])},
            self._block(wanted, wanted.scope),
            strengths=strengths,
            max_kl=validate.number(max_kl, "max_kl", 0.01, 20),
            max_repetition=validate.number(max_repetition, "max_repetition", 0, 1),
            n_tokens=24,
            refine=_REFINED,
            progress=lambda trial: progress(next(done), n),
        )
        trials = [
            {
                "strength": t.strength * largest,
                "kl": t.kl,
                "repetition": t.repetition,
                "within": t.within,
            }
            for t in found.trials
        ]
        return {
            "latents": {str(i): round(found.strength * s, 3) for i, s in wanted.latents.items()},
            "strength": found.strength * largest,
            "trials": trials,
        }

    def direction(self, latent: int) -> Path:
        """A file with a latent's decoder row, to add to activations elsewhere."""
        path = Path(self._directions, f"steering-{latent}.safetensors")
        return save_steering_vector(path, self.subject.sae, {latent: 1.0}, unit="raw")

    @cached_property
    def _directions(self) -> str:
        folder = tempfile.mkdtemp(prefix="hfsae-directions-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    # Why this token

    @property
    def _exact_lm(self) -> Any:
        """The model in float32: in bfloat16 the effect of one latent drowns in rounding."""
        with self._copying:  # who comes second waits, instead of making another copy
            return self._lm_in_float32

    @cached_property
    def _lm_in_float32(self) -> Any:
        lm = self.subject.lm
        if lm.dtype == torch.float32 or 4 * lm.num_parameters() > _MOST_EXACT_BYTES:
            return lm
        config = deepcopy(lm.config)  # of which it changes the dtype
        copy = type(lm)._from_config(config, dtype=torch.float32)  # pyright: ignore
        copy.load_state_dict(lm.state_dict())
        copy.name_or_path = lm.name_or_path
        copy.generation_config = lm.generation_config
        copy.to(lm.device)  # pyright: ignore - transformers' wrapper hides the types
        return copy.eval().requires_grad_(False)

    def next_tokens(self, prompt: str) -> Json:
        """The likeliest next tokens after a prompt.

        Args:
            prompt: the text.
        """
        return {"next": self._next(self.tokens(prompt))}

    def _next(self, tokens: Tokens) -> list[Json]:
        ids = tokens.batch(self.subject.lm.device).input_ids
        with torch.no_grad():
            logits = self.subject.lm(input_ids=ids, use_cache=False).logits[0, -1].float()
        top = logits.softmax(-1).topk(_CANDIDATES)
        return [
            {"token": self._spelt(i), "id": i, "probability": p}
            for p, i in zip(*(column.tolist() for column in top), strict=True)
        ]

    def _spelt(self, token_id: int) -> str:
        return str(self.subject.tokenizer.decode([token_id]))

    def why(self, prompt: str, target: str = "", contrast: str = "") -> Json:
        """Which latents speak for a next token: by gradient, and by leaving them out one by one.

        Args:
            prompt: the text.
            target: the next token, or `#` and its number; by default the likeliest.
            contrast: a token to hold it against; by default none.
        """
        wanted = self._question(prompt, target, contrast)
        found = attribute(
            self._exact_lm,
            self.subject.sae,
            wanted.batch,
            wanted.objective,
            ablate=_ABLATED,
            integration_steps=0,
            spare_tokens=special_ids(self.subject.tokenizer),
        )
        return {
            "next": self._next(wanted.tokens),
            "target": {"token": self._spelt(wanted.target), "id": wanted.target},
            "contrast": None
            if wanted.contrast is None
            else {"token": self._spelt(wanted.contrast), "id": wanted.contrast},
            "logit": found.objective,
            "rows": self.rows(
                _effect(found, i, wanted.tokens) for i in range(min(SHOWN, len(found.latents)))
            ),
            "n_latents": len(found.latents),
        }

    def check_ablation(
        self, prompt: str, latent: int, target: str = "", contrast: str = ""
    ) -> Json:
        """What the model's logit really owes to a latent: with it, less without it.

        Args:
            prompt: the text.
            latent: which one to leave out, on all tokens.
            target: the next token, or `#` and its number; by default the likeliest.
            contrast: a token to hold it against; by default none.
        """
        wanted, index = self._question(prompt, target, contrast), self.latent(latent)
        found = attribute(
            self._exact_lm,
            self.subject.sae,
            wanted.batch,
            wanted.objective,
            ablate=[index],
            integration_steps=0,
            spare_tokens=special_ids(self.subject.tokenizer),
        )
        at = found.latents.tolist().index(index)
        return {
            "latent": index,
            "gradient": float(found.gradient[at]),
            "ablation": float(found.ablation[at]),
        }

    def _question(self, prompt: Any, target: Any, contrast: Any) -> "_Question":
        tokens = self.tokens(prompt)
        target = validate.text(target, "the target token", limit=100)
        contrast = validate.text(contrast, "the contrast token", limit=100)
        target_id = self.token_id(target) if target else self._next(tokens)[0]["id"]
        contrast_id = self.token_id(contrast) if contrast else None
        if contrast_id == target_id:
            raise ValueError("target and contrast are the same token; choose two")
        batch = {"input_ids": tokens.batch(self.subject.lm.device).input_ids}
        return _Question(tokens, batch, logit(target_id, contrast_id), target_id, contrast_id)


class _Question(NamedTuple):
    tokens: Tokens
    batch: dict[str, torch.Tensor]
    objective: Objective
    target: int
    contrast: int | None


def _effect(found: Attribution, i: int, tokens: Tokens) -> Json:
    """The i-th of the attributed latents."""
    ablation, position = float(found.ablation[i]), int(found.position[i])
    return {
        "latent": int(found.latents[i]),
        "value": float(found.gradient[i]),
        "position": position,
        "token": tokens.texts[position],
        "activation": float(found.activation[i]),
        "ablation": None if math.isnan(ablation) else ablation,
    }


def sampling(temperature: Any, max_new_tokens: Any, penalty: Any, seed: Any) -> Sampling:
    return Sampling(
        max_new_tokens=validate.whole(max_new_tokens, "max_new_tokens", 1, 256),
        temperature=validate.number(temperature, "temperature", 0, 5),
        repetition_penalty=validate.number(penalty, "repetition_penalty", 1, 5),
        seed=validate.whole(seed, "seed", 0, 2**31 - 1),
    )


def _pair_json(pair: Pair) -> Json:
    again = [repetition(torch.tensor([ids])) for ids in (pair.plain_ids, pair.steered_ids)]
    return {
        "plain": pair.plain,
        "steered": pair.steered,
        "n_plain": len(pair.plain_ids),
        "n_steered": len(pair.steered_ids),
        "kl": pair.kl,
        "plain_repetition": again[0],
        "steered_repetition": again[1],
        "done": pair.done,
    }
