"""What evaluation.json has of a probing: the means of one SAE and its controls.

probing.json has them, too, with every task and letter, of all SAEs that were probed together. It is
the source: this extract is made from it whenever evaluation.json is written, and has its form.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io.checksums import of_others, refuse_changed
from ...io.errors import Refused
from ...io.file_names import EVALUATION, PROBING
from ...io.files import json_safe, read_json, reading

logger = logging.getLogger(__name__)
KEY = "probing"
"""The extract's place in evaluation.json."""
_WHOLE = ("sae", "site", "tasks_of", "tasks", "arguments", "about")


def extract(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of probing.json on its own SAE, without single tasks and letters."""
    result = {key: record[key] for key in _WHOLE if key in record}
    result["means"] = [entry for entry in record["means"] if _is_own(entry, record)]
    if absorption := record.get("absorption"):
        rows = [dict(row) for row in absorption["rows"] if _is_own(row, record)]
        for row in rows:
            if "letters" in row:
                row["n_letters"] = len(row.pop("letters"))
        result["absorption"] = {**absorption, "rows": rows}
    if uniformity := record.get("uniformity"):
        own = {name: v for name, v in uniformity["saes"].items() if name == record["sae"]}
        result["uniformity"] = {**uniformity, "saes": own}
    return json_safe(result)


def _is_own(entry: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether an entry is of the record's SAE, or of a control for it."""
    if entry["features"] in record["saes"]:
        return entry["features"] == record["sae"]
    return entry["of"] in ("", record["sae"], record["site"])


def kept_extract(folder: Path) -> dict[str, Any]:
    """The extract of probing.json in a folder, or else the one in its evaluation.json; empty
    without a probing of the folder's weights. A damaged or changed file counts as none."""
    parts = {PROBING: extract, EVALUATION: lambda record: record.get(KEY, {})}
    for name, part in parts.items():
        path = folder / name
        if not path.is_file() or any(of_others(folder, [name])):
            continue
        try:
            with reading(path):
                result = part(read_json(path))
            if result:  # an evaluation without a probing loses none
                refuse_changed(folder, [name])
                return dict(result)
        except Refused as error:
            logger.warning("%s gives no results of probing: %s", path, error)
    return {}
