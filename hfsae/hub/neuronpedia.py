"""A feature store as the folder that Neuronpedia's importer takes.

    MODEL/SOURCE/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     one row each
                 features/batch-0.jsonl.gz ...       of 1,024 latents each, dead ones too
                 activations/batch-0.jsonl.gz ...    a row an example, windows as the store has them
                 explanations/batch-0.jsonl.gz ...   labels of people, names of `hfsae explain`

Rows, their fields and types are those of hijohnnylin/neuronpedia at ebb8426f: tables SourceRelease,
Model, SourceSet, Source, Neuron, Activation and Explanation of apps/webapp/prisma/schema.prisma, in
the layout of utils/neuronpedia-utils/neuronpedia_utils/export-data.py, read by apps/webapp/app/api/
admin/import/route.ts. What is left out has a default there. That importer (lib/db/import.ts) takes
the columns of a file from its first row, so that all rows have the same, and fails on an empty
file, so that a batch without rows has none.

Left out, since a store has not got it: vectors, logit histograms, correlated neurons, and the
intervals of examples, which lie in groups of equal size. Neuronpedia's own bucket is filled by its
maintainers: they take such a folder, or an instance of one's own reads it from another bucket.
"""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.formats import new_path
from ..features import (
    FeatureStore,
    Latent,
    even_histogram,
    read_automatic,
    read_labels,
)
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
    site, lm = store.meta.get("site"), store.meta.get("model_name") or ""
    block = re.search(r"\.(\d+)", site or "")
    if store.unit != "token":
        raise Refused(f"{folder}: its latents were read at a {store.unit}; Neuronpedia shows text")
    if block is None:
        raise Refused(f"{folder}: site {site!r} names no block; Neuronpedia's sources are of one")
    if model_id is None:
        model_id = lm.rpartition("/")[2].lower()
    if source_set is None:
        n, kind = len(store), "transcoder" if store.meta.get("target_site") else "res"
        if kind == "res" and (part := re.search("mlp|attn", site)):
            kind = {"mlp": "mlp", "attn": "att"}[part[0]]
        source_set = f"hfsae-{kind}-{f'{n // 1024}k' if n % 1024 == 0 else n}"
    for what, word in (("model_id", model_id), ("source_set", source_set)):
        if not _NAME.fullmatch(word):
            raise Refused(f"{what} is {word!r}; give one of small letters, digits, - . and _")
    source = f"{block[1]}-{source_set}"
    key = {"modelId": model_id, "layer": source}
    automatic = read_automatic(folder)
    names = {i: name.text for i, name in automatic.items() if not name.is_doubtful}
    names |= read_labels(folder)
    with new_path(Path(output) / model_id / source, is_file=False) as home:
        for name, row in _about(store, lm, model_id, source_set, source, creator).items():
            (home / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        for first in range(0, len(store), _BATCH):
            latents = store.between(first, min(first + _BATCH, len(store)))
            edges = store.meta["histogram_edges"]
            named = [latent.index for latent in latents if names.get(latent.index)]
            tables = {
                "features": [{**key, **_feature(latent, source_set, edges)} for latent in latents],
                "activations": [row for latent in latents for row in _activations(latent, key)],
                "explanations": [
                    {
                        "id": f"{model_id}-{source}-{i}",
                        **key,
                        "index": str(i),
                        "description": names[i],
                        "authorId": _CREATOR,
                    }
                    for i in named
                ],
            }
            for table, rows in tables.items():
                if rows:
                    (home / table).mkdir(exist_ok=True)
                    path = home / table / f"batch-{first // _BATCH}.jsonl.gz"
                    text = "".join(json.dumps(row) + "\n" for row in rows)
                    path.write_bytes(gzip.compress(text.encode(), compresslevel=5, mtime=0))
    return Path(output) / model_id / source


def _about(
    store: FeatureStore, lm: str, model_id: str, source_set: str, source: str, creator: str
) -> dict[str, Row]:
    """The rows of a release, its model, source set and source."""
    common = {"creatorId": _CREATOR, "visibility": "PUBLIC"}
    by = {**common, "creatorName": creator, "urls": []}
    place = store.meta["site"]
    if target := store.meta.get("target_site"):
        place = f"{place} to {target}"
    about = f"{len(store):,} latents, {place}"
    window = store.meta["arguments"].get("window")
    return {
        "release": {**by, "name": source_set, "description": about},
        "model": {
            **common,
            "id": model_id,
            "displayName": model_id,
            "displayNameShort": model_id,
            "instruct": bool(re.search(r"\b(it|instruct|chat)\b", model_id)),
            "layers": 0,
            "neuronsPerLayer": 0,
            "owner": lm.partition("/")[0] or "unknown",
        },
        "sourceset": {
            **by,
            "modelId": model_id,
            "name": source_set,
            "releaseName": source_set,
            "description": about,
            "hasDashboards": True,
            "allowInferenceSearch": False,
        },
        "source": {
            **common,
            "id": source,
            "modelId": model_id,
            "setName": source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "num_prompts": store.meta.get("n_rows"),
            "num_tokens_in_prompt": store.meta.get("context_size"),
            "notes": f"collected by hfsae; examples are windows of {window} tokens to either side",
        },
    }


def _feature(latent: Latent, source_set: str, edges: Sequence[float]) -> Row:
    """The row of a latent; the first of its neighbours is itself, as pages expect."""
    top = latent.max_activation
    heights, _ = even_histogram(latent, edges) if top else ([], [])
    middles = (np.arange(len(heights)) + 0.5) * top / max(len(heights), 1)
    near = [(latent.index, 1.0), *latent.neighbours]
    return {
        "index": str(latent.index),
        "sourceSetName": source_set,
        "creatorId": _CREATOR,
        "maxActApprox": top,
        "hasVector": False,
        "topkCosSimIndices": [i for i, _ in near],
        "topkCosSimValues": [cosine for _, cosine in near],
        "pos_str": [token for token, _ in latent.promoted],
        "pos_values": [logit for _, logit in latent.promoted],
        "neg_str": [token for token, _ in latent.suppressed],
        "neg_values": [logit for _, logit in latent.suppressed],
        "frac_nonzero": latent.density,
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": middles.round(4).tolist(),
    }


def _activations(latent: Latent, key: Row) -> Iterator[Row]:
    """A row an example: ids are the same each time, so that a second import adds none."""
    for n, example in enumerate(latent.examples):
        yield {
            "id": f"{key['modelId']}-{key['layer']}-{latent.index}-{n}",
            **key,
            "index": str(latent.index),
            "creatorId": _CREATOR,
            "tokens": example.tokens,
            "values": [a + 0.0 for a in example.activations],  # no -0
            "maxValue": example.activation,
            "maxValueTokenIndex": example.firing,
            "minValue": min(example.activations) + 0.0,
        }
