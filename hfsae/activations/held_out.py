"""Text to measure an SAE on: the documents of it that the SAE's training has not read."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..io.errors import Refused
from ..io.local_paths import LOCAL_FILES, listed
from ..packaged import packaged_names
from .arguments import Split, TextArguments, is_hub, side_of
from .tokens import id_of, text_digest, text_origin, texts

logger = logging.getLogger(__name__)
Json = dict[str, Any]
Rule = Literal["documents", "hash", "given", "unknown"]
HELD_OUT = "held_out"
"""key of `text_record`"""
DIGEST = "digest"
"""key of `text_digest` in a training's record of its text"""


@dataclass
class MeasuredText(TextArguments):
    """Text to measure an SAE on. No document is on its test side that the training read.

    Its own shares choose among the rest; the fractions of packaged texts and the cutting of long
    documents, of this text or of the training's, move no document to another side.
    """

    trained: TextArguments | None = None
    """The text of the training; None: unknown."""
    rule: Rule = "unknown"
    """The documents that keep the side which their hash gave them in the training: "documents":
    those that are in its text; "hash": all, since that text is this one or cannot be listed here;
    "given", "unknown": none, since the user says so, or nobody knows the training's text."""

    def sides(self) -> Callable[[str], Split]:
        """From a document's id to its side."""
        own, trained = super().sides(), self.trained
        if trained is None or self.rule in ("given", "unknown"):
            return own
        shared: frozenset[str] | None = None

        def side(document_id: str) -> Split:
            nonlocal shared  # listed at the first document: an unreadable text fails before it
            if shared is None:
                shared = _ids_of_training(trained) if self.rule == "documents" else frozenset()
            may_be_there = self.rule == "hash" or document_id in shared
            was = side_of(document_id, trained) if may_be_there else "test"
            return own(document_id) if was == "test" else was

        return side

    def none_on(self, split: Split, n_read: int) -> str:
        """The error sentence for text without a document on a side."""
        if split != "test" or self.trained is None or self.is_of_training:
            return super().none_on(split, n_read)
        whole = f"none of the {n_read} documents of text.dataset is held out: "
        if self.rule == "documents":
            return (
                f"{whole}all are in the training text, {_name(self.trained)}, and not on its test "
                "side; give other text"
            )
        return (
            f"{whole}at most {100 * self.trained.held_out_fraction:g} % are, by hash, since the "
            f"training text, {_name(self.trained)}, cannot be listed here; give more documents, or "
            "--text.held_out_fraction 1.0 if the training read none of them"
        )

    @property
    def is_of_training(self) -> bool:
        """Whether the training read this data set."""
        return self.trained is not None and self.dataset == self.trained.dataset

    def held_out(self) -> Json:
        """Which documents are held out, for a record; where they are counted the text is read."""
        about: Json = {"rule": self.rule}
        if self.trained is not None:
            about |= {"training_text": _name(self.trained), "is_of_training": self.is_of_training}
            about |= {"share": min(self.held_out_fraction, self.trained.held_out_fraction)}
        if self.rule != "documents" or self.trained is None or is_hub(self.dataset):
            return about
        ids, side = [*_document_ids(self)], self.sides()
        shared = [one for one in ids if one in _ids_of_training(self.trained)]
        left_out = sum(side(one) != "test" for one in shared)
        return about | {"n_documents": len(ids), "n_shared": len(shared), "n_left_out": left_out}


def apart(
    text: TextArguments,
    trained: TextArguments | None,
    fraction: float | None = None,
    digest: str | None = None,
) -> TextArguments:
    """The text as one to measure an SAE on; that of the training itself is returned as it is.

    Args:
        trained: the text of the SAE's training; None: unknown.
        fraction: the share of documents that the user wants held out. None: the share of the
            training where its own text is read or cannot be listed here, and else all.
        digest: of the training's text as it was; None: not known.
    """
    if text == trained:
        return text
    own = plain_text(text)
    rule: Rule = "given" if fraction == 1 else "hash"
    if trained is None:
        rule = "unknown"
    elif text.dataset == trained.dataset:
        rule = "hash"
    elif _can_be_listed(trained) and digest in (None, text_digest(trained)):
        rule = "documents"
    if fraction is not None:
        own["held_out_fraction"] = fraction
    elif trained is None or rule != "hash":
        own["held_out_fraction"] = 1.0
    elif text.dataset != trained.dataset:
        own["held_out_fraction"] = trained.held_out_fraction
        own["validation_fraction"] = text.validation_fraction or trained.validation_fraction
    return MeasuredText(**own, trained=trained, rule=rule)


def _can_be_listed(text: TextArguments) -> bool:
    """Whether all documents can be read here: a list, packaged texts that are installed, or files
    that are there."""
    parts, own = [text.dataset], text.dataset
    if is_hub(own):
        return False
    if isinstance(own, str) and own.startswith("packaged:"):
        parts = [f"packaged:{name}" for name in packaged_names(own)]
    try:
        each = (texts(replace(text, dataset=part, fractions={})) for part in parts)
        return all(next(documents, None) is not None for documents in each)
    except Refused:
        return False


def _document_ids(text: TextArguments) -> Iterator[str]:
    """The ids of all documents that are not empty, all sides."""
    return map(id_of, filter(str.strip, texts(text)))


def _ids_of_training(text: TextArguments) -> frozenset[str]:
    """The ids of all documents that a training on this text could read, and of packaged texts also
    of those that its `fractions` leave out, which so move no document to another side."""
    return _ids_of(json.dumps(asdict(replace(text, fractions={}))))


@lru_cache(maxsize=2)
def _ids_of(plain: str) -> frozenset[str]:
    return frozenset(_document_ids(TextArguments(**json.loads(plain))))


def plain_text(text: TextArguments) -> Json:
    """The fields that every text has, but for the mask: only a training's own text has one."""
    names = [field.name for field in fields(TextArguments) if field.name != "mask_share"]
    return {name: getattr(text, name) for name in names}


def text_record(text: TextArguments) -> Json:
    """The settings of a text for a record; of a `MeasuredText` also which of its documents are held
    out, which is logged, too."""
    if not isinstance(text, MeasuredText):
        return plain_text(text)
    record = {**plain_text(text), HELD_OUT: text.held_out()}
    logger.info("%s", held_out_sentence(record))
    return record


def is_held_out(text: Mapping[str, Any]) -> bool:
    """Whether documents of a text, as `text_record` tells of it, are known to be held out."""
    about = text.get(HELD_OUT)
    if not isinstance(about, dict):  # the training's own text, or an earlier version's other one
        return text.get("held_out_fraction") != 1
    return about.get("rule") in ("documents", "hash")


def held_out_sentence(text: Mapping[str, Any]) -> str:
    """Why documents of a text, as `text_record` tells of it, count as held out, or that nobody
    knows whether they are; "" of a run's own text."""
    about = text.get(HELD_OUT)
    if not isinstance(about, dict):
        return "" if is_held_out(text) else "Whether the training read these documents is unchecked"
    rule, trained = about.get("rule"), about.get("training_text")
    if rule == "unknown":
        return "The training text is unknown: the SAE may have been trained on these documents"
    if rule == "given":
        return (
            "All documents count as held out because a user said so: the training text, "
            f"{trained}, cannot be listed here"
        )
    if rule == "hash":
        share = f"Held out are {100 * about['share']:g} % of the documents"
        if about["is_of_training"]:
            return f"{share}, which the training did not read, by a hash of their text"
        return (
            f"{share}, by the hash that splits the training text: that, {trained}, cannot be "
            "listed here"
        )
    if "n_shared" not in about:
        return f"Documents that are also in the training text, {trained}, keep their side of it"
    n, shared, left_out = (about[f"n_{name}"] for name in ("documents", "shared", "left_out"))
    if not shared:
        return f"None of the {n:,} documents is in the training text, {trained}: all are held out"
    return (
        f"{shared:,} of the {n:,} documents are also in the training text, {trained}; {left_out:,} "
        "of them, on its training side, are left out"
    )


def _name(text: TextArguments) -> str:
    """A data set's name, without a path of this machine."""
    if not isinstance(text.dataset, str):
        return listed(text.dataset)
    is_local = text_origin(text) == LOCAL_FILES
    return f"./{Path(text.dataset).name}" if is_local else text.dataset
