"""The recipe for an SAE from elsewhere: its language model and text, as far as its files name them.

    given  ->  recipe.yaml  ->  measured_with of its results  ->  training.json  ->  its config

What stands first wins. Files may come from anywhere: only recipe.yaml, which is never published,
may name a path of this machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..activations import HarvestArguments, TextArguments, apart, text_origin
from ..activations.held_out import DIGEST, HELD_OUT
from ..io.files import read_json, reading
from ..io.file_names import EVALUATION, META, RECIPE, TRAINING
from ..io.local_paths import LOCAL_FILES, is_folder
from .fields import LMArguments, Recipe, Sections
from .recipe_files import load_plain
from .recipe_files import is_of_training

_CHOICES = {
    "dtype": ["bfloat16", "float16", "float32"],
    "attn_implementation": ["eager", "sdpa"],  # others may not be installed
}
_OF_CONFIG = {"name": "model_name", "revision": "model_revision"}
_OF_CONFIG |= {"dtype": "model_dtype", "attn_implementation": "model_attention"}
_RULE_OF_USERS = "given"


def known_fields(config: Mapping[str, Any], folders: Sequence[Path]) -> Sections:
    """Fields of a recipe's sections lm, text and harvest, and `sae` with the site.

    Args:
        config: the SAE's.
        folders: folders with files of this SAE; the first one is read first.
    """
    about = {field: config.get(name) for field, name in _OF_CONFIG.items()}
    bos = config.get("bos")
    sections: Sections = {"lm": _lm_of(about) or _precision(about), "text": {}}
    if bos in ("row", "document", "none"):
        sections["text"]["bos"] = bos
    for record in _records(folders):
        if lm := _lm_of(record.get("lm")):
            is_same = lm["name"] == sections["lm"].get("name")
            sections["lm"] = (sections["lm"] if is_same else {}) | lm
        if text := _text_of(record.get("text")):
            rule = _mapping(record["text"].get(HELD_OUT)).get("rule")
            if text.get("held_out_fraction") == 1 and rule != _RULE_OF_USERS:
                del text["held_out_fraction"]  # which no user gave
            sections["text"] = text
    for folder in reversed(folders):
        path = folder / RECIPE
        if path.is_file() and not is_of_training(path):
            plain = load_plain(folder)
            with reading(path):
                recipe_of(plain)  # refuses what no field can have
                sections |= {name: plain[name] for name in ("lm", "text", "harvest", "sae")}
    return sections


def recipe_of(known: Sections) -> Recipe:
    """A recipe with these fields; all documents are held out unless a share is given.

    Raises:
        ValueError: an unknown field, or a value that a field cannot have.
    """
    lm, text, harvest = (known.get(name, {}) for name in ("lm", "text", "harvest"))
    return Recipe(
        lm=LMArguments(**lm),
        text=TextArguments(**{"held_out_fraction": 1.0, **text}),
        harvest=HarvestArguments(**harvest),
    )


def with_given(
    recipe: Recipe,
    given: Sections,
    trained: TextArguments | None,
    fraction: float | None = None,
    digest: str | None = None,
) -> Recipe:
    """The recipe with the fields that a user gives. Another language model has no revision of the
    old one's; of every text only documents that training has not read are on the test side.

    Args:
        trained: the text of the SAE's training; None: unknown.
        fraction: the share of the recipe's text that a user wanted held out, if one did.
        digest: of the training's text as it was; None: not known.

    Raises:
        ValueError: a value that a field cannot have.
    """
    lm, text, base = given.get("lm", {}), given.get("text", {}), recipe
    if lm.get("name", recipe.lm.name) != recipe.lm.name:
        kept = {"dtype": recipe.lm.dtype, "attn_implementation": recipe.lm.attn_implementation}
        base = replace(base, lm=LMArguments(**kept))
    if text.get("dataset", recipe.text.dataset) != recipe.text.dataset:
        size, bos = recipe.text.context_size, recipe.text.bos
        base, fraction = replace(base, text=TextArguments(context_size=size, bos=bos)), None
    sections: dict[str, Any] = {}
    for name, value in given.items():
        old = getattr(base, name)
        has_fields = hasattr(old, "__dataclass_fields__")
        sections[name] = replace(old, **value) if has_fields else value
    new = replace(base, **sections)
    fraction = text.get("held_out_fraction", fraction)
    return replace(new, text=apart(new.text, trained, fraction, digest))


def trained_text(folders: Sequence[Path]) -> tuple[TextArguments | None, str | None]:
    """The text of an SAE's training, from the record in the first folder that has one, and its
    digest as it was; None where the record has no text. Local files and documents of a list cannot
    be found by their record: their name is then one that no file has."""
    path = next((f / TRAINING for f in folders if (f / TRAINING).is_file()), None)
    about = {} if path is None else _mapping(read_json(path).get("text"))
    digest = about.get(DIGEST)
    if path is None or not isinstance(about.get("dataset"), str):
        return None, digest
    if text := _text_of(about):
        return TextArguments(**text), digest
    shares = ("held_out_fraction", "validation_fraction")
    name = about["dataset"].rpartition("/")[2]
    with reading(path):
        text = TextArguments(
            f"{name} ({about.get('origin', LOCAL_FILES)})",
            **{share: about[share] for share in shares if share in about},
        )
    return text, digest


def _records(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Records that name a language model and a text, the most telling last."""
    for name in (TRAINING, EVALUATION, META):
        for folder in reversed(folders):
            if (folder / name).is_file():
                record = read_json(folder / name)
                yield record if name == TRAINING else _mapping(record.get("measured_with"))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lm_of(record: object) -> dict[str, Any]:
    """Fields of `lm` from a record of others; none, if it names a path."""
    about = _mapping(record)
    name, revision = about.get("name"), about.get("revision")
    if not isinstance(name, str) or is_folder(about) or _is_path(name):
        return {}
    own = {"name": name} | ({"revision": revision} if isinstance(revision, str) else {})
    return own | _precision(about)


def _precision(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key, allowed in _CHOICES.items() if about.get(key) in allowed}


def _text_of(record: object) -> dict[str, Any]:
    """Fields of `text` from a record of others; none, if that is not packaged or on the Hub."""
    about, names = _mapping(record), {field.name for field in fields(TextArguments)}
    text = {name: value for name, value in about.items() if name in names}
    if not isinstance(text.get("dataset"), str) or _is_path(text["dataset"]):
        return {}
    try:
        origin = text_origin(TextArguments(**text))
    except (ValueError, TypeError):
        return {}
    is_there = origin != LOCAL_FILES and about.get("origin", origin) == origin
    return text if is_there else {}


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or Path(name).exists()
