"""Gemma Scope (arXiv:2408.05147) and Gemma Scope 2: JumpReLU SAEs and transcoders of Gemma 2 and 3.

| format | files | orientation |
| --- | --- | --- |
| gemma_scope | params.npz | W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc, b_dec, threshold |
| gemma_scope_2 | params.safetensors, config.json | the same, called w_enc and w_dec; optional |
| | | affine_skip_connection A [d_in, d_out], applied as x @ A |

Both have hfsae's formula; b_dec is not subtracted before encoding, all scales are folded.

Gemma Scope has no config file: model and site follow from the published paths,
`gemma-scope-2b-pt-res/layer_12/width_16k/`.

| published folder | site |
| --- | --- |
| res | `layers.L` |
| att | `layers.L.self_attn.o_proj:in` |
| mlp | `layers.L.post_feedforward_layernorm` |
| embedding (in res) | `embed_tokens`, whose output is the embedding times sqrt(d_in): folded |
| transcoders | what `pre_feedforward_layernorm` divides, before its gain; see `load` |

Gemma Scope 2's config names the sites, `model.layers.12.output`,
`model.layers.12.self_attn.o_proj.input`; where it does not name the second, the first is
reconstructed. Its transcoders read the norm's output, gain included, so that no weight of the model
is needed. Its cross-layer transcoders and crosscoders are in cross_layer.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from ..io.errors import Refused
from ..io.files import read_json, read_tensors
from ..models import SAE
from .build import Format, build, check_plain, exported, refuse, to_jumprelu

_PARAMS = "params.npz"
_REPO = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)\b")
_SITES = {
    "res": "layers.{}",
    "att": "layers.{}.self_attn.o_proj:in",
    "mlp": "layers.{}.post_feedforward_layernorm",
    "transcoders": "layers.{}.pre_feedforward_layernorm",
}
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_PARAMS_2, _CONFIG_2 = "params.safetensors", "config.json"
_NAMES_2 = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}


def load(folder: Path, source: str, norm_gain: Float[Tensor, " d_in"] | None = None) -> SAE:
    """Gemma Scope's SAE in `folder`.

    Args:
        source: repo id and path, which give model and site.
        norm_gain: for a transcoder, the gain of the norm before it: `1 + weight` of the
            model's `layers.L.pre_feedforward_layernorm`. Published transcoders read activations
            from before that gain, where no module ends. With it they are rewritten to read the
            norm's output; without it the SAE has no site.
    """
    with np.load(folder / _PARAMS, allow_pickle=False) as arrays:
        names = {name.replace("w_", "W_"): name for name in arrays.files}
        state = {name: arrays[names[name]] for name in _NAMES}
    for name, array in state.items():
        if array.dtype.kind != "f":
            raise Refused(f"{source}: {name} holds {array.dtype}, not floating-point numbers")
    state = {n: torch.from_numpy(np.array(a, np.float32, order="C")) for n, a in state.items()}
    check_plain(state, source)
    # z > threshold alone would let negative z through
    state["threshold"] = state["threshold"].clamp(min=0)
    repo, layer = _REPO.search(source), re.search(r"layer_(\d+)", source)
    fields: dict[str, Any] = {}
    if repo is not None:
        size, kind, site = repo.groups()
        fields["model_name"] = f"google/gemma-2-{size}{'-it' * (kind == 'it')}"
        if "embedding/" in source:
            fields["site"] = "embed_tokens"
        elif layer is not None:
            fields["site"] = _SITES[site].format(layer[1])
            if site == "transcoders":
                fields["target_site"] = _SITES["mlp"].format(layer[1])
    if fields.get("site") == "embed_tokens":  # SAELens scales W_dec, and leaves b_dec as it is
        scale = state["W_enc"].shape[0] ** 0.5
        state["W_enc"], state["W_dec"] = state["W_enc"] / scale, state["W_dec"] * scale
        state["b_dec"] = state["b_dec"] * scale
    if "target_site" in fields and norm_gain is None:
        fields["site"] = None
    elif "target_site" in fields and norm_gain is not None:
        gain = norm_gain.detach().to(state["W_enc"])
        if gain.shape != state["W_enc"].shape[:1]:
            raise Refused(
                f"norm_gain has shape {list(gain.shape)}, but {source} reads "
                f"{len(state['W_enc'])} numbers; give `1 + weight` of the norm in front of it"
            )
        state["W_enc"] = state["W_enc"] / gain[:, None]
    return build("jumprelu_sae", state, source, **fields)


def save(sae: SAE, folder: Path) -> None:
    """Write `params.npz`; not of TopK, with token_norm or a skip connection."""
    refuse(sae, "Gemma Scope", transcoder=True)
    state = exported(to_jumprelu(sae))
    arrays: Any = {name: state[name].numpy() for name in _NAMES}
    np.savez(folder / _PARAMS, **arrays)


FORMAT = Format((_PARAMS,), load, save)


def load_2(folder: Path, source: str) -> SAE:
    """Gemma Scope 2's SAE in `folder`."""
    config = read_json(folder / _CONFIG_2)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise Refused(f"{source}: architecture {config['architecture']!r} is not jump_relu")
    state = {_NAMES_2.get(n, n): t for n, t in read_tensors(folder / _PARAMS_2)[0].items()}
    if "threshold" in state:
        state["threshold"] = state["threshold"].clamp(min=0)
    site, target = (site_of(config.get(f"hf_hook_point_{end}")) for end in ("in", "out"))
    fields: dict[str, Any] = {
        "site": site,
        "model_name": model_of(config.get("model_name")),
        "skip_connection": "W_skip" in state,
    }
    if target not in (None, site):
        fields["target_site"] = target
    elif fields["skip_connection"]:
        fields["target_site"] = "unknown"
    return build("jumprelu_sae", state, source, **fields)


def save_2(sae: SAE, folder: Path) -> None:
    """Write `params.safetensors` and `config.json`; not of TopK, nor with token_norm."""
    refuse(sae, "Gemma Scope 2", transcoder=True, skip_connection=True)
    state = exported(to_jumprelu(sae))
    names = {ours: theirs for theirs, ours in _NAMES_2.items()}
    site, target = sae.config.site, sae.config.target_site or sae.config.site
    config = config_of(sae, site and hook_of(site), target and hook_of(target))
    save_file({names.get(n, n): t for n, t in state.items()}, folder / _PARAMS_2)
    (folder / _CONFIG_2).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


FORMAT_2 = Format((_PARAMS_2, _CONFIG_2), load_2, save_2)


def model_of(name: str | None) -> str | None:
    """gemma-v3-1b-pt -> google/gemma-3-1b-pt"""
    if not name or "/" in name:
        return name or None
    return "google/" + name.replace("gemma-v3-", "gemma-3-")


def site_of(hook: str | None) -> str | None:
    """model.layers.3.mlp.input -> layers.3.mlp:in"""
    path, _, end = (hook or "").removeprefix("model.").rpartition(".")
    return {"output": path, "input": f"{path}:in"}.get(end)


def hook_of(site: str) -> str:
    """layers.3.mlp:in -> model.layers.3.mlp.input"""
    path, _, end = site.partition(":")
    return f"model.{path}.{'input' if end == 'in' else 'output'}"


def config_of(sae: SAE, read: Any, written: Any) -> dict[str, Any]:
    """The content of Gemma Scope 2's config.json, of these hooks, or lists of hooks."""
    return {
        "architecture": "jump_relu",
        "model_name": (sae.config.model_name or "").removeprefix("google/"),
        "hf_hook_point_in": read,
        "hf_hook_point_out": written,
        "width": sae.config.d_sae,
        "affine_connection": sae.config.skip_connection,
    }
