"""The source of a run, the token rows that a stage reads, and its progress bar."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from ..activations import ActivationBatch, Harvester, PackedRows, Split, TextSource
from ..activations.tokens import documents, text_origin
from ..lm import LoadedLM, LoadedLMs
from ..machine.visible import LOCAL_FILES
from .fields import Recipe, rows_ahead, sides_of
from .foreign import foreign_text

_CHARACTERS = 16  # of a token, at most: of English text it has 4 or 5


def source_of(
    recipe: Recipe,
    loaded: LoadedLM | LoadedLMs,
    sites: Sequence[str],
    limits: Mapping[str, float] | None = None,
) -> TextSource:
    """The text through the language model, or through several.

    Args:
        limits: by site, the largest norm of a kept activation; without it found by the recipe.
    """
    rows = PackedRows(loaded.tokenizer, recipe.text, "train", rows=recipe.harvest.rows, epochs=None)
    lm = loaded.lm if isinstance(loaded, LoadedLM) else loaded.lms
    return TextSource(rows, Harvester(lm, sites, recipe.harvest, norm_limits=limits))


def read_rows(
    recipe: Recipe, loaded: LoadedLM | LoadedLMs, split: Split, n: int | None
) -> PackedRows:
    """The token rows of one side of the text, once: all of them, or enough for n tokens."""
    return PackedRows(loaded.tokenizer, recipe.text, split, rows=recipe.harvest.rows, max_tokens=n)


def read_ahead(recipe: Recipe) -> None:
    """Read text in files that comes in its own order, as far as the run reads it: other text is
    read whole at its first use.

    Raises:
        ValueError: a line or a file cannot be read.
    """
    text, sizes, side = recipe.text, recipe.sizes, sides_of(recipe)[-1]
    if text.shuffle_documents or text_origin(text) != LOCAL_FILES:
        return
    parts: list[tuple[Split, int | None]] = [
        ("train", max(rows_ahead(recipe), sizes.examples)),
        (side, sizes.evaluation),
    ]
    with token_bar("check", None, unit="char", delay=10) as progress:
        for which, n in parts:
            left = math.inf if n is None else _CHARACTERS * n
            for document in documents(text, which):
                if left <= 0:
                    break
                left -= len(document.text)
                progress(len(document.text))


def read_foreign(recipe: Recipe, loaded: LoadedLM | LoadedLMs) -> dict[str, PackedRows]:
    """The token rows of each foreign text, by name."""
    n, rows = recipe.evaluation.n_foreign_tokens, recipe.harvest.rows
    texts = {name: foreign_text(recipe.text, d) for name, d in recipe.evaluation.texts.items()}
    return {
        name: PackedRows(loaded.tokenizer, text, "test", rows=rows, max_tokens=n)
        for name, text in texts.items()
    }


@contextmanager
def token_bar(
    name: str, total: int | None, *, unit: str = "tok", delay: float = 0
) -> Iterator[Callable[[int], None]]:
    """A progress bar of tokens, or of another unit; gives a function that takes the number of
    further ones. It is shown after `delay` seconds."""
    every = 0.2 if sys.stderr.isatty() else 15.0
    settings: dict[str, Any] = {"unit": unit, "unit_scale": True, "mininterval": every}
    with tqdm(total=total, desc=name, delay=delay, **settings) as bar:

        def advance(n: int) -> None:
            bar.update(n)

        yield advance


def counted(
    batches: Iterable[ActivationBatch], progress: Callable[[int], None]
) -> Iterator[ActivationBatch]:
    """The same batches; progress gets the number of activations of each when it was used."""
    for batch in batches:
        yield batch
        progress(len(batch.document))
