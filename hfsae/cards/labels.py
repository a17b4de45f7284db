"""A card's facts on latents that go with labels of documents."""

from pathlib import Path
from typing import Any

from ..machine.checksums import of_others
from ..machine.files import read_json, reading
from ..machine.label_words import association_cells, too_few_to_tell
from ..machine.names import COLUMNS

Json = dict[str, Any]
_MOST = 12


def labels_section(folder: Path) -> Json:
    """The facts of a card's section on labels; empty without a table for the folder's weights.

    `rows`: of each label (the first 12) its name, the measure, the best latent and the best raw
    dimension, each with its value on held-out documents; `n`: how many there are; `by`: what a
    label is of, a document or a row; `n_units`, `n_documents`: how many of them were read; `few`:
    a sentence where they are too few.

    Raises:
        ValueError: features/columns.json is damaged; the sentence names it.
    """
    path = folder / COLUMNS
    if not path.is_file() or any(of_others(folder, [COLUMNS])):
        return {}
    record = read_json(path)
    with reading(path):
        if not (found := record["associations"]):
            return {}
        return {
            "rows": [association_cells(each)[:-1] for each in found[:_MOST]],
            "n": len(found),
            "by": str(record["by"]),
            "n_units": int(record["n_units"]),
            "n_documents": int(record["n_documents"]),
            "few": too_few_to_tell(int(record["n_documents"])),
        }
