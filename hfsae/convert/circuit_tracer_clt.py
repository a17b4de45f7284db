"""circuit-tracer's cross-layer transcoders: two files for each layer, and `config.yaml`.

W_enc_{i}.safetensors: W_enc_{i} [D, d], b_enc_{i}, b_dec_{i}, optional threshold_{i} (z where
z > threshold, else relu(z)) and W_skip_{i} [d, d], applied as x @ W_skip;
W_dec_{i}.safetensors: W_dec_{i} [D, L - i, d], rows to layer i and later ones. The config has the
hooks of all layers, as for transcoders of one layer (circuit_tracer.py).
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..io.errors import Refused
from ..io.files import read_tensors
from ..models import SAE
from .circuit_tracer import hooks, read_config, refuse_below_zero, site_of
from .cross_layer import Part, joined, numbers_of, parts_of
from .sites import hub_id

FILES = ("W_enc_*.safetensors", "W_dec_*.safetensors", "config.yaml")
_KIND = "cross_layer_transcoder"
_ENC, _DEC = "W_enc_{}.safetensors", "W_dec_{}.safetensors"


def load(folder: Path, source: str) -> SAE:
    """The cross-layer transcoder in `folder`.

    Raises:
        ValueError: a layer's file is missing, config.yaml describes something else, or tensors do
            not fit.
    """
    config = read_config(folder / FILES[2], _KIND, source)
    n = max(len(list(folder.glob(pattern))) for pattern in FILES[:2])
    for pattern in (_ENC, _DEC):
        numbers_of(folder, pattern, [range(n)])
    parts = [_part(folder, i, source) for i in range(n)]
    n_targets = parts[0].W_dec.shape[1]
    if n_targets != n:
        numbers_of(folder, _ENC, [range(n_targets)])
    model_name = hub_id(config.get("model_name"))
    sites, targets = (
        [site_of(config.get(f"feature_{end}_hook"), i, model_name) for i in range(n)]
        for end in ("input", "output")
    )
    return joined(parts, source, _named(sites, "read"), _named(targets, "written"), model_name)


def _named(sites: list[str | None], what: str) -> list[str]:
    return [site or f"unknown/{what}/{i}" for i, site in enumerate(sites)]


def _part(folder: Path, i: int, source: str) -> Part:
    tensors: dict[str, Tensor] = {}
    for name in (_ENC, _DEC):
        tensors |= read_tensors(folder / name.format(i))[0]
    names = [f"{name}_{i}" for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    if missing := [name for name in names if name not in tensors]:
        raise Refused(f"{source}: the files of layer {i} lack {', '.join(missing)}")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in names)
    if W_enc.ndim != 2 or W_dec.ndim != 3:
        raise Refused(
            f"{source}: layer {i} has W_enc {list(W_enc.shape)} and W_dec {list(W_dec.shape)}, not "
            "[D, d] and [D, layers, d]"
        )
    threshold = tensors.get(f"threshold_{i}", torch.zeros_like(b_enc))
    refuse_below_zero(threshold, f"{source}: layer {i}")
    return Part(W_enc.T, b_enc, threshold, W_dec, b_dec, tensors.get(f"W_skip_{i}"))


def save(sae: SAE, folder: Path) -> None:
    """Write two files for each layer, and config.yaml; thresholds that are all 0 are left out.

    Raises:
        ValueError: the SAE is not one whose sources write at later targets too, has a skip
            connection, which circuit-tracer does not read from files, or is not of all layers
            from 0.
    """
    import yaml

    parts, config = parts_of(sae, "circuit-tracer's cross-layer"), sae.config
    if config.skip_connection:
        raise Refused(
            "circuit-tracer does not read a cross-layer transcoder's skip connection from its "
            "files; hfsae's own format holds it"
        )
    places = zip(config.reads.names, config.writes.names, strict=True)
    first, *others = [hooks(sites, i, config.model_name) for i, sites in enumerate(places)]
    if any(about != first for about in others) or any("blocks." in f"{h}" for h in first.values()):
        raise Refused(
            f"circuit-tracer's layers are all, from 0, and have the same hooks; got {config.where}"
        )
    about = {"model_kind": _KIND, "model_name": config.model_name}
    about |= {**first, "scan": config.model_name}
    is_relu = not any(part.threshold.any() for part in parts)
    for i, part in enumerate(parts):
        read = {"W_enc": part.W_enc.T, "b_enc": part.b_enc, "b_dec": part.b_dec}
        if not is_relu:
            read["threshold"] = part.threshold
        plain = {f"{name}_{i}": tensor.contiguous() for name, tensor in read.items()}
        save_file({n: t.clone() for n, t in plain.items()}, folder / _ENC.format(i))
        save_file({f"W_dec_{i}": part.W_dec.contiguous()}, folder / _DEC.format(i))
    shown = {name: value for name, value in about.items() if value is not None}
    (folder / FILES[2]).write_text(yaml.safe_dump(shown, sort_keys=False), encoding="utf-8")
