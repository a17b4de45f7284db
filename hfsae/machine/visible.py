"""The public part of a record: all but the paths of the machine that wrote it.

Some paths show by their form: `/a/b`, `../a`, `a/b.jsonl`. `a/b` alone may be a folder or the id of
a repository; which of them it is was known when the record was written, and stands in it.
"""

import json
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from .files import parse_yaml, read_json
from .names import EVALUATION, TRAINING

Json = dict[str, Any]

LOCAL_FILES = "local files"  # the origin of a text
_LONG_COMMAND = 2**16  # characters
_FOLDER = "folder "  # start of the origin of a language model that is not from the Hub
_WITH_ORIGINS = (TRAINING, EVALUATION)  # of a language model or a text
# An absolute path, at the start of a setting or after `=` and the like; not `a/b` or `https://a`.
_PATH = re.compile(r"(?<![\w.~/\\-])(?:file://)?(?:~[\w.-]*|[A-Za-z]:)?[/\\](?![/\s]).*", re.DOTALL)
# By key: `runs/mine` has the form of a repository's id, `models/my/gemma` has not.
_OF_FOLDERS = ("output_dir", "cache", "files", "folder", "labels")
_OF_HUB_IDS = ("dataset", "name", "model_name")
_OF_NAMES = ("model_names", "models")
_FILE = re.compile(
    r"\.(jsonl?|txt|parquet|csv|ya?ml|gguf|safetensors|npy|wav|flac|png|jpe?g)", re.IGNORECASE
)


def public_record(record: Json, folder: Path | None = None) -> Json:
    """A record as others may see it.

    Args:
        folder: of an SAE, whose records tell which names in this one are paths, too.
    """
    others = [folder / name for name in _WITH_ORIGINS] if folder else []
    records = [record, *(read_json(path) for path in others if path.is_file())]
    return public(record, local={name for each in records for name in _local_names(each)})


def _local_names(record: Json) -> Iterator[str]:
    """The paths in a record: a language model's folder, or a text's."""
    for about in (record, record.get("measured_with")):
        lm, text = (about.get(k) if isinstance(about, dict) else None for k in ("lm", "text"))
        several = about.get("lms") if isinstance(about, dict) else None
        for one in (lm, *(several.values() if isinstance(several, dict) else ())):
            if isinstance(one, dict) and is_folder(one) and isinstance(one.get("name"), str):
                yield one["name"]
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
        is_of_names = key in _OF_NAMES  # whose keys are words, and values names of models
        return {k: public(v, "model_name" if is_of_names else k, local) for k, v in value.items()}
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
    if (key in _OF_HUB_IDS and value in local) or _is_relative_path(value, key):
        return f"./{_last_part(value)}"
    return _PATH.sub(lambda m: "./" + _last_part(m[0]), value)


def listed(documents: Collection[Any]) -> str:
    """The words that stand for documents given as a list."""
    return f"{len(documents):,} documents given as a list"


def _is_relative_path(value: str, key: str) -> bool:
    """Whether it is a path of this machine that begins at the working directory."""
    parts = re.split(r"[/\\]+", value.rstrip("/\\"))
    if len(parts) == 1 or "://" in value or not parts[0]:
        return False
    is_file = bool(_FILE.fullmatch(Path(parts[-1]).suffix)) and key != "origin"
    is_deep = key in _OF_HUB_IDS and len(parts) > 2
    return parts[0] in (".", "..") or key in _OF_FOLDERS or is_file or is_deep


def _last_part(path: str) -> str:
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def _public_command(command: str, local: Collection[str]) -> str:
    """Argument by argument, since a path may hold spaces; in one line."""
    try:
        # the time of shlex grows with the square of a command's length
        arguments = (shlex.split if len(command) < _LONG_COMMAND else str.split)(command)
    except ValueError:  # a quotation that does not end
        arguments = command.split()
    shown, key = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument[:1] == "-" else ("", "", argument)
        key = name.rpartition(".")[2].lstrip("-") if name else key
        shown.append(f"{name}{equals}{_public_argument(value, key, local)}")
        key = "" if equals or not name else key
    return " ".join(shlex.join(shown).split())


def _public_argument(value: str, key: str, local: Collection[str]) -> str:
    """The value of an option, which may be a list or a section, written as YAML or JSON."""
    if key == "dataset+":  # one document, or several, more
        return listed([value]) if value else ""
    if not value.lstrip().startswith(("[", "{")):
        return public(value, key, local)
    try:
        parsed = parse_yaml(value)
    except ValueError:
        return "documents given as a list" if key == "dataset" else public(value, key, local)
    shown = public(parsed, key, local)
    if shown == parsed:
        return value
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
