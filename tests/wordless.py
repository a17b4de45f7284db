"""SAEs that read no text, in folders as runs write them: of rows in files, of pictures.

The feature store is made by plain loops over the latents, to be compared with.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import torch
from jaxtyping import Float
from torch import Tensor

import hfsae
from hfsae.features import FeatureStore
from hfsae.features.summary import HISTOGRAM_EDGES
from hfsae.models import SAE

D_SAE, SIDE, PATCH = 24, 32, 8
GRID = (SIDE // PATCH, SIDE // PATCH)
TOP, WINDOW = 4, 3
COLOURS = ["red", "green", "blue", "yellow"]
_OTHER = "#777777"
_LABELS = (
    ("colour", "red", 3, "max", "auc", 0.97),
    ("colour", "green", 5, "mean", "auc", 0.91),
    ("age", None, 5, "mean", "spearman", -0.62),
)


def folder_of_rows(folder: Path, *, n: int = 20, each: int = 12) -> Path:
    """An SAE that was trained on rows in files: n documents of some rows each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        x = torch.randn(n, each, 8)
    sae = small_sae(8, "acts")
    store = store_of(sae, x, lambda i, j: f"document {i}, row {j}", {"unit": "row"})
    training = {"activations": {"files": "acts.safetensors", "held_out_fraction": 0.05}}
    return _write(folder, sae, store, training)


def pictures(n: int = 12) -> list[Any]:
    """Grey pictures with a coloured square: picture i has it on patch i, in one of four colours."""
    from PIL import Image, ImageDraw

    made = []
    for i in range(n):
        image = Image.new("RGB", (SIDE, SIDE), _OTHER)
        row, column = divmod(i % (GRID[0] * GRID[1]), GRID[1])
        corner = (column * PATCH, row * PATCH)
        box = (*corner, corner[0] + PATCH - 1, corner[1] + PATCH - 1)
        ImageDraw.Draw(image).rectangle(box, fill=COLOURS[i % 4])
        made.append(image)
    return made


def folder_of_pictures(folder: Path) -> Path:
    """An SAE that was trained on the patches of a tiny vision transformer, whose folder is beside
    it, with pictures of the examples."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    from hfsae.features.pictures import write_pictures

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=PATCH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = ViTModel(config, add_pooling_layer=False).eval()
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    home = folder.parent / "vit"
    model.save_pretrained(home)
    processor.save_pretrained(home)
    images = pictures()
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states[1]  # after layers.0
    sae = small_sae(16, "layers.0", model_name=str(home))
    meta = {"unit": "patch", "grid": [*GRID]}
    store = store_of(sae, hidden[:, 1:], _patch_caption, meta)
    training = {"lm": {"name": str(home), "kind": "auto"}, "images": {"positions": "patches"}}
    _write(folder, sae, store, training)
    write_pictures(folder, lambda document, position: images[document])
    return folder


def _patch_caption(i: int, j: int) -> str:
    row, column = divmod(j, GRID[1])
    return f"square-{i}.png, patch row {row + 1} column {column + 1}"


def small_sae(d_in: int, site: str, **terms: Any) -> SAE:
    config = hfsae.TopKSAEConfig(d_in=d_in, d_sae=D_SAE, k=3, site=site, **terms)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return hfsae.TopKSAE(config)


def _write(folder: Path, sae: SAE, store: FeatureStore, training: dict[str, Any]) -> Path:
    sae.save_pretrained(folder)
    store.save(folder)
    metrics = {
        name: {"value": value, "low": value - 0.01, "high": value + 0.01, "unit": unit}
        for name, value, unit in (("fvu", 0.31, "1"), ("l0", 3.0, "latents"))
    }
    density = store.densities.tolist()
    evaluation = {"metrics": metrics, "n_tokens": store.meta["n_tokens"], "density": density}
    labels = [
        {"column": column, "group": group, "measure": measure}
        | {"latent": _best(latent, use, value), "raw": _best(2, use, 0.71)}
        for column, group, latent, use, measure, value in _LABELS
    ]
    n = store.meta["n_rows"]
    table = {"by": "document", "n_units": n, "n_documents": n, "associations": labels}
    for name, content in (("training", training), ("evaluation", evaluation)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "features" / "columns.json").write_text(json.dumps(table))
    (folder / "README.md").write_text("# A small SAE\n\nFor a test.\n")
    return folder


def _best(index: int, use: str, value: float) -> dict[str, Any]:
    """A latent or a raw dimension, as `hfsae.features.label_table` has it."""
    sign = 1 if value > 0 else -1
    best = {"index": index, "use": use, "sign": sign, "chosen": value, "value": value}
    return best | {"low": value - 0.02, "high": value + 0.02}


def store_of(
    sae: SAE,
    x: Float[Tensor, "documents each d_in"],
    caption: Callable[[int, int], str],
    meta: dict[str, Any],
) -> FeatureStore:
    """Of each latent the documents with its largest activations, with the rows around each."""
    with torch.no_grad():
        latents = sae.encode(x)
    n, each, d_sae = latents.shape
    examples, rows = [], []
    for latent in range(d_sae):
        own = latents[:, :, latent]
        fired = own[own > 0]
        peaks = sorted(range(n), key=lambda i: -float(own[i].max()))
        for rank, i in enumerate(i for i in peaks[:TOP] if own[i].max() > 0):
            j = int(own[i].argmax())
            places = [p for p in range(j - WINDOW, j + WINDOW + 1) if 0 <= p < each]
            examples.append(
                {
                    "latent": latent,
                    "kind": "top",
                    "rank": rank,
                    "document": i,
                    "row": i,
                    "position": j,
                    "activation": float(own[i, j]),
                    "firing": places.index(j),
                    "tokens": [caption(i, p) if p == j else f" {p} " for p in places],
                    "token_ids": places,
                    "activations": [float(own[i, p]) for p in places],
                }
            )
        histogram = torch.histogram(fired, HISTOGRAM_EDGES.float()).hist.long().tolist()
        rows.append(
            {
                "latent": latent,
                "density": len(fired) / (n * each),
                "n_firings": len(fired),
                "max_activation": float(own.max()),
                "mean_activation": float(fired.mean()) if len(fired) else 0.0,
                "histogram": histogram,
                "neighbours": [(latent + 1) % d_sae],
                "neighbour_cosines": [0.5],
                "map_x": float(latent % 5) / 3 - 0.7,
                "map_y": float(latent // 5) / 3 - 0.7,
            }
        )
    table = pa.Table.from_pylist(rows)
    for name in ("promoted", "suppressed"):
        table = table.append_column(
            f"{name}_tokens", pa.array([[]] * d_sae, pa.list_(pa.string()))
        ).append_column(f"{name}_logits", pa.array([[]] * d_sae, pa.list_(pa.float64())))
    whole = {"n_tokens": n * each, "n_rows": n, "arguments": {"quantiles": 5}}
    whole |= {"histogram_edges": HISTOGRAM_EDGES.tolist()}
    whole |= {"logit_lens": "none: there is no language model"}
    listed = pa.Table.from_pylist(examples)
    return FeatureStore(table, pyarrow.dataset.dataset(listed), {**whole, **meta})
