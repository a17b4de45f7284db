"""The language model and the text for an SAE from elsewhere, as far as its files name them.

    given  ->  measured.json  ->  measured_with of its results  ->  training.json  ->  its config

What stands first wins. Files may come from anywhere: only measured.json, which is never published,
may name a path of this machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..activations import HarvestArguments, TextArguments, text_origin
from ..activations.held_out import DIGEST, HELD_OUT
from ..machine.files import read_json, reading
from ..machine.names import EVALUATION, META, TRAINING
from ..machine.visible import LOCAL_FILES, is_folder
from ..recipe import LMArguments, Recipe, Sections, remembered

_DTYPES = ("bfloat16", "float16", "float32")
_ATTENTIONS = ("eager", "sdpa")  # others may not be installed
_WHOLE = {"held_out_fraction": 1.0}  # unless it is the training's: see `activations.apart`


def known_fields(config: Mapping[str, Any], folders: Sequence[Path]) -> Sections:
    """Fields of a recipe's sections lm, text and harvest, and the site.

    Args:
        config: the SAE's.
        folders: folders with files of this SAE; the first one is read first.
    """
    sections: Sections = {"lm": _lm_of_config(config), "text": _text_of_config(config)}
    for record in _records(folders):
        if lm := _lm_of(record.get("lm")):
            is_same = lm["name"] == sections["lm"].get("name")
            sections["lm"] = (sections["lm"] if is_same else {}) | lm
        if text := _text_of(record.get("text")):
            sections["text"] = _as_wanted(text, record["text"])
    for folder in reversed(folders):
        kept = remembered(folder)
        sections |= {name: kept[name] for name in ("lm", "harvest", "site") if name in kept}
        if "text" in kept:
            sections["text"] = _as_wanted(kept["text"], kept["text"])
    return sections


def trained_digest(folders: Sequence[Path]) -> str | None:
    """The digest of the text of an SAE's training as it was, from the first record that has one."""
    for folder in folders:
        if (folder / TRAINING).is_file():
            return _mapping(read_json(folder / TRAINING).get("text")).get(DIGEST)
    return None


def trained_text(folders: Sequence[Path]) -> TextArguments | None:
    """The text of an SAE's training, from the record in the first folder that has one; None without
    a record of text. Local files and documents of a list cannot be found by their record: their
    name is then one that no file has."""
    for folder in folders:
        if (folder / TRAINING).is_file():
            about = _mapping(read_json(folder / TRAINING).get("text"))
            if not isinstance(about.get("dataset"), str):
                return None
            if given := _text_of(about):
                return TextArguments(**given)
            shares = ("held_out_fraction", "validation_fraction")
            name = about["dataset"].rpartition("/")[2]
            with reading(folder / TRAINING):
                return TextArguments(
                    f"{name} ({about.get('origin', LOCAL_FILES)})",
                    **{share: about[share] for share in shares if share in about},
                )
    return None


def recipe_of(known: Sections) -> Recipe:
    """A recipe with these fields.

    Raises:
        ValueError: an unknown field, or a value that a field cannot have.
    """
    lm, text, harvest = (known.get(name, {}) for name in ("lm", "text", "harvest"))
    return Recipe(
        lm=LMArguments(**lm),
        text=TextArguments(**{**_WHOLE, **text}),
        harvest=HarvestArguments(**harvest),
    )


def _records(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Records that name a language model and a text, the most telling last."""
    for name in (TRAINING, EVALUATION, META):
        for folder in reversed(folders):
            if (folder / name).is_file():
                record = read_json(folder / name)
                yield record if name == TRAINING else _mapping(record.get("measured_with"))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lm_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {"name": "model_name", "revision": "model_revision"}
    names |= {"dtype": "model_dtype", "attn_implementation": "model_attention"}
    about = {field: config.get(name) for field, name in names.items()}
    return _lm_of(about) or _precision(about)


def _lm_of(record: object) -> dict[str, Any]:
    """Fields of `lm` from a record of others; none, if it names a path."""
    about = _mapping(record)
    name, revision = about.get("name"), about.get("revision")
    if not isinstance(name, str) or is_folder(about) or _is_path(name):
        return {}
    own = {"name": name} | ({"revision": revision} if isinstance(revision, str) else {})
    return own | _precision(about)


def _precision(about: dict[str, Any]) -> dict[str, Any]:
    choices = {"dtype": _DTYPES, "attn_implementation": _ATTENTIONS}
    return {key: about[key] for key, allowed in choices.items() if about.get(key) in allowed}


def _text_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    bos = config.get("bos")
    return {"bos": bos} if bos in ("row", "document", "none") else {}


def _text_of(record: object) -> dict[str, Any]:
    """Fields of `text` from a record of others; none, if that is not packaged or on the Hub."""
    about, names = _mapping(record), {field.name for field in fields(TextArguments)}
    given = {name: value for name, value in about.items() if name in names}
    if not isinstance(given.get("dataset"), str) or _is_path(given["dataset"]):
        return {}
    try:
        origin = text_origin(TextArguments(**given))
    except (ValueError, TypeError):
        return {}
    is_there = origin != LOCAL_FILES and about.get("origin", origin) == origin
    return given if is_there else {}


def _as_wanted(text: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `text` without those on what is held out, where no user gave a share."""
    is_given = _mapping(record.get(HELD_OUT)).get("rule") == "given"
    own = {name: value for name, value in text.items() if name != HELD_OUT}
    if own.get("held_out_fraction") == 1 and not is_given:
        del own["held_out_fraction"]
    return own


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or Path(name).exists()
