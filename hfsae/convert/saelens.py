"""SAELens: `sae_weights.safetensors` and `cfg.json`.

W_enc [d_in, d_sae] and W_dec [d_sae, d_out] have hfsae's layout; W_skip [d_out, d_in] is
transposed. Traps:

- `apply_b_dec_to_input` is True by default.
- With `rescale_acts_by_decoder_norm`, pre-activations are multiplied by the decoder rows' norms,
  and latents divided by them before decoding: folded here, the same function.
- `normalize_activations`: "layer_norm" and "constant_norm_rescale" act on each token: hfsae's
  `token_norm`; "expected_average_only_in" is folded when SAELens saves, and then does nothing.
- A checkpoint's input scale lies beside it in activation_scaler.json, and is folded here. Batchtopk
  checkpoints have one `topk_threshold`, in their own units.
- Only transcoders have a skip connection: an SAE with one is written as a transcoder whose
  hook_name_out is its hook_name.
- Files from before SAELens 6 have a flat cfg.json with other names.
"""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..io.errors import Refused
from ..io.files import read_json, read_tensors
from ..models import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from ..models.base import fold_decoder_norms
from .build import Format, State, build, check_plain, exported, refuse, to_jumprelu
from .sites import hub_id, to_hook, to_site

FILES = ("sae_weights.safetensors", "cfg.json")
_AS_THEY_ARE = (ReLUSAE, JumpReLUSAE, GatedSAE, TopKSAE)
SCALER = "activation_scaler.json"  # beside them, where there is one
_OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_TOKEN_NORMS = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "unit_rms",
}
_VARIANTS = {
    "standard": "relu_sae",
    "gated": "gated_sae",
    "topk": "topk_sae",
    "jumprelu": "jumprelu_sae",
    "batchtopk": "jumprelu_sae",
    "matryoshka_batchtopk": "jumprelu_sae",
    "transcoder": "relu_sae",
    "skip_transcoder": "relu_sae",
    "jumprelu_transcoder": "jumprelu_sae",
    "jumprelu_skip_transcoder": "jumprelu_sae",
}


def load(folder: Path, source: str) -> SAE:
    """The SAE in `folder`."""
    config = _modern(read_json(folder / FILES[1]))
    architecture = config["architecture"]
    if architecture not in _VARIANTS:
        raise Refused(
            f"{source}: hfsae has no {architecture!r} SAEs; it reads {', '.join(_VARIANTS)}"
        )
    state = read_tensors(folder / FILES[0])[0]
    if (named := config.get("d_in")) != (width := state["W_enc"].shape[0]):
        raise Refused(f"{source}: its config has d_in {named!r:.40}, but its W_enc is {width} wide")
    if (state.pop("scaling_factor", torch.ones(1)) != 1).any():  # ones in most files that have it
        raise Refused(
            f"{source}: it was fine-tuned with a scaling_factor, which hfsae does not support"
        )
    normalised, is_transcoder = config["normalize_activations"], "transcoder" in architecture
    if normalised == "covariance_whitening":
        raise Refused(f"{source}: whitening is not folded in it; export it from SAELens first")
    if normalised not in _TOKEN_NORMS or (is_transcoder and _TOKEN_NORMS[normalised] != "none"):
        raise Refused(
            f"{source}: hfsae has no {architecture} with normalize_activations={normalised!r:.60}"
        )
    model_name, scaler = config.get("model_name"), folder / SCALER
    fields: dict[str, Any] = {
        "model_name": hub_id(model_name),
        "site": to_site(config.get("hook_name"), model_name),
        "token_norm": _TOKEN_NORMS[normalised],
        "subtract_b_dec": config.get("apply_b_dec_to_input", True) and not is_transcoder,
    }
    if is_transcoder:
        fields["target_site"] = to_site(config.get("hook_name_out"), model_name) or "unknown"
    if architecture == "topk":
        fields["k"] = config["k"]
    if architecture == "gated" and "b_gate" in state:
        state["b_enc"] = state.pop("b_gate")
    check_plain(state, source)
    if _VARIANTS[architecture] == "jumprelu_sae":
        if "log_threshold" in state:
            state["threshold"] = state.pop("log_threshold").float().exp()
        if "threshold" in state:
            state["threshold"] = state["threshold"].clamp(min=0)  # SAELens applies relu as well
    if normalised == "expected_average_only_in" and not scaler.is_file():
        warnings.warn(
            f"{source} was trained on activations times a scale that its files do not hold; it is "
            "loaded without it, as in SAELens",
            stacklevel=2,
        )
    rescales = config.get("rescale_acts_by_decoder_norm", False)
    scale = (read_json(scaler) if scaler.is_file() else {}).get("scaling_factor") or 1.0
    state["W_enc"] = state["W_enc"] * scale  # a checkpoint's weights are for x times its scale
    for name in ("W_dec", "b_dec"):
        state[name] = state[name] / scale
    if rescales and "topk_threshold" in state:  # in units of pre-activations times decoder norms
        state["topk_threshold"] = state["topk_threshold"] / scale
    if rescales:
        state = fold_decoder_norms(state)
    if "topk_threshold" in state:
        threshold = state.pop("topk_threshold").float().clamp(min=0)
        state["threshold"] = threshold.expand(state["b_enc"].shape).clone()
    if "W_skip" in state:
        state["W_skip"] = state["W_skip"].T
        fields["skip_connection"] = True
    return build(_VARIANTS[architecture], state, source, **fields)


def about(config: dict[str, Any]) -> dict[str, Any]:
    """The hook, width and k of cfg.json, under hfsae's names; the k of training if it is given."""
    config = {**(config.get("metadata") or {}), **config}
    trained = config.get("training_architecture_details") or {}
    of_activation = config.get("activation_fn_kwargs") or {}
    k = config.get("k") or trained.get("k") or of_activation.get("k")
    hook = config.get("hook_name") or config.get("hook_point")
    return {"site": hook, "d_sae": config.get("d_sae"), "k": k}


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """cfg.json with SAELens 6's names, metadata merged in."""
    config = {_OLD_NAMES.get(key, key): value for key, value in config.items()}
    options = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn") == "topk" and options.get("k") is not None:
        config |= {"architecture": "topk", "k": options["k"]}
    if config.get("activation_fn") not in (None, "relu", "topk"):  # SAELens 6 would take relu
        raise Refused(f"hfsae has no activation {config['activation_fn']!r}")
    normalised = config.get("normalize_activations")
    if not isinstance(normalised, str):
        config["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    return {"architecture": "standard", **(config.get("metadata") or {}), **config}


def save(sae: SAE, folder: Path) -> None:
    """Write `sae_weights.safetensors` and `cfg.json`.

    Raises:
        ValueError: SAELens cannot represent the SAE: TopK or Gated as a transcoder or with a skip
            connection, groupmax, or TopK without relu.
    """
    config, state = to_saelens(sae)
    save_file(state, folder / FILES[0])
    (folder / FILES[1]).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def to_saelens(sae: SAE) -> tuple[dict[str, Any], State]:
    """cfg.json and tensors in SAELens 6's form; BatchTopK becomes JumpReLU, as in SAELens, and
    so does any variant that SAELens has not."""
    if not isinstance(sae, _AS_THEY_ARE):
        sae = to_jumprelu(sae)
    refuse(sae, "SAELens", transcoder=True, skip_connection=True, token_norm=True)
    config, state = sae.config, exported(sae)
    transcodes = config.is_transcoder or config.skip_connection  # nothing else has a skip there
    skip = "skip_" * config.skip_connection
    if isinstance(sae, ReLUSAE):
        architecture = f"{skip}transcoder" if transcodes else "standard"
    elif isinstance(sae, JumpReLUSAE):
        architecture = f"jumprelu_{skip}transcoder" if transcodes else "jumprelu"
    elif transcodes:
        kind = "transcoders" if config.is_transcoder else "with a skip connection"
        raise Refused(f"SAELens files hold no {type(sae).__name__} {kind}")
    elif isinstance(sae, GatedSAE):
        architecture = "gated"
    elif isinstance(sae, TopKSAE) and config.selection == "topk" and config.relu:
        architecture = "topk"
    else:
        raise Refused("SAELens' topk can only take the k largest of all, after relu")
    hook = to_hook(config.site, config.model_name)
    token_norms = {ours: theirs for theirs, ours in reversed(_TOKEN_NORMS.items())}
    written: dict[str, Any] = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": token_norms[config.token_norm],
        "reshape_activations": "hook_z" if (hook or "").endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": "6.54.12",  # whose names these are
            "model_name": config.model_name,
            "hook_name": hook or config.site,
            "prepend_bos": config.bos != "none",
        },
    }
    if transcodes:
        site = config.target_site or config.site
        target = to_hook(site, config.model_name) or site
        written |= {"d_out": config.d_out}
        written["metadata"]["hook_name_out"] = target
    if isinstance(sae, TopKSAE):
        written |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    if config.skip_connection:
        state["W_skip"] = state["W_skip"].T.contiguous()
    if isinstance(sae, GatedSAE):
        state["b_gate"] = state.pop("b_enc")
    return written, state


def to_sae_lens_object(sae: SAE) -> Any:
    """The same function as a `sae_lens.SAE`, in float32 on the SAE's device.

    Raises:
        ValueError: SAELens cannot represent the SAE: see `save`.
        ImportError: the package sae-lens is not installed.
    """
    config, state = to_saelens(sae)
    try:
        sae_lens = importlib.import_module("sae_lens")
    except ModuleNotFoundError as error:
        if error.name != "sae_lens":  # installed, but without something that it needs itself
            raise
        raise ImportError("an SAE of SAELens needs that package: `pip install sae-lens`") from error
    made = sae_lens.SAE.from_dict(config)
    made.process_state_dict_for_loading(state)
    made.load_state_dict(state)
    return made.to(device=str(sae.device)).eval()


FORMAT = Format(FILES, load, save, FILES[1], about, optional=(SCALER,))
