"""circuit-tracer's transcoders, one a layer: `layer_3.safetensors` for each, and one `config.yaml`.

W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc, b_dec; optional activation_function.threshold
[d_sae] (z where z > threshold, else relu(z)) and W_skip [d_out, d_in], applied as x @ W_skip.T. The
config names the model, the hooks that all layers read and write (`mlp.hook_in`, `hook_mlp_out`),
and for TopK `activation: topk` and k: the k largest z, negative ones included.

    {name: sae, ...} = hfsae.load_set(folder)           sae = hfsae.load(folder, layer=3)
    hfsae.convert.save_set_as(transcoders, folder)      of all layers, from 0

circuit-tracer needs a transcoder at each layer up to the last, all of one width; hfsae reads a
folder with fewer. Its cross-layer transcoders are in cross_layer.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..io.errors import Refused
from ..io.files import parse_yaml, read_tensors
from ..models import SAE, ReLUSAE, TopKSAE
from .build import Format, State, build, exported, refuse, to_jumprelu
from .sites import hub_id, to_hook, to_site

CONFIG = "config.yaml"
_LAYERS = "layer_*.safetensors"
_THRESHOLD = "activation_function.threshold"


def load(path: Path, source: str) -> SAE:
    """The transcoder in a file, or in a folder that holds one."""
    if path.is_dir():
        layers = sorted(path.glob(_LAYERS))
        if len(layers) != 1:
            raise Refused(f"{source} has {len(layers)} layers; name one: hfsae.load(..., layer=0)")
        path = layers[0]
    number = re.fullmatch(r"layer_(\d+)\.safetensors", path.name)
    if number is None:
        raise Refused(f"{source}: {path.name} has no number of a layer, as layer_3.safetensors")
    config = read_config(path.parent / CONFIG, "transcoder_set", source)
    tensors = read_tensors(path)[0]
    state = {name: t.T if name in ("W_enc", "W_skip") else t for name, t in tensors.items()}
    model_name = hub_id(config.get("model_name"))
    ends = (config.get(f"feature_{end}_hook") for end in ("input", "output"))
    site, target = (site_of(hook, int(number[1]), model_name) for hook in ends)
    fields = {"model_name": model_name, "site": site, "target_site": target or "unknown"}
    fields |= {"skip_connection": "W_skip" in state}
    stored_k = state.pop("k", None)
    if config.get("activation") == "topk" or stored_k is not None:
        k = config.get("k") if stored_k is None else int(stored_k)
        if k is None:
            raise Refused(f"{source}: its activation is topk; give k in {CONFIG}")
        return build("topk_sae", state, source, k=k, relu=False, **fields)
    if _THRESHOLD not in state:
        return build("relu_sae", state, source, **fields)
    state["threshold"] = state.pop(_THRESHOLD)
    refuse_below_zero(state["threshold"], source)
    return build("jumprelu_sae", state, source, **fields)


def refuse_below_zero(threshold: torch.Tensor, source: str) -> None:
    """Refuse thresholds below 0, above which a pre-activation may be negative."""
    if (threshold < 0).any():
        i = int((threshold < 0).nonzero()[0])
        raise Refused(
            f"{source}: the threshold of latent {i} is {threshold.flatten()[i]:.3g}, so that the "
            "latent may be negative; hfsae's are at least 0"
        )


def read_config(path: Path, kind: str, source: str) -> dict[str, Any]:
    """The content of config.yaml, of this `model_kind` or of none."""
    config = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise Refused(f"{source}: {path.name} holds no fields with values")
    if config.get("model_kind", kind) != kind:
        raise Refused(f"{source}: model_kind {config['model_kind']!r} is not {kind}")
    return config


def site_of(hook: str | None, layer: int, model_name: str | None) -> str | None:
    """The site of a layer's hook; None if it has none, or the model's family is unknown."""
    if hook == "mlp.hook_out":  # before a norm that some families apply to it
        inner = to_site(f"blocks.{layer}.mlp.hook_in", model_name)
        return inner and inner.removesuffix(":in")
    return to_site(f"blocks.{layer}.{hook}", model_name)


def save(sae: SAE, folder: Path) -> None:
    """Write a folder of one layer, which has to be layer 0."""
    save_set([sae], folder)


def save_set(saes: Sequence[SAE], folder: Path) -> None:
    """Write a file for each layer, and config.yaml.

    Raises:
        ValueError: one of them is no transcoder, has no known hook, or is of a variant that the
            format cannot represent; or they are not of all layers from 0, alike in width, hooks,
            activation and skip connection.
    """
    import yaml

    layers = {layer_of(sae): sae for sae in saes}
    if not saes or len(layers) < len(saes) or sorted(layers) != list(range(len(saes))):
        names = ", ".join(map(str, sorted(layer_of(sae) for sae in saes))) or "none"
        raise Refused(f"circuit-tracer needs one transcoder at each layer from 0, got {names}")
    states: list[State] = []
    first: dict[str, Any] = {}  # what config.yaml says, and what all layers must share
    for i in range(len(saes)):
        sae, config = layers[i], layers[i].config
        refuse(sae, "circuit-tracer", transcoder=True, skip_connection=True)
        if not config.is_transcoder:
            raise Refused(
                f"circuit-tracer's files hold transcoders, and {config.where} is read alone"
            )
        about: dict[str, Any] = {
            "model_name": config.model_name,
            **hooks_of([config.site, config.target_site], i, config.model_name),
            "scan": config.model_name,
            "activation": None,
            "k": None,
            "width": config.d_sae,
            "skip": config.skip_connection,
        }
        if isinstance(sae, TopKSAE):
            if config.relu or config.selection != "topk":
                raise Refused(
                    "circuit-tracer's TopK keeps the k largest, negative ones included; this SAE's "
                    f"selection is {config.selection!r} with relu={config.relu}"
                )
            about |= {"activation": "topk", "k": config.k}
        state = exported(sae if isinstance(sae, ReLUSAE | TopKSAE) else to_jumprelu(sae))
        if "threshold" in state:
            state[_THRESHOLD] = state.pop("threshold")
        for name in {"W_enc", "W_skip"} & state.keys():
            state[name] = state[name].T.contiguous()
        states.append(state)
        first = first or about
        if other := [name for name in first if about[name] != first[name]]:
            name = other[0]
            raise Refused(
                f"circuit-tracer's transcoders are alike in {name}, but layer 0 has {first[name]!r}"
                f" and layer {i} {about[name]!r}"
            )
    for i, state in enumerate(states):
        save_file(state, folder / f"layer_{i}.safetensors")
    config = {"model_kind": "transcoder_set"} | first
    shown = {n: v for n, v in config.items() if n not in ("width", "skip") and v is not None}
    (folder / CONFIG).write_text(yaml.safe_dump(shown, sort_keys=False), encoding="utf-8")


def layer_of(sae: SAE) -> int:
    """The layer that a transcoder reads."""
    if sae.config.has_several_sites:
        raise Refused(
            f"the SAE reads several sites ({sae.config.where}), and these files are of one layer "
            "each; give a set of transcoders, or write a cross-layer one as circuit_tracer_clt"
        )
    number = re.search(r"\.(\d+)", sae.config.site or "")
    if number is None:
        raise Refused(f"site {sae.config.site!r} names no layer, which circuit-tracer's files need")
    return int(number[1])


def hooks_of(sites: Sequence[str | None], layer: int, model_name: str | None) -> dict[str, str]:
    """The fields of config.yaml that say where transcoders read and write: hooks without their
    layer, the inverse of `site_of`."""
    fields: dict[str, str] = {}
    mlp, norm = (  # the MLP, and the norm whose output it reads
        (to_site(f"blocks.{layer}.{hook}", model_name) or "").removesuffix(":in") or None
        for hook in ("mlp.hook_in", "hook_resid_mid")
    )
    for name, site in zip(("feature_input_hook", "feature_output_hook"), sites, strict=True):
        hook = to_hook(site, model_name)
        if hook is not None:
            fields[name] = hook.removeprefix(f"blocks.{layer}.")
        elif site is not None and site in (mlp, norm):
            fields[name] = "mlp.hook_out" if site == mlp else "mlp.hook_in"
        else:
            raise Refused(
                f"no TransformerLens hook is known for {' and '.join(map(repr, sites))} of "
                f"{model_name!r}, which circuit-tracer's files need"
            )
    return fields


FORMAT = Format((_LAYERS, CONFIG), load, save, is_file=True, save_set=save_set)
