"""A feature store as the folder that Neuronpedia's importer takes.

    MODEL/SOURCE/{release, model, sourceset, source}.jsonl   a row each
                 features/batch-0.jsonl.gz ...       of 1,024 latents each, dead ones too
                 activations/batch-0.jsonl.gz ...    a row an example, windows as the store has them
                 explanations/batch-0.jsonl.gz ...   people's labels, or names of `hfsae explain`

Rows and types are those of hijohnnylin/neuronpedia at ebb8426f: SourceRelease, Model, SourceSet,
Source, Neuron, Activation and Explanation of apps/webapp/prisma/schema.prisma, laid out as by
utils/neuronpedia-utils/neuronpedia_utils/export-data.py; what is left out has a default there. The
importer (apps/webapp/lib/db/import.ts) takes a file's columns from its first row and fails on an
empty file: rows of a table have the same fields, and a batch without rows has no file.

A store has no vectors, histograms of logits and correlated neurons, and its groups of examples are
of equal size, not of equal intervals: these fields are left out.
"""

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.formats import new_path
from ..features import FeatureStore, Latent, even_histogram, read_automatic, read_labels
from ..io.errors import Refused

_CREATOR = "clkht01d40000jv08hvalcvly"  # the user that apps/webapp/prisma/seed.ts makes
_BATCH = 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{,127}")
Row = dict[str, Any]


def export_neuronpedia(
    folder: str | Path,
    output: str | Path,
    *,
    model_id: str | None = None,
    source_set: str | None = None,
    creator: str = "unknown",
) -> Path:
    """Write OUTPUT/MODEL/SOURCE from the feature store of an SAE; a failure leaves nothing.

    Args:
        folder: of an SAE, with `features/`.
        model_id: Neuronpedia's name of the language model, such as gemma-2-2b; None: the end of
            its name on the Hub.
        source_set: name of the SAEs that belong together, one a block; None: of what the SAE reads
            and its number of latents.
        creator: who is shown as the author.

    Returns:
        The folder.

    Raises:
        ValueError: there is no feature store or a damaged one; it is not of text; the SAE is not of
            one block; a name has other characters; or the folder is taken.
    """
    store = FeatureStore.load(folder)
    site, block = store.meta.get("site") or "", re.search(r"\.(\d+)", store.meta.get("site") or "")
    if store.unit != "token":
        raise Refused(f"{folder}: its latents were read at a {store.unit}; Neuronpedia shows text")
    if block is None:
        raise Refused(f"{folder}: site {site!r} names no block; Neuronpedia's sources are of one")
    if model_id is None:
        model_id = str(store.meta.get("model_name")).rpartition("/")[2].lower()
    if source_set is None:
        part = re.search("mlp|att", site)
        kind = "transcoder" if store.meta.get("target_site") else part[0] if part else "res"
        source_set = f"hfsae-{kind}-{len(store)}"
    for what, name in (("model_id", model_id), ("source_set", source_set)):
        if not _NAME.fullmatch(name):
            raise Refused(f"{what} is {name!r}; give one of small letters, digits, - . and _")
    key = {"modelId": model_id, "layer": f"{block[1]}-{source_set}"}
    automatic, edges = read_automatic(folder), store.meta["histogram_edges"]
    names = {i: name.text for i, name in automatic.items() if not name.is_doubtful}
    names |= read_labels(folder)
    home = Path(output) / model_id / key["layer"]
    with new_path(home, is_file=False) as new:
        for table, row in _about(store, key, source_set, creator).items():
            (new / f"{table}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        for first in range(0, len(store), _BATCH):
            latents = store.between(first, min(first + _BATCH, len(store)))
            named = [latent.index for latent in latents if names.get(latent.index)]
            tables: dict[str, Iterable[Row]] = {
                "features": (_feature(latent, key, source_set, edges) for latent in latents),
                "activations": (row for latent in latents for row in _activations(latent, key)),
                "explanations": (_explanation(i, names[i], key) for i in named),
            }
            for table, rows in tables.items():
                if text := "".join(json.dumps(row) + "\n" for row in rows):
                    (new / table).mkdir(exist_ok=True)
                    path = new / table / f"batch-{first // _BATCH}.jsonl.gz"
                    path.write_bytes(gzip.compress(text.encode(), compresslevel=5, mtime=0))
    return home


def _about(store: FeatureStore, key: Row, source_set: str, creator: str) -> dict[str, Row]:
    """The rows of a release, its model, source set and source."""
    meta, model_id = store.meta, key["modelId"]
    common = {"creatorId": _CREATOR, "visibility": "PUBLIC"}
    sites = [site for site in (meta["site"], meta.get("target_site")) if site]
    by: Row = {**common, "creatorName": creator, "urls": []}
    by["description"] = f"{len(store):,} latents, {' to '.join(sites)}"
    shown: Row = {"displayName": model_id, "displayNameShort": model_id}
    shown["instruct"] = bool(re.search(r"\b(it|instruct|chat)\b", model_id))
    shown["owner"] = str(meta.get("model_name")).partition("/")[0]
    sizes = {"num_prompts": meta.get("n_rows"), "num_tokens_in_prompt": meta.get("context_size")}
    notes = f"Collected by hfsae: windows of {meta['arguments']['window']} tokens to either side"
    place = {"modelId": model_id, "setName": source_set}
    named = {"modelId": model_id, "name": source_set, "releaseName": source_set}
    return {
        "release": {**by, "name": source_set},
        "model": {**common, **shown, "id": model_id, "layers": 0, "neuronsPerLayer": 0},
        "sourceset": {**by, **named, "allowInferenceSearch": False},
        "source": {**common, **place, **sizes, "id": key["layer"], "notes": notes},
    }


def _feature(latent: Latent, key: Row, source_set: str, edges: list[float]) -> Row:
    """The row of a latent; the first of its neighbours is itself, as pages expect."""
    top = latent.max_activation
    heights, _ = even_histogram(latent, edges) if top else ([], [])
    middles = (np.arange(len(heights)) + 0.5) * top / max(len(heights), 1)
    row: Row = {**key, "index": str(latent.index), "creatorId": _CREATOR}
    row |= {"sourceSetName": source_set, "hasVector": False}
    row |= {"maxActApprox": top, "frac_nonzero": latent.density}
    row["topkCosSimIndices"] = [latent.index, *(i for i, _ in latent.neighbours)]
    row["topkCosSimValues"] = [1.0, *(cosine for _, cosine in latent.neighbours)]
    for sign, pairs in (("pos", latent.promoted), ("neg", latent.suppressed)):
        row[f"{sign}_str"] = [token for token, _ in pairs]
        row[f"{sign}_values"] = [logit for _, logit in pairs]
    row["freq_hist_data_bar_heights"] = heights
    return row | {"freq_hist_data_bar_values": middles.round(4).tolist()}


def _activations(latent: Latent, key: Row) -> Iterable[Row]:
    """A row an example: ids are the same each time, so that a second import adds none."""
    for n, example in enumerate(latent.examples):
        name = f"{key['modelId']}-{key['layer']}-{latent.index}-{n}"
        row: Row = {"id": name, **key, "index": str(latent.index), "creatorId": _CREATOR}
        row |= {"tokens": example.tokens, "values": [a + 0.0 for a in example.activations]}  # no -0
        row |= {"maxValue": example.activation, "maxValueTokenIndex": example.firing}
        yield row | {"minValue": min(example.activations) + 0.0}


def _explanation(index: int, text: str, key: Row) -> Row:
    row: Row = {"id": f"{key['modelId']}-{key['layer']}-{index}", **key, "index": str(index)}
    return row | {"description": text, "authorId": _CREATOR}
