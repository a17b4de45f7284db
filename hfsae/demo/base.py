"""What all actions share: text to tokens, a latent to a row of a table, a label to keep."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch

from ..features import blank_label, write_label
from ..features.inspection import Inspection, Tokens, inspect, tokenise
from . import validate
from .subject import Subject

MAX_TOKENS = 512
SHOWN = 12  # rows of a table
_HINTS = 4  # tokens that say what a latent is
_REMEMBERED = 64  # texts

Json = dict[str, Any]


class Base:
    """Actions are pure functions of their arguments and the subject; sessions keep no state here.

    Their docstrings are shown to users of the API, and to agents. What a caller may get wrong
    raises ValueError with one sentence.
    """

    def __init__(self, subject: Subject):
        self.subject = subject
        self.density = subject.density()
        self.largest = subject.largest()
        # the same text, read again for another token or latent, gives the same
        self._inspected = lru_cache(maxsize=_REMEMBERED)(self._inspect)

    def seen(self, prompt: Any, chat: Any = False) -> Inspection:
        return self._inspected(self.text(prompt), validate.flag(chat, "chat"))

    def _inspect(self, prompt: str, chat: bool) -> Inspection:
        return inspect(self.subject.lm, self.subject.sae, self.tokens(prompt, chat))

    def text(self, prompt: Any) -> str:
        return validate.text(prompt, "the prompt", empty="there is no text; write a prompt")

    def tokens(self, prompt: Any, chat: Any = False) -> Tokens:
        return tokenise(
            self.subject.tokenizer,
            self.text(prompt),
            bos=self.subject.bos,
            chat=validate.flag(chat, "chat"),
            max_tokens=MAX_TOKENS,
        )

    def latent(self, index: Any) -> int:
        return validate.latent(index, self.subject.d_sae)

    def hidden(self, max_density: Any) -> list[int]:
        """Latents that fire on more than this share of tokens."""
        limit = validate.number(max_density, "max_density", 0.0, 1.0)
        if limit >= 1:
            return []
        if not self.subject.is_counted:
            raise ValueError(
                "nobody has counted how often this SAE's latents fire, so none can be hidden for "
                "it; `hfsae collect` does, with a folder"
            )
        return (self.density > limit).nonzero()[:, 0].tolist()

    def label(self, latent: int) -> str:
        """What people say a latent stands for; empty if nobody has."""
        return self.subject.labels.get(latent, "")

    def save_label(self, latent: int, label: str) -> Json:
        """Name what a latent stands for; an empty label takes the name away.

        Args:
            latent: its index.
            label: one line of text.
        """
        index, home = self.latent(latent), self.subject.label_home
        label = validate.text(label, "the label")
        if home is None:
            raise ValueError("labels are not kept here; run `hfsae demo` on your own machine")
        hides = not label.strip() and home != self.subject.folder  # one that the SAE comes with
        labels = blank_label(home, index) if hides else write_label(home, index, label)
        self.subject.take_labels({index: "", **labels})
        return {"latent": index, "label": self.label(index)}

    def rows(self, found: Iterable[Json]) -> list[Json]:
        """Latents in a table, each with a value; what says what they are is added."""
        rows = [{**row, "label": self.label(row["latent"])} for row in found]
        store = self.subject.store
        if store is None:
            return rows
        firing = self._firing([row["latent"] for row in rows])
        for row in rows:
            index = row["latent"]
            row["fires_on"] = firing.get(index, [])
            row["promotes"] = store.latents["promoted_tokens"][index].as_py()[:_HINTS]
            row["density"] = float(self.density[index])
        return rows

    def _firing(self, latents: list[int]) -> dict[int, list[str]]:
        """The tokens on which each of these latents fires most, strongest first, each once."""
        import pyarrow.compute as pc

        store = self.subject.store
        if store is None or not latents:
            return {}
        firings = store.firings(pc.field("latent").isin(latents) & (pc.field("kind") == "top"))
        found: dict[int, list[str]] = {latent: [] for latent in latents}
        by_rank = sorted(zip(firings.rank, firings.latent, firings.token, strict=True))
        for _, latent, token in by_rank:
            tokens, token = found[latent], token.strip()
            if token and token.casefold() not in map(str.casefold, tokens):
                tokens.append(token)
        return {latent: tokens[:_HINTS] for latent, tokens in found.items()}

    def threshold(self, latent: int) -> float | None:
        """What its pre-activation must exceed, raw units; None where the SAE has no thresholds."""
        threshold = getattr(self.subject.sae, "threshold", None)
        if not isinstance(threshold, torch.Tensor):
            return None
        one = threshold if threshold.ndim == 0 else threshold[latent]  # BatchTopK has one for all
        return float(one) * self.subject.sae.scale


def token_rows(seen: Inspection, trace: list[float]) -> list[Json]:
    """Each token with an activation, raw and as a share of the largest."""
    largest = max([*trace, 0.0]) or 1.0
    rows = zip(seen.tokens.texts, seen.tokens.special, seen.l0, trace, strict=True)
    return [
        {"text": text, "special": special, "l0": l0, "activation": a, "share": max(0, a) / largest}
        for text, special, l0, a in rows
    ]
