"""Explanations of latents, one line of text each.

An explainer takes the shown windows of latents and gives {latent: text}, or a `Name`; a latent that
it cannot explain is absent. It sees windows of the shown half alone.

    template    the tokens of the peaks, and the neighbour that stands there in most windows
    lm          one line by a judge, from tokens and activations; its prompt stands in `prompts`
    human       the labels that people wrote, features/labels.json
    file        a table of explanations: parquet or jsonl (also .gz); Neuronpedia's export

`stored_names` has names of all other latents, from the examples that `hfsae collect` stored,
without a score. Scores need windows that explain and others that test; a latent without them has a
name all the same, as long as one example of it is stored.
"""

import gzip
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..features import FeatureStore
from ..io.errors import Refused, one_line
from ..io.files import parsed_lines, printable
from ..io.labels import MAX_LENGTH
from .judges.base import Question
from .judges.calls import Judge, replies_to
from .prompts import N_LEVELS, UNCLEAR, explanation_question, fields_in
from .windows import Window, WindowText

LINE_END, BLANK = "a line end", "a blank"
STORED = "template, stored examples"
"""Source of a name by template from stored examples in explanations.parquet."""
UNSCORED = "unscored"
"""Key in explanations.json of the reason why no name has a score."""
_CLEAR = 0.2  # of the windows: a word that stands at fewer peaks is no name
_WORDS = 5  # named by a template, at most
_LONGEST_WORD = 30
_MAX_LINE = 2**20  # bytes of a line of jsonl; embeddings take some ten thousand
_LATENT, _TEXT = ("latent", "index", "feature"), ("explanation", "description", "label")


class Name(NamedTuple):
    """A latent's name, from a namer that also gives how sure it is."""

    text: str
    sure: float | None
    """0 to 1"""


Shown = Mapping[int, Sequence[WindowText]]
"""The input of an explainer: the shown windows of each latent."""
Explainer = Callable[[Shown], Mapping[int, str | Name]]


def names_by(explainer: Explainer, shown: Shown) -> dict[int, Name]:
    """The names that an explainer gives, each one printable line."""
    texts = explainer(shown).items()
    names = {i: name if isinstance(name, Name) else Name(name, None) for i, name in texts}
    return {i: name._replace(text=one_label(name.text)) for i, name in names.items()}


def template(windows: Shown) -> dict[int, str]:
    """For each latent the words of its peaks with their shares of the shown windows, and the
    neighbour that stands before or after them in over half of these; "unclear" where there is no
    such neighbour, and no word has a share of a fifth."""
    explanations = {}
    for latent, shown in windows.items():
        counts, n = Counter(_names_of_peaks(shown)), len(shown)
        before, after = Counter[str](), Counter[str]()
        for tokens, peak, *_ in shown:
            _, first, last = _word(tokens, peak)
            if first > 0:
                before[_named(_word(tokens, first - 1)[0].strip(" ").casefold())] += 1
            if last < len(tokens):
                after[_named(_word(tokens, last)[0].strip(" ").casefold())] += 1
        tail = "".join(
            f"; {where} {name}"
            for where, neighbours in (("after", before), ("before", after))
            for name, count in neighbours.most_common(1)
            if count > n / 2
        )
        parts = [f"{name} {count / n:.0%}" for name, count in counts.most_common(_WORDS)]
        while len(parts) > 1 and len(", ".join(parts) + tail) > MAX_LENGTH:
            parts.pop()
        is_clear = tail or max(counts.values()) >= _CLEAR * n
        explanations[latent] = ", ".join(parts) + tail if is_clear else UNCLEAR
    return explanations


def _names_of_peaks(shown: Sequence[WindowText]) -> list[str]:
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
            before = "" if word.startswith(piece) else "-"  # where its word goes on
            after = "" if word.endswith(piece) else "-"
            names.append(_named(f"{before}{piece.strip()}{after}"))
        else:
            commonest = spellings[word.strip().casefold()].most_common(1)[0][0]
            names.append(_named(commonest or word))
    return names


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


def _named(word: str) -> str:
    """A word in quotes, or what a blank one is called."""
    if not word.strip():
        return LINE_END if "\n" in word else BLANK
    short = word if len(word) <= _LONGEST_WORD else word[:_LONGEST_WORD] + "…"
    return f'"{printable(short)}"'


def lm_explainer(judge: Judge, progress: Callable[[int, int], object] | None = None) -> Explainer:
    """An explainer that asks a judge for one line; a latent without a usable answer is absent."""

    def explain(shown: Shown) -> dict[int, Name]:
        questions = [explanation_question(windows) for windows in shown.values()]
        answers = replies_to(
            judge,
            questions,
            lambda question, answer: explanation_in(answer.text or "", question),
            lambda n: progress and progress(n, len(questions)),
        )
        return {latent: name for latent, name in zip(shown, answers, strict=True) if name}

    return explain


def explanation_in(answer: str, question: Question) -> Name | None:
    """The name in an answer, as one line of at most 200 characters; None: there is none."""
    fields = fields_in(answer, question) or {}
    text, sure = one_label(fields.get("name", "")), fields.get("sure")
    if not text:
        return None
    if type(sure) is not int or not 0 <= sure <= N_LEVELS:
        sure = None
    return Name(text, None if sure is None else sure / N_LEVELS)


def from_labels(
    labels: Mapping[int, str | Name], explainer: Explainer = lambda shown: {}
) -> Explainer:
    """An explainer that returns these texts, and for other latents those of another explainer."""

    def explain(shown: Shown) -> dict[int, str | Name]:
        others = explainer({i: windows for i, windows in shown.items() if i not in labels})
        return {i: labels[i] for i in shown if labels.get(i)} | {**others}

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
        raise Refused(f"there is no file {path}; give a parquet or jsonl file")
    explanations: dict[int, Name] = {}
    for number, row in enumerate(_rows(path, weights), 1):
        where = f"row {number} of {path}"
        if not isinstance(row, dict):
            raise Refused(f"{where} is not an object; give a latent and its explanation")
        index = next((row[key] for key in _LATENT if row.get(key) is not None), None)
        text = next((row[key] for key in _TEXT if row.get(key) is not None), "")
        try:
            latent = int(str(index))
        except ValueError:
            raise Refused(
                f"{where} names no latent: it needs a whole number as {' or '.join(_LATENT)}"
            ) from None
        if not isinstance(text, str):
            raise Refused(f"{where} has {text!r} as an explanation; give text")
        if not 0 <= latent < d_sae:
            raise Refused(
                f"{path} explains latent {latent}, and this SAE has 0 to {d_sae - 1:,}: these are "
                "explanations of another SAE"
            )
        if label := one_label(text):
            sure = row.get("sure")
            is_share = isinstance(sure, int | float) and 0 <= sure <= 1
            explanations.setdefault(latent, Name(label, sure if is_share else None))
    if not explanations:
        raise Refused(f"{path} holds no explanations; give rows with a latent and its explanation")
    return explanations


def _rows(path: Path, weights: str | None) -> Iterator[Any]:
    """The rows of a file of explanations; those of jsonl may be anything."""
    import pyarrow
    import pyarrow.parquet as pq

    unpack = gzip.open if path.suffix == ".gz" else open
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix == ".parquet":
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
        elif suffix == ".jsonl":
            with unpack(path, "rb") as file:
                yield from (value for _, value in parsed_lines(file, _MAX_LINE))
        else:
            raise Refused(f"{path} is not a .parquet or .jsonl file; convert it")
    except pyarrow.ArrowException as error:
        raise Refused(
            f"{path} is not a valid parquet file ({one_line(error)}); make it again"
        ) from error
    except (OSError, EOFError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(
            f"{path} cannot be read ({one_line(error)}); restore an intact copy"
        ) from error


def stored_names(
    store: FeatureStore,
    but: Collection[int] = (),
    explainer: Explainer = template,
    source: str = STORED,
) -> list[dict[str, Any]]:
    """Rows for explanations.parquet of the latents that have examples, in their order; those that
    the explainer has no name for are absent.

    Args:
        but: latents to leave out, since they have an explanation.
        source: the column of that name.

    Raises:
        ValueError: the examples on disk are damaged.
    """
    columns = ["latent", "activation", "firing", "tokens"]
    columns += [] if explainer is template else ["activations"]
    shown, left_out = dict[int, list[WindowText]](), {*but}
    for batch in store.examples.to_batches(columns=columns):
        for row in batch.to_pylist():
            firing, tokens = row["firing"], row["tokens"]
            if row["latent"] not in left_out and 0 <= firing < len(tokens):
                own = tuple(value or 0.0 for value in row.get("activations", ()))
                window = Window(0, len(tokens), firing, row["activation"], "")
                shown.setdefault(row["latent"], []).append(WindowText(tokens, firing, window, own))
    names, densities = names_by(explainer, shown), store.latents["density"].to_pylist()
    return [
        {
            "latent": latent,
            "explanation": names[latent].text,
            "sure": names[latent].sure,
            "source": source,
            "density": densities[latent],
            "n_shown": len(windows),
        }
        for latent, windows in sorted(shown.items())
        if latent in names
    ]


def one_label(text: str) -> str:
    """A text as one printable line of at most 200 characters, cut at a word."""
    line = printable(" ".join(text.split()))
    if len(line) <= MAX_LENGTH:
        return line
    return line[: MAX_LENGTH - 1].rsplit(" ", 1)[0] + "…"
