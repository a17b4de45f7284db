"""What of an SAE's folder others may see: files on a list, no local paths, never a key, and a
licence that fits the language model's."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from ..cards import front_of
from ..io.checksums import resealed
from ..io.errors import Refused
from ..io.file_names import (
    CARD,
    COLUMNS_REPORT,
    CONFIG,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FEATURES,
    FIGURES,
    FINGERPRINT,
    LABELS,
    PRESETS,
    RECORDS,
    SHARDS,
    WEIGHTS,
    WEIGHTS_INDEX,
    in_folder,
)
from ..io.files import read_json, read_table
from ..io.local_paths import without_local_paths
from ..io.secrets import keys_of_environment
from ..packaged import known_licence, licence_conflict

CODE = Path(__file__).with_name("modeling_hfsae.py")
_RECORDS = [r.file for r in RECORDS if r.is_pushed and r.file != FINGERPRINT]
PUSHED = (
    CONFIG,
    WEIGHTS,
    SHARDS,
    WEIGHTS_INDEX,
    CARD,
    *_RECORDS,
    FINGERPRINT,
    CODE.name,
    f"{FIGURES}/*.png",
    f"{FEATURES}/*.parquet",
    LABELS,
    EXPLANATIONS_REPORT,
    COLUMNS_REPORT,
    PRESETS,
)
_LICENCE_HOW = "write `license: {}` between the first two lines of --- in README.md"
_MAX_HEADER = 10**8  # bytes, of safetensors
_AUTO_MAP = {"AutoConfig": f"{CODE.stem}.HfsaeConfig", "AutoModel": f"{CODE.stem}.HfsaeModel"}


def files_to_publish(home: Path) -> Iterator[Path]:
    """The files of an SAE's folder that others may see.

    Raises:
        ValueError: one of them is a link, or lies in a linked folder: its target may be private.
    """
    for pattern in PUSHED:
        for path in sorted(home.glob(pattern)):
            on_the_way = [path, *list(path.parents)[: len(path.relative_to(home).parts) - 1]]
            if link := next((p for p in on_the_way if p.is_symlink()), None):
                blobs = [
                    (p.parent / "blobs").resolve()
                    for p in path.absolute().parents
                    if p.name == "snapshots"
                ]
                if path.resolve().parent not in blobs:  # of the Hub's cache
                    raise Refused(link_refusal(link, home))
            if path.is_file():
                yield path


def link_refusal(link: Path, folder: Path) -> str:
    """Why a link is not sent, and what to do."""
    return (
        f"{link.relative_to(folder)} in {folder} is a link to {link.resolve()}; put a copy in its "
        "place, or remove it: links are not sent"
    )


def is_sae(folder: Path) -> bool:
    """Whether the folder holds hfsae weights."""
    return any((folder / n).is_file() for n in (WEIGHTS, WEIGHTS_INDEX))


def is_of_hfsae(folder: Path) -> bool:
    """Whether the folder holds an SAE, not a language model."""
    config = folder / CONFIG
    return is_sae(folder) and config.is_file() and "d_sae" in read_json(config)


def published(path: Path, include_code: bool = False) -> Path | bytes:
    """A file's public version: records lose the paths of this machine, and are sealed again."""
    home, name = in_folder(path)
    if name == FINGERPRINT:  # with the public config's hash: there a model's folder is `./name`
        from transformers import AutoConfig

        from ..models.fingerprint import renamed

        config = path.with_name(CONFIG)
        fields = read_json(config) if config.is_file() else {}
        names = {key: fields[key] for key in ("model_name", "model_names") if fields.get(key)}
        shown = without_local_paths(names, home)
        return path if shown == names else renamed(path, AutoConfig.from_pretrained(home), shown)
    if name not in (CONFIG, *_RECORDS):
        return path
    content = resealed(without_local_paths(read_json(path), home))
    if name == CONFIG:
        content.pop("auto_map", None)
        content.pop("_name_or_path", None)
        content |= {"auto_map": _AUTO_MAP} if include_code else {}
    return (json.dumps(content, indent=2) + "\n").encode()


def refuse_keys(
    files: Mapping[str, Path | bytes], homes: Collection[Path], token: str | None = None
) -> None:
    """Check that no file holds a key of this machine: the Hub's token, or the value of an
    environment variable whose name shows that it is one, or that a record names as one.

    Args:
        files: name -> content.
        homes: folders of SAEs, whose records are read.
        token: for the Hub; None: the one from `hf auth login`.

    Raises:
        ValueError: a file holds a key; the sentence names the file and the variable.
    """
    records = [path for home in homes if (path := home / EXPLANATIONS_RECORD).is_file()]
    named = {str((read_json(path).get("usage") or {}).get("key_env")) for path in records}
    keys = {f"the value of the variable {n}": v for n, v in keys_of_environment(named).items()}
    keys |= {"your token for the Hub": token} if (token := token or get_token()) else {}
    # a card repeats what records hold: those come first, so that they are named
    for name, content in sorted(files.items(), key=lambda file: (file[0].endswith(CARD), file[0])):
        for data in _searched(content):
            for holder, key in keys.items():
                if key.encode("utf-8", "surrogateescape") in data:
                    raise Refused(
                        f"{name} holds {holder}, which others would see; take it out of "
                        "the file, or unset the variable if its value is not a secret"
                    )


def _searched(content: Path | bytes) -> Iterator[bytes]:
    """The bytes in which a key would be seen: of tables also their unpacked texts, of weights the
    header alone."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        if content.suffix == ".safetensors":
            yield file.read(min(int.from_bytes(file.read(8), "little"), _MAX_HEADER))
        else:
            yield file.read()
    if content.suffix != ".parquet":
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(content)
    except (pa.ArrowException, OSError):  # no table: its bytes are all that it holds
        return
    table = read_table(content, [field.name for field in schema if "string" in str(field.type)])
    for chunk in (chunk for column in table.columns for chunk in column.chunks):
        array: Any = chunk.flatten() if pa.types.is_list(chunk.type) else chunk
        array = array.dictionary if pa.types.is_dictionary(array.type) else array
        texts = array.buffers()[-1]
        yield texts.to_pybytes() if texts else b""


def licence_notes(cards: Iterable[str]) -> list[str]:
    """A sentence for each way in which SAEs' cards lack a licence, or have one that leaves out the
    terms of their language model; each once."""
    notes = []
    for card in cards:
        named = front_of(card).get("license")
        conflicts = filter(None, (licence_conflict(named, model) for model in _models(card)))
        if conflict := next(conflicts, None):
            sentence, licence = conflict
            notes.append(f"{sentence}; {_LICENCE_HOW.format(licence)}")
        elif named is None:
            how = _LICENCE_HOW.format("apache-2.0")
            notes.append(
                f"no licence is named, so others may not use it: {how}, or another licence"
            )
    return list(dict.fromkeys(notes))


def licence_of(card: str, lm_name: str | None = None) -> str | None:
    """The licence that a card names, or that of its language model where it is known.

    Args:
        lm_name: a language model that the card may not name.
    """
    known = filter(None, map(known_licence, filter(None, [lm_name, *_models(card)])))
    return front_of(card).get("license") or next(known, None)


def _models(card: str) -> list[str]:
    models = front_of(card).get("base_model") or []
    return models if isinstance(models, list) else [models]
