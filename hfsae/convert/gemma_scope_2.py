"""Gemma Scope 2: `params.safetensors` and `config.json`, JumpReLU SAEs and transcoders of Gemma 3.

w_enc [d_in, d_sae], w_dec [d_sae, d_out], b_enc, b_dec, threshold; optional
affine_skip_connection [d_in, d_out], applied as x @ affine_skip_connection. The config names the
sites, `model.layers.12.output`, `model.layers.12.self_attn.o_proj.input`; where it does not name
the second, the first is reconstructed. Unlike in Gemma Scope, transcoders read the norm's output,
gain included, so that no weight of the model is needed.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..io.errors import Refused
from ..io.files import read_json, read_tensors
from ..models import SAE
from .build import build, exported, refuse, to_jumprelu

FILES = ("params.safetensors", "config.json")
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}


def load(folder: Path, source: str) -> SAE:
    """The SAE in `folder`.

    Raises:
        ValueError: the config names another architecture, or tensors do not fit.
    """
    config = read_json(folder / FILES[1])
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise Refused(f"{source}: architecture {config['architecture']!r} is not jump_relu")
    state = {_NAMES.get(n, n): t for n, t in read_tensors(folder / FILES[0])[0].items()}
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


def model_of(name: str | None) -> str | None:
    if not name or "/" in name:
        return name or None
    return "google/" + re.sub(r"gemma-v3-", "gemma-3-", name)


def site_of(hook: str | None) -> str | None:
    """model.layers.3.mlp.input -> layers.3.mlp:in"""
    path, _, end = (hook or "").removeprefix("model.").rpartition(".")
    return {"output": path, "input": f"{path}:in"}.get(end)


def hook_of(site: str | None) -> str | None:
    if site is None:
        return None
    path, _, end = site.partition(":")
    return f"model.{path}.{'input' if end == 'in' else 'output'}"


def save(sae: SAE, folder: Path) -> None:
    """Write `params.safetensors` and `config.json`.

    Raises:
        ValueError: the format cannot represent the SAE, such as TopK or token_norm.
    """
    refuse(sae, "Gemma Scope 2", transcoder=True, skip_connection=True)
    state = exported(to_jumprelu(sae))
    names = {ours: theirs for theirs, ours in _NAMES.items()}
    site, target = sae.config.site, sae.config.target_site or sae.config.site
    config = {
        "architecture": "jump_relu",
        "model_name": (sae.config.model_name or "").removeprefix("google/"),
        "hf_hook_point_in": hook_of(site),
        "hf_hook_point_out": hook_of(target),
        "width": sae.config.d_sae,
        "affine_connection": sae.config.skip_connection,
    }
    save_file({names.get(n, n): t for n, t in state.items()}, folder / FILES[0])
    (folder / FILES[1]).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
