"""Gemma Scope 2's `clt/` and `crosscoder/`: one `params_layer_{i}.safetensors` for each source.

w_enc [d, D], b_enc [D], threshold [D], w_dec [D, n, d] with rows to all n targets (0 to those
before the source), b_dec [d]; optional affine_skip_connection [d, d], applied as x @ A at the
same layer.
The files are numbered from 0 or by layer, and both are read.

Some folders have no config.json. Sites then follow from the published path:

| path | reads | writes |
| --- | --- | --- |
| `clt/width_262k_l0_...` | `layers.{i}.pre_feedforward_layernorm` | its `post_...` |
| `crosscoder/layer_7_13_17_22_width_...` | `layers.7`, `layers.13`, ... | the same |

Of another path they are called `unknown/0` and so on: assign `sae.config.sites`. hfsae writes a
config.json whose `hf_hook_point_in` and `hf_hook_point_out` are lists, one entry for each source.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..io.errors import Refused
from ..io.file_names import CONFIG
from ..io.files import opened_tensors, read_json, read_tensors
from ..models import SAE
from .cross_layer import Part, joined, numbers_of, parts_of
from .gemma_scope_2 import hook_of, model_of, site_of

FILES = ("params_layer_*.safetensors",)
_FILE = "params_layer_{}.safetensors"
_NAMES = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
_SKIP = "affine_skip_connection"
_READ, _WRITTEN = "layers.{}.pre_feedforward_layernorm", "layers.{}.post_feedforward_layernorm"
_LARGEST_EARLIER = 1e-3  # of a file's rows' root mean square: what training leaves, not a use


def load(folder: Path, source: str) -> SAE:
    """The cross-layer transcoder or weakly causal crosscoder in `folder`.

    Raises:
        ValueError: a layer's file is missing, rows lead to earlier targets, the config names
            another architecture, or tensors do not fit.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise Refused(f"{source}: architecture {config['architecture']!r} is not jump_relu")
    first = min(folder.glob(FILES[0]), key=lambda path: (len(path.name), path.name))
    with opened_tensors(first) as file:
        if missing := [name for name in _NAMES if name not in file.keys()]:  # noqa: SIM118
            raise Refused(f"{source}: {first.name} lacks {', '.join(missing)}")
        shape = file.get_slice("w_dec").get_shape()
    if len(shape) != 3:
        raise Refused(f"{source}: w_dec of {first.name} has shape {shape}, not [D, n, d]")
    n = shape[1]
    named = re.search(r"(?:^|/)layer((?:_\d+)+)_width", source)  # a crosscoder's; a clt has all
    layers = [int(layer) for layer in named[1].strip("_").split("_")] if named else []
    by_number = [range(n)] + ([layers] if len(layers) == n else [])
    numbers = numbers_of(folder, _FILE, by_number)
    parts = [_part(folder / _FILE.format(i), s, n, source) for s, i in enumerate(numbers)]
    sites, targets = _places(config, source, layers, n)
    named = re.search(r"gemma-scope-2-(\w+)-(pt|it)\b", source)
    model_name = f"google/gemma-3-{named[1]}-{named[2]}" if named else None
    if config.get("model_name"):
        model_name = model_of(config["model_name"])
    return joined(parts, source, sites, targets, model_name)


def _part(path: Path, s: int, n: int, source: str) -> Part:
    tensors = read_tensors(path)[0]
    if missing := [name for name in _NAMES if name not in tensors]:
        raise Refused(f"{source}: {path.name} lacks {', '.join(missing)}")
    w_enc, b_enc, threshold, rows, b_dec = (tensors[name] for name in _NAMES)
    if rows.ndim != 3 or rows.shape[1] != n:
        raise Refused(
            f"{source}: w_dec of {path.name} has shape {list(rows.shape)}, but there are {n} "
            "targets"
        )
    earlier, size = rows[:, :s].float(), rows.float().square().mean().sqrt()
    if s and earlier.abs().max() > _LARGEST_EARLIER * size:
        raise Refused(
            f"{source}: {path.name} writes to layers before its own (w_dec[:, :{s}], up to "
            f"{float(earlier.abs().max()):.2g}), which no source can in the order of a forward pass"
        )
    threshold = threshold.clamp(min=0)
    return Part(w_enc, b_enc, threshold, rows[:, s:], b_dec, tensors.get(_SKIP))


def _places(
    config: dict[str, Any], source: str, layers: list[int], n: int
) -> tuple[list[str], list[str] | None]:
    """Sites and targets; None: the sites themselves."""
    hooks = [config.get(f"hf_hook_point_{end}") for end in ("in", "out")]
    if all(isinstance(hook, list) and len(hook) == n for hook in hooks):
        sites, targets = ([site_of(hook) or "unknown" for hook in end or []] for end in hooks)
        return sites, None if targets == sites else targets
    if len(layers) == n:
        return [f"layers.{layer}" for layer in layers], None
    if re.search(r"(?:^|/)clt/", f"{source}/"):
        return [_READ.format(i) for i in range(n)], [_WRITTEN.format(i) for i in range(n)]
    return [f"unknown/{i}" for i in range(n)], None


def save(sae: SAE, folder: Path) -> None:
    """Write a file for each source, numbered from 0, and config.json.

    Raises:
        ValueError: the SAE is not one whose sources write at later targets too.
    """
    for s, part in enumerate(parts_of(sae, "Gemma Scope 2's clt and crosscoder")):
        before = torch.zeros(len(part.W_dec), s, part.W_dec.shape[-1])
        rows = torch.cat([before, part.W_dec], dim=1)
        values = (part.W_enc, part.b_enc, part.threshold, rows, part.b_dec)
        tensors: dict[str, torch.Tensor] = dict(zip(_NAMES, values, strict=True))
        if part.W_skip is not None:
            tensors[_SKIP] = part.W_skip
        plain = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        save_file(plain, folder / _FILE.format(s))
    config = {
        "architecture": "jump_relu",
        "model_name": (sae.config.model_name or "").removeprefix("google/"),
        "hf_hook_point_in": [hook_of(site) for site in sae.config.reads.names],
        "hf_hook_point_out": [hook_of(site) for site in sae.config.writes.names],
        "width": sae.config.d_sae,
        "affine_connection": sae.config.skip_connection,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
