"""The identity of a run: settings that a checkpoint must share for training to resume from it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from ..io.errors import Refused
from ..models import SAE
from ..models.config import FIELDS_OF_TRANSFORMERS, own_fields
from .arguments import FREE, TrainingArguments

_TEXT = "the text in text.dataset"  # as a sentence names it
_OF_THE_STREAM = {"model_weights"}  # fields of an SAE that the stream's own state covers better


class Identity:
    """By key, all settings that the result of training depends on; `defaults` holds the values that
    applied before a setting existed. A field of an SAE's config has the key "name.field".

    Args:
        text: digest of the text; None, here or in the checkpoint, counts as the same text.
        own: by name, the arguments of SAEs that are not trained by `args`. Where these differ, they
            have the key "name.training.field".
    """

    def __init__(
        self,
        args: TrainingArguments,
        saes: Mapping[str, SAE],
        text: str | None = None,
        own: Mapping[str, TrainingArguments] | None = None,
    ) -> None:
        self.values = {k: v for k, v in asdict(args).items() if k not in FREE}
        if text is not None:
            self.values[_TEXT] = text
        self.defaults = {f.name: f.default for f in fields(TrainingArguments)}
        for name, other in (own or {}).items():
            for key, value in asdict(other).items():
                if value != getattr(args, key):
                    self.values[f"{name}.training.{key}"] = value
                    self.defaults[f"{name}.training.{key}"] = getattr(args, key)
        for name, sae in saes.items():
            config, defaults = sae.config, {f.name: f.default for f in fields(sae.config)}
            for key in ("model_type", *sorted(own_fields(type(config)) - _OF_THE_STREAM)):
                self.values[f"{name}.{key}".lstrip(".")] = getattr(config, key)
                self.defaults[f"{name}.{key}".lstrip(".")] = defaults.get(key, MISSING)

    def refuse_another_run(self, theirs: Mapping[str, Any], path: Path) -> None:
        """Refuse a checkpoint whose settings differ.

        Args:
            theirs: values of the checkpoint at `path`, as `plain()` returned them.

        Raises:
            ValueError: it belongs to another run.
        """
        if differing := list(self._differences(theirs)):
            key, there, here = differing[0]
            keys = ", ".join(key for key, _, _ in differing)
            raise Refused(
                f"{path} belongs to another run: {key} is {there!r} there and {here!r} here "
                f"(differing: {keys}); give another output_dir or delete that folder"
            )

    def _differences(self, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """(key, value there, value here), sorted.

        A checkpoint that lacks a key predates it: its value was the default; without a default,
        any value counts as equal.
        """
        ours, defaults = self.plain(), _plain(self.defaults)
        for key in sorted({*ours, *theirs}):
            field = key.rpartition(".")[2]
            if field in FREE or field in FIELDS_OF_TRANSFORMERS:
                continue  # as in checkpoints from before these were left out
            if key == _TEXT and not (key in ours and key in theirs):
                continue
            here = ours.get(key)
            there = theirs.get(key, defaults.get(key, here))
            if there != here:
                yield key, there, here

    def plain(self) -> dict[str, Any]:
        """The values as a checkpoint keeps them."""
        return _plain(self.values)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    held = {key: value for key, value in values.items() if value is not MISSING}
    return json.loads(json.dumps(held, default=str))
