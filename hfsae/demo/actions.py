"""Everything the app can do, as functions from plain values to plain values.

Pages and programs call the same ones: each is an endpoint of the app's API and a tool for agents.
Their docstrings are shown there. What a caller may get wrong raises ValueError with one sentence.
"""

import random
from typing import Any

import torch

from ..evaluation import EvaluationArguments, evaluate
from ..features import Example
from ..inspection import Inspection, Tokens, compare, inspect, tokenise
from . import validate
from .subject import Subject

MAX_TOKENS = 512
_SHOWN = 12  # latents in a table
_PROMOTED = 3


class Actions:
    """The app's functions for one subject; no state of a session is kept here."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.density = subject.density()
        self.largest = subject.largest()

    # Inspect

    def inspect(
        self,
        prompt: str,
        latent: int | None = None,
        token: int | None = None,
        chat: bool = False,
        max_density: float = 1.0,
    ) -> dict[str, Any]:
        """Latents of the SAE that fire in a text: on the whole, on one token, and one along it.

        Args:
            prompt: the text.
            latent: whose activation to give for every token; by default the strongest.
            token: position whose strongest latents to list.
            chat: read the text as a user's message in the model's chat template.
            max_density: leave out latents that fire on more than this share of all tokens.
        """
        seen = self._seen(prompt, chat)
        hide = self._hidden(max_density)
        ranking = seen.ranking(_SHOWN, hide=hide)
        if latent is not None:
            latent = validate.latent(latent, self.subject.d_sae)
        elif ranking:
            latent = ranking[0].latent
        on_token = []
        if token is not None:
            token = validate.whole(token, "token", 0, len(seen.tokens.ids) - 1)
            on_token = [self._row(*f) for f in seen.on(token, _SHOWN, hide=hide)]
        trace = [0.0] * len(seen.tokens.ids) if latent is None else seen.trace(latent)
        return {
            "tokens": _token_dicts(seen, trace),
            "latent": latent,
            "label": "" if latent is None else self.label(latent),
            "token": token,
            "on_token": on_token,
            "ranking": [
                self._row(r.latent, r.max, n_tokens=r.n_tokens, peak=r.peak) for r in ranking
            ],
            "l0": sum(seen.l0) / max(1, seen.n_kept),
            "fvu": None if seen.fvu != seen.fvu else seen.fvu,
        }

    def compare_prompts(
        self, first: str, second: str, chat: bool = False, max_density: float = 1.0
    ) -> dict[str, Any]:
        """Latents whose largest activations differ most between two texts.

        Args:
            first: a text.
            second: another.
            chat: read both as a user's message in the model's chat template.
            max_density: leave out latents that fire on more than this share of all tokens.
        """
        pair = [self._seen(text, chat) for text in (first, second)]
        found = compare(*pair, _SHOWN, hide=self._hidden(max_density))
        rows = [self._row(d.latent, max(d[1:]), first=d.first, second=d.second) for d in found]
        traces = [s.trace(found[0].latent) if found else [0.0] * len(s.tokens.ids) for s in pair]
        return {
            "differences": rows,
            "latent": found[0].latent if found else None,
            "first": _token_dicts(pair[0], traces[0]),
            "second": _token_dicts(pair[1], traces[1]),
        }

    def _seen(self, prompt: Any, chat: Any = False) -> Inspection:
        tokens = self.tokens(prompt, chat)
        with self.subject.running() as lm:
            return inspect(lm, self.subject.sae, tokens)

    def tokens(self, prompt: Any, chat: Any = False) -> Tokens:
        text = validate.text(prompt, "the prompt", empty="there is no text; write a prompt")
        chat = validate.flag(chat, "chat")
        return tokenise(
            self.subject.tokenizer, text, bos=self.subject.bos, chat=chat, max_tokens=MAX_TOKENS
        )

    def _hidden(self, max_density: Any) -> list[int]:
        limit = validate.number(max_density, "max_density", 0.0, 1.0)
        return [] if limit >= 1 else (self.density > limit).nonzero()[:, 0].tolist()

    # Latents

    def feature(self, latent: int) -> dict[str, Any]:
        """All that is known of one latent: label, numbers, tokens it promotes, what it fires on.

        Args:
            latent: its index.
        """
        index = validate.latent(latent, self.subject.d_sae)
        found = {"latent": index, "label": self.label(index), "threshold": self._threshold(index)}
        store = self.subject.store
        if store is None:
            return {**found, "collected": False}
        known = store[index]
        return {
            **found,
            "collected": True,
            "density": known.density,
            "n_firings": known.n_firings,
            "n_tokens": store.meta.get("n_tokens"),
            "max_activation": known.max_activation,
            "mean_activation": known.mean_activation,
            "histogram": _filled(known.histogram, store.meta["histogram_edges"]),
            "promoted": [{"token": t, "logit": v} for t, v in known.promoted],
            "suppressed": [{"token": t, "logit": v} for t, v in known.suppressed],
            "neighbours": [self._row(i, c) for i, c in known.neighbours],
            "groups": _groups(known.examples, known.max_activation),
        }

    def try_text(self, latent: int, text: str) -> dict[str, Any]:
        """What one latent does on a text of your own, token by token.

        Args:
            latent: its index.
            text: the text.
        """
        index = validate.latent(latent, self.subject.d_sae)
        seen = self._seen(text)
        trace = seen.trace(index)
        usual = None if self.largest is None else float(self.largest[index])
        return {
            "latent": index,
            "tokens": _token_dicts(seen, trace),
            "max": max(trace),
            "usual_max": usual,
        }

    def random_latent(self, seed: int | None = None) -> dict[str, Any]:
        """The index of a latent that is alive, drawn at random.

        Args:
            seed: the same seed gives the same latent; by default each call draws anew.
        """
        if seed is not None:
            seed = validate.whole(seed, "seed", 0, 2**31 - 1)
        alive = self.density.nonzero()[:, 0].tolist() or list(range(self.subject.d_sae))
        return {"latent": random.Random(seed).choice(alive)}

    def label(self, latent: int) -> str:
        """What people say a latent stands for; empty if nobody has."""
        return ""

    def _row(self, latent: int, value: float, **more: Any) -> dict[str, Any]:
        row = {"latent": latent, "value": value, "label": self.label(latent)}
        if self.subject.store is not None:
            table = self.subject.store.latents
            row["promotes"] = table["promoted_tokens"][latent].as_py()[:_PROMOTED]
            row["density"] = float(self.density[latent])
        return {**row, **more}

    def _threshold(self, latent: int) -> float | None:
        threshold = getattr(self.subject.sae, "threshold", None)
        if not isinstance(threshold, torch.Tensor) or threshold.numel() != self.subject.d_sae:
            return None
        return float(threshold[latent]) * self.subject.sae.scale

    # Health and about

    def measure(self, text: str) -> dict[str, Any]:
        """How well the SAE explains a text of your own, and what the model loses on it.

        Args:
            text: some sentences; the more, the less the numbers depend on chance.
        """
        batch = self.tokens(text).batch(self.subject.lm.device)
        arguments = EvaluationArguments(n_tokens=None, bootstrap_samples=1)
        with self.subject.running() as lm:
            result = evaluate(self.subject.sae, lm, [batch], arguments)
        names = ("l0", "fvu", "ce_clean", "ce_spliced", "delta_loss", "kl")
        return {"n_tokens": result.n_tokens} | {n: result.metrics[n].value for n in names}

    def about(self) -> dict[str, Any]:
        """Which SAE and language model this is, and its model card."""
        config = self.subject.sae.config
        loaded = self.subject.loaded
        return {
            "name": self.subject.name,
            "kind": config.model_type,
            "site": config.site,
            "d_sae": config.d_sae,
            "d_in": config.d_in,
            "model": config.model_name,
            "model_origin": loaded.origin if loaded else None,
            "model_missing": None if loaded else self.subject.why_no_lm,
            "notes": self.subject.notes,
            "card": self.subject.card,
        }


def _token_dicts(seen: Inspection, trace: list[float]) -> list[dict[str, Any]]:
    largest = max([*trace, 0.0]) or 1.0
    rows = zip(seen.tokens.texts, seen.tokens.special, seen.l0, trace, strict=True)
    return [
        {"text": text, "special": special, "l0": l0, "activation": a, "share": a / largest}
        for text, special, l0, a in rows
    ]


def _filled(counts: list[int], edges: list[float]) -> list[dict[str, Any]]:
    """The bins of a histogram from the first to the last that is not empty."""
    filled = [i for i, n in enumerate(counts) if n]
    if not filled:
        return []
    bins = range(filled[0], filled[-1] + 1)
    return [{"low": edges[i], "high": edges[i + 1], "count": counts[i]} for i in bins]


def _groups(examples: list[Example], largest: float) -> list[dict[str, Any]]:
    """Examples under headings, the strongest first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        groups.setdefault(example.kind, []).append(_example(example, largest or 1.0))
    return [{"kind": kind, "examples": found} for kind, found in groups.items()]


def _example(example: Example, largest: float) -> dict[str, Any]:
    rows = zip(example.tokens, example.activations, strict=True)
    tokens = [
        {"text": text, "activation": a, "share": a / largest, "firing": i == example.firing}
        for i, (text, a) in enumerate(rows)
    ]
    return {"activation": example.activation, "document": example.document, "tokens": tokens}
