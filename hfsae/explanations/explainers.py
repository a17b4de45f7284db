"""Explanations of latents, one line of text each.

An explainer takes the `Material` of latents and gives {latent: text}, or a `Name`; a latent that it
cannot explain is absent. It sees windows of the shown half alone.

    template    the tokens of the peaks, and the neighbour that stands there in most windows
    lm          one line by a judge, from tokens and activations: see `asking.lm_explainer`
    human       the labels that people wrote, features/labels.json
    file        a table of explanations: parquet, jsonl (also .gz) or json; Neuronpedia's export
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..activations.token_text import spell
from ..io.errors import Refused, one_line
from ..io.files import numbered_lines, printable
from ..io.labels import MAX_LENGTH
from .reading import CorpusActivations
from .windows import Evidence, Window

LINE_END, BLANK = "a line end", "a blank"
UNCLEAR = "unclear"
"""The name of a latent whose windows have nothing in common that is seen."""
_CLEAR = 0.2  # of the windows: a word that stands at fewer peaks is no name
_WORDS = 5  # named by a template, at most
_LONGEST_WORD = 30
_MAX_LINE = 2**20  # bytes of a line of jsonl; embeddings take some ten thousand
_MAX_FILE = 2**30  # bytes of a .json file, which is in memory as a whole
_LATENT, _TEXT = ("latent", "index", "feature"), ("explanation", "description", "label")


class WindowText(NamedTuple):
    """A window as text: joined, `tokens` are readable."""

    tokens: list[str]
    peak: int
    """index of the peak's token"""
    window: Window
    activations: tuple[float, ...] = ()
    """one a token"""


class Material(NamedTuple):
    """The input of an explainer: the shown windows of one latent."""

    latent: int
    shown: list[WindowText]


class Name(NamedTuple):
    """A latent's name, from a namer that also gives how sure it is."""

    text: str
    sure: float | None
    """0 to 1"""


Explainer = Callable[[Sequence[Material]], Mapping[int, str | Name]]


def material_of(
    reading: CorpusActivations, evidence: Evidence, tokenizer: PreTrainedTokenizerBase
) -> Material:
    """The shown windows of a latent, as text."""
    activations = evidence.activations(len(reading.ids))
    shown = [spelt(reading, w, tokenizer, activations) for w in evidence.shown]
    return Material(evidence.latent, shown)


def spelt(
    reading: CorpusActivations,
    window: Window,
    tokenizer: PreTrainedTokenizerBase,
    activations: np.ndarray | None = None,
) -> WindowText:
    """A window's text, token by token.

    Args:
        activations: of the latent on each token that was read.
    """
    inside = slice(window.start, window.stop)
    values = () if activations is None else tuple(activations[inside].tolist())
    tokens = spell(tokenizer, reading.ids[inside].tolist())
    return WindowText(tokens, window.peak - window.start, window, values)


def template(materials: Sequence[Material]) -> dict[int, str]:
    """For each latent the words of its peaks with their shares of the shown windows; "unclear"
    where no word has a share of a fifth, and no neighbour is in over half of them."""
    return {m.latent: _template(m.shown) for m in materials}


def _template(shown: Sequence[WindowText]) -> str:
    names = _names(shown)
    counts, n = Counter(names), len(shown)
    parts = [f"{name} {count / n:.0%}" for name, count in counts.most_common(_WORDS)]
    tail = "".join(f"; {where} {name}" for where, name in _neighbours(shown))
    if not tail and max(counts.values()) < _CLEAR * n:
        return UNCLEAR
    while len(parts) > 1 and len(", ".join(parts) + tail) > MAX_LENGTH:
        parts.pop()
    return ", ".join(parts) + tail


def _names(shown: Sequence[WindowText]) -> list[str]:
    """The word of each peak; a piece that ends or begins different words is named itself."""
    words = [_word(s.tokens, s.peak) for s in shown]
    pieces = [s.tokens[s.peak] for s in shown]
    spellings: dict[str, Counter[str]] = {}
    wholes: dict[str, set[str]] = {}
    for (word, _, _), piece in zip(words, pieces, strict=True):
        spellings.setdefault(word.strip().casefold(), Counter())[word.strip()] += 1
        wholes.setdefault(piece, set()).add(word.strip().casefold())
    names = []
    for (word, first, last), piece in zip(words, pieces, strict=True):
        if last > first + 1 and len(wholes[piece]) > 1:
            names.append(_quoted(_joined_mark(word, piece)))
        else:
            commonest = spellings[word.strip().casefold()].most_common(1)[0][0]
            names.append(_quoted(commonest or word))
    return names


def _joined_mark(word: str, piece: str) -> str:
    """A piece with hyphens where its word goes on."""
    before = "" if word.startswith(piece) else "-"
    after = "" if word.endswith(piece) else "-"
    return f"{before}{piece.strip()}{after}"


def _word(tokens: Sequence[str], at: int) -> tuple[str, int, int]:
    """The word around a token: its text, first token, and one beyond the last."""
    first, last = at, at + 1
    while first > 0 and _goes_on(tokens[first - 1], tokens[first]):
        first -= 1
    while last < len(tokens) and _goes_on(tokens[last - 1], tokens[last]):
        last += 1
    return "".join(tokens[first:last]), first, last


def _goes_on(left: str, right: str) -> bool:
    """Whether two tokens are of one word; a character of several tokens has empty ones."""
    return not left or not right or (left[-1].isalnum() and right[0].isalnum())


def _quoted(word: str) -> str:
    if not word.strip():
        return LINE_END if "\n" in word else BLANK
    short = word if len(word) <= _LONGEST_WORD else word[:_LONGEST_WORD] + "…"
    return f'"{printable(short)}"'


def _neighbours(shown: Sequence[WindowText]) -> Iterator[tuple[str, str]]:
    """("after" or "before", the word that stands there in over half of the windows)."""
    before, after = Counter[str](), Counter[str]()
    for tokens, peak, *_ in shown:
        _, first, last = _word(tokens, peak)
        if first > 0:
            before[_neighbour(tokens, first - 1)] += 1
        if last < len(tokens):
            after[_neighbour(tokens, last)] += 1
    for where, counts in (("after", before), ("before", after)):
        for name, count in counts.most_common(1):
            if count > len(shown) / 2:
                yield where, name


def _neighbour(tokens: Sequence[str], at: int) -> str:
    return _quoted(_word(tokens, at)[0].strip(" ").casefold())


def from_labels(labels: Mapping[int, str]) -> Explainer:
    """An explainer that returns these texts."""

    def explain(materials: Sequence[Material]) -> dict[int, str]:
        return {m.latent: labels[m.latent] for m in materials if labels.get(m.latent)}

    return explain


def keeping(names: Mapping[int, Name], explainer: Explainer) -> Explainer:
    """An explainer that returns these names, and for other latents those of another explainer."""

    def explain(materials: Sequence[Material]) -> dict[int, str | Name]:
        others = explainer([m for m in materials if m.latent not in names])
        return {m.latent: names[m.latent] for m in materials if m.latent in names} | {**others}

    return explain


def read_file(path: Path, d_sae: int, weights: str | None) -> dict[int, Name]:
    """{latent: explanation} of a file; the first one where a latent has several.

    Columns or keys are `latent` and `explanation`, or as in Neuronpedia's export `index` and
    `description`; `sure` is how certain the explainer was, 0 to 1.

    Args:
        weights: hash of the SAE's weights; a file that names others is refused.

    Raises:
        ValueError: there is no such file, it holds no explanations, or it holds those of another
            SAE.
    """
    if not path.is_file():
        raise Refused(f"there is no file {path}; give a parquet, jsonl or json file")
    explanations: dict[int, Name] = {}
    for number, row in enumerate(_rows(path, weights), 1):
        latent, text = _pair(row, f"row {number} of {path}")
        if not 0 <= latent < d_sae:
            raise Refused(
                f"{path} explains latent {latent}, and this SAE has 0 to {d_sae - 1:,}: these are "
                "explanations of another SAE"
            )
        if text:
            sure = row.get("sure") if isinstance(row, dict) else None
            is_share = isinstance(sure, int | float) and 0 <= sure <= 1
            explanations.setdefault(latent, Name(text, sure if is_share else None))
    if not explanations:
        raise Refused(f"{path} holds no explanations; give rows with a latent and its explanation")
    return explanations


def _rows(path: Path, weights: str | None) -> Iterator[dict[str, Any]]:
    readers = {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".json": _json_rows}
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in readers:
        raise Refused(f"{path} is not a .parquet, .jsonl or .json file; convert it")
    try:
        yield from readers[suffix](path, weights)
    except (OSError, EOFError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(
            f"{path} cannot be read ({one_line(error)}); restore an intact copy"
        ) from error


def _parquet_rows(path: Path, weights: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            theirs = (file.schema_arrow.metadata or {}).get(b"weights_sha256", b"").decode()
            if weights and theirs and theirs != weights:
                raise Refused(
                    f"{path} holds explanations of another SAE: its weights_sha256 differs; "
                    "`hfsae explain` makes those of this one"
                )
            names = [n for n in (*_LATENT, *_TEXT, "sure") if n in file.schema_arrow.names]
            for batch in file.iter_batches(1024, columns=names):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise Refused(
            f"{path} is not a valid parquet file ({one_line(error)}); make it again"
        ) from error


def _jsonl_rows(path: Path, weights: str | None) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        for number, line in numbered_lines(file, _MAX_LINE):
            yield _parsed(line, f"line {number} of {path}")


def _json_rows(path: Path, weights: str | None) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        whole = file.read(_MAX_FILE + 1)
    if len(whole) > _MAX_FILE:
        raise Refused(
            f"{path} unpacks to more than {_MAX_FILE:,} bytes, the most that is read of a .json "
            "file; give .jsonl, a row on each line"
        )
    content = _parsed(whole, str(path))
    yield from content if isinstance(content, list) else [content]


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refused(f"{where} is not JSON ({one_line(error)}); put one object there") from error


def _pair(row: object, where: str) -> tuple[int, str]:
    """A row's latent, and its explanation as one printable line; "" for none."""
    if not isinstance(row, dict):
        raise Refused(f"{where} is not an object; give a latent and its explanation")
    latent = next((row[key] for key in _LATENT if row.get(key) is not None), None)
    text = next((row[key] for key in _TEXT if row.get(key) is not None), "")
    try:
        index = int(str(latent))
    except ValueError:
        raise Refused(
            f"{where} names no latent: it needs a whole number as {' or '.join(_LATENT)}"
        ) from None
    if not isinstance(text, str):
        raise Refused(f"{where} has {text!r} as an explanation; give text")
    return index, one_label(text)


def one_label(text: str) -> str:
    """A text as one printable line of at most 200 characters, cut at a word."""
    line = printable(" ".join(text.split()))
    if len(line) <= MAX_LENGTH:
        return line
    return line[: MAX_LENGTH - 1].rsplit(" ", 1)[0] + "…"
