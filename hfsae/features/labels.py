"""Names that people give to latents: `features/labels.json`, {"labels": {"1234": "the sea"}}.

The file also holds the hash of the SAE's weights (`io.checksums`): names of other weights are
left out with a note where they would be shown, and refused where they would be published. A
file written by hand needs no hash. People may edit the file: the hash does not cover its content.

A label is plain text by anybody: it is stored and returned as it is, and code that shows it has to
escape it.
"""

import json
import threading
from pathlib import Path
from typing import NamedTuple

from ..io.checksums import KEY, of_others, refuse_mixture, stamp
from ..io.errors import Damaged, Refused
from ..io.file_names import EVIDENCE, EXPLANATIONS, EXPLANATIONS_RECORD, LABELS
from ..io.files import columns_of, damaged, parse_json, read_table, reading, write_whole
from ..io.labels import checked_label, labels_in

DOUBTFUL_SURE, DOUBTFUL_PEARSON = 0.5, 0.05
"""Certainty of a language model, and correlation of its windows' tokens with activations on other
documents: below either, a name is doubtful (scripts/packaged.md has what a judge says of those). So
is one with which a judge tells the latent's texts no better than with another latent's."""
_GROUNDS = ("sure", "pearson", "detection_auc", "shuffled_detection_auc")
_writing = threading.Lock()


def read_labels(folder: str | Path, weights: str | Path | None = None) -> dict[int, str]:
    """{latent: label} of the feature store in `folder`; empty if nobody has written any.

    A label is empty if somebody removed one that the SAE comes with: see `write_labels`.

    Args:
        weights: folder of the SAE, if the labels lie elsewhere.

    Raises:
        ValueError: the file is damaged, is not a file of labels, or belongs to other weights.
    """
    path = Path(folder) / LABELS
    if not path.is_file():
        return {}
    refuse_mixture(Path(folder), [LABELS], Path(weights or folder))
    return labels_in(path)


class Automatic(NamedTuple):
    """A name made by a program or a language model."""

    text: str
    source: str
    """who made it: "template" is a program, "lm" a language model; see `hfsae explain --help`"""
    is_doubtful: bool = False
    """whether the language model was less than half certain, the tokens of the windows that it saw
    hardly predict the latent on other documents, or a judge does no better with this name than with
    another latent's"""

    @property
    def marked(self) -> str:
        """The name behind a mark, for display where people's labels stand without one."""
        return f"{mark_of(self.source)}: {self.text}"


_MARKS = {"lm": "by a model", "template": "by its tokens"}


def mark_of(source: str) -> str:
    """What marks a name that no person gave: "by a model"; "by its tokens" where a template made it
    of the tokens that the latent fires on; "auto" where its source is not known."""
    return _MARKS.get(source, "auto")


def read_automatic(folder: str | Path) -> dict[int, Automatic]:
    """{latent: explanation} that `hfsae explain` gave latents of the SAE in `folder`; empty without
    any. Labels of people come before them.

    Raises:
        ValueError: the file is damaged, or belongs to other weights than the folder's.
    """
    path = Path(folder) / EXPLANATIONS
    if not path.is_file():
        return {}
    refuse_mixture(Path(folder), [EXPLANATIONS_RECORD, EXPLANATIONS, EVIDENCE])
    with reading(path):
        there = [name for name in ("source", *_GROUNDS) if name in columns_of(path)]
    rows = read_table(path, ["latent", "explanation", *there]).to_pylist()
    names = {}
    try:
        for row in rows:
            if row["explanation"]:
                text, source = checked_label(row["explanation"]), row.get("source", "")
                sure, pearson, auc, other = map(row.get, _GROUNDS)
                is_doubtful = (
                    (sure is not None and sure < DOUBTFUL_SURE)
                    or (pearson is not None and pearson < DOUBTFUL_PEARSON)
                    or (auc is not None and other is not None and auc <= other)
                )
                names[int(row["latent"])] = Automatic(text, source, source == "lm" and is_doubtful)
    except (ValueError, TypeError) as error:
        raise Damaged(damaged(path, error)) from error
    return names


def read_names(folder: str | Path) -> dict[int, str]:
    """{latent: name}, for cards and commands: people's labels, and where there is none, the
    explanation that `hfsae explain` gave, behind "by a model: " or, of a program, "auto: ".

    Raises:
        ValueError: as `read_labels` and `read_automatic`.
    """
    labels = {latent: label for latent, label in read_labels(folder).items() if label}
    automatic = {
        i: name.marked if name.source == "lm" else f"auto: {name.text}"
        for i, name in read_automatic(folder).items()
    }
    return {**automatic, **labels}


def write_label(
    folder: str | Path, latent: int, label: str, weights: str | Path | None = None
) -> dict[int, str]:
    """`write_labels` of one latent."""
    return write_labels(folder, {latent: label}, weights)


def write_labels(
    folder: str | Path,
    labels: dict[int, str],
    weights: str | Path | None = None,
    *,
    hides: bool = False,
) -> dict[int, str]:
    """Give latents labels, or remove them with empty ones; returns all labels.

    The file appears whole or not at all, and threads of one process wait for one another.

    Args:
        labels: by latent, one line of at most MAX_LENGTH characters; blanks around it are dropped.
        weights: folder of the SAE, if the labels lie elsewhere. There, a file of other weights,
            such as those of an earlier version, is renamed first: to labels-, the beginning of
            their hash, .json.
        hides: keep empty labels, in a folder of a user's own labels: they hide those that the SAE
            comes with.

    Raises:
        ValueError: a label is longer or has control characters, a latent is negative, or the file
            cannot be read, or lies beside its SAE and belongs to other weights; it is left
            unchanged.
    """
    checked = {latent: checked_label(label).strip() for latent, label in labels.items()}
    for latent in checked:
        if isinstance(latent, bool) or not isinstance(latent, int) or latent < 0:
            raise Refused(f"latent {latent!r} is not an index; use an int, such as 1234")
    path, beside = Path(folder) / LABELS, Path(weights or folder)
    with _writing:
        if beside != Path(folder) and any(of_others(Path(folder), [LABELS], beside)):
            # labels of other weights are neither mixed nor lost
            path.replace(path.with_stem(f"{path.stem}-{parse_json(path)[KEY][:12]}"))
        kept = {**read_labels(folder, weights), **checked}
        kept = {i: label for i, label in kept.items() if label or hides or i not in checked}
        path.parent.mkdir(parents=True, exist_ok=True)
        before = parse_json(path) if path.is_file() else {}
        own = {KEY: before[KEY]} if KEY in before else {}  # where the weights are not at hand
        texts = {str(i): kept[i] for i in sorted(kept)}
        write_whole(path, json.dumps({**own, **stamp(beside), "labels": texts}, indent=2) + "\n")
    return kept
