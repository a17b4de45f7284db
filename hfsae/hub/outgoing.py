"""Which files of an SAE's folder go to the Hub, without local paths."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig

from ..machine.files import read_json
from ..machine.names import (
    CARD,
    CONFIG,
    EVALUATION,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FEATURES,
    FIGURES,
    LABELS,
    META,
    PRESETS,
    PROBE,
    PROBING,
    SHARDS,
    TRAINING,
    WEIGHTS,
    WEIGHTS_INDEX,
    in_folder,
)
from ..machine.refused import Refused
from ..machine.visible import public_record
from ..models.probe import renamed

CODE = Path(__file__).with_name("modeling_hfsae.py")
PUSHED = (
    CONFIG,
    WEIGHTS,
    SHARDS,
    WEIGHTS_INDEX,
    CARD,
    TRAINING,
    EVALUATION,
    PROBING,
    PROBE,
    CODE.name,
    f"{FIGURES}/*.png",
    f"{FEATURES}/*.parquet",
    META,
    LABELS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    PRESETS,
)
_AUTO_MAP = {"AutoConfig": f"{CODE.stem}.HfsaeConfig", "AutoModel": f"{CODE.stem}.HfsaeModel"}


def files_to_publish(home: Path) -> Iterator[Path]:
    """The files of an SAE's folder that others may see.

    Raises:
        ValueError: one of them is a link, or lies in a linked folder: its target may be private.
    """
    for pattern in PUSHED:
        for path in sorted(home.glob(pattern)):
            on_the_way = [path, *list(path.parents)[: len(path.relative_to(home).parts) - 1]]
            link = next((p for p in on_the_way if p.is_symlink()), None)
            if link is not None and not _is_cached(path):
                raise Refused(link_refusal(link, home))
            if path.is_file():
                yield path


def link_refusal(link: Path, folder: Path) -> str:
    """Why a link is not sent, and what to do."""
    return (
        f"{link.relative_to(folder)} in {folder} is a link to {link.resolve()}; put a copy in its "
        "place, or remove it: links are not sent"
    )


def _is_cached(path: Path) -> bool:
    """Whether the path is a link in the Hub's cache, from a snapshot to a blob."""
    snapshots = [p for p in path.absolute().parents if p.name == "snapshots"]
    return any(path.resolve().parent == (p.parent / "blobs").resolve() for p in snapshots)


def is_sae(folder: Path) -> bool:
    """Whether the folder holds hfsae weights."""
    return any((folder / n).is_file() for n in (WEIGHTS, WEIGHTS_INDEX))


def is_of_hfsae(folder: Path) -> bool:
    """Whether the folder holds an SAE, not a language model."""
    config = folder / CONFIG
    return is_sae(folder) and config.is_file() and "d_sae" in read_json(config)


def published(path: Path, include_code: bool = False) -> Path | bytes:
    """A file's public version: records lose the paths of this machine."""
    home, name = in_folder(path)
    if name == PROBE:
        return _published_probe(path)
    if name not in (CONFIG, TRAINING, EVALUATION, PROBING, META, EXPLANATIONS_RECORD):
        return path
    content = public_record(read_json(path), home)
    if name == CONFIG:
        content.pop("auto_map", None)
        content.pop("_name_or_path", None)
        content |= {"auto_map": _AUTO_MAP} if include_code else {}
    return (json.dumps(content, indent=2) + "\n").encode()


def _published_probe(path: Path) -> Path | bytes:
    """The probe with the public config's hash: there a language model's folder is `./name`."""
    config = path.with_name(CONFIG)
    name = read_json(config).get("model_name") if config.is_file() else None
    shown = public_record({"model_name": name}, path.parent)["model_name"]
    return path if shown == name else renamed(path, AutoConfig.from_pretrained(path.parent), shown)
