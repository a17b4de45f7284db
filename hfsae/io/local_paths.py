"""The public part of a record: all but the paths of the machine that wrote it.

A path becomes `./` and its last part. Paths are: what starts at the root, a drive, `~`, `.` or
`..`; a relative path of a file; the value of a setting that names a folder; and the name of a
language model or a text, `a/b`, of which a record knows that it was a folder here.
"""

import json
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from .file_names import EVALUATION, TRAINING
from .files import parse_yaml, read_json

Json = dict[str, Any]

LOCAL_FILES = "local files"  # the origin of a text
_FOLDER = "folder "  # start of the origin of a language model that is not from the Hub
# At the start of a setting or after `=` and the like; not `a/b` or `https://a`.
_PATH = re.compile(
    r"(?<![\w.~/\\-])(?:file://)?(?:~[\w.-]*|\.\.?|[A-Za-z]:)?[/\\](?![/\s]).*", re.DOTALL
)
_FILE = re.compile(
    r"[^/\\:]+[/\\].*\.(jsonl?|txt|parquet|csv|ya?ml|gguf|safetensors|npy|wav|flac|png|jpe?g)",
    re.IGNORECASE,
)
_OF_FOLDERS = ("output_dir", "cache", "files", "folder", "labels", "init_decoder")
_OF_NAMES = ("dataset", "name", "model_name")  # of models and texts, on the Hub or here
_OF_SEVERAL_NAMES = ("model_names", "models")


def without_local_paths(record: Json, folder: Path | None = None) -> Json:
    """A record as others may see it.

    Args:
        folder: of an SAE, whose records tell which names in this one are paths, too.
    """
    others = [folder / name for name in (TRAINING, EVALUATION)] if folder else []
    records = [record, *(read_json(path) for path in others if path.is_file())]
    return public(record, local={name for each in records for name in _local_names(each)})


def _local_names(record: Json) -> Iterator[str]:
    """The paths in a record: a language model's folder, or a text's."""
    for about in (record, record.get("measured_with")):
        if not isinstance(about, dict):
            continue
        text, several = about.get("text"), about.get("lms")
        for lm in (about.get("lm"), *(several.values() if isinstance(several, dict) else ())):
            if isinstance(lm, dict) and is_folder(lm):
                yield str(lm.get("name"))
        if isinstance(text, dict) and text.get("origin") == LOCAL_FILES:
            yield str(text.get("dataset"))


def is_folder(lm: Json) -> bool:
    """Whether a language model, as records tell of it, came from a folder."""
    return str(lm.get("origin")).startswith(_FOLDER)


def public(value: object, key: str = "", local: Collection[str] = ()) -> Any:
    """The same without paths of this machine, and without documents given as a list.

    Args:
        key: of the setting that has this value; it decides what `a/b` is.
        local: names that are known to be paths.
    """
    if isinstance(value, dict):
        inner = "model_name" if key in _OF_SEVERAL_NAMES else None
        return {k: public(v, inner or k, local) for k, v in value.items()}
    if isinstance(value, list):
        return listed(value) if key == "dataset" else [public(v, key, local) for v in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        return _public_command(value, local)
    if key == "report":  # a link from one file to another beside it
        return value
    if key == "origin" and value.startswith(_FOLDER):
        return f"{_FOLDER}./{_last_part(value.removeprefix(_FOLDER))}"
    is_path = (key in _OF_NAMES and value in local) or (key != "origin" and _FILE.fullmatch(value))
    if is_path or (key in _OF_FOLDERS and _last_part(value) != value and "://" not in value):
        return f"./{_last_part(value)}"
    return _PATH.sub(lambda m: "./" + _last_part(m[0]), value)


def listed(documents: Collection[Any]) -> str:
    """The words that stand for documents given as a list."""
    return f"{len(documents):,} documents given as a list"


def _last_part(path: str) -> str:
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def _public_command(command: str, local: Collection[str]) -> str:
    """Argument by argument, since a path may hold spaces; in one line."""
    try:
        arguments = shlex.split(command)
    except ValueError:  # a quotation that does not end
        arguments = command.split()
    shown, key = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument[:1] == "-" else ("", "", argument)
        key = name.rpartition(".")[2].lstrip("-") if name else key
        if key == "dataset+" and value:  # a document more
            value = listed([value])
        elif value.lstrip().startswith(("[", "{")):  # a list or a section, as YAML or JSON
            try:
                parsed = parse_yaml(value)
                seen = public(parsed, key, local)
                text = seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False)
                value = value if seen == parsed else text
            except ValueError:
                is_list = key == "dataset"
                value = "documents given as a list" if is_list else public(value, key, local)
        else:
            value = public(value, key, local)
        shown.append(f"{name}{equals}{value}")
        key = "" if equals or not name else key
    return " ".join(shlex.join(shown).split())
