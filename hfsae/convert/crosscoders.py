"""Crosscoders of two other libraries, which hfsae reads: SAEs with `sites`.

| format | files | tensors, of L sites |
| --- | --- | --- |
| crosscoder | model_final.safetensors, config.json | encoder.weight [L, d, D], encoder.bias [D], |
| | or ae.safetensors, config.json | decoder.weight [L, D, d], decoder.bias [L, d] |
| model_diff | cc_weights.safetensors, cfg.json | W_enc [L, d, D], W_dec [D, L, d], b_enc, b_dec |

crosscoder: science-of-finetuning's dictionary_learning (Minder et al., arXiv:2504.02922), from its
training or from the Hub, where the weights are called `model.safetensors` as hfsae's own are.
model_diff: ckkissane's crosscoder-model-diff-replication (Anthropic's crosscoder of October 2024).

f = relu(sum_s x^s W_enc^s + b_enc), recon^s = f W_dec^s + b_dec^s. A BatchTopK crosscoder keeps
f_i where v_i = f_i m_i exceeds one threshold, m_i = sum_s |W_dec_i^s| (or another norm that the
file names). Here latents are scaled by N_i = sum_s |W_dec_i^s|: rows have N = 1, a latent is v.
What the file does to activations first, (x^s - mean^s) g^s, is folded into the weights, 1 / g^s
kept as `site_scales`.

The libraries save pickles, `model_final.pt`, `ae.pt` and `cc_weights.pt`, which are not opened; the
refusal has the two lines that convert one to a file of the same stem. Neither names its sites in
full: of two they are taken as `base/layers.13` and `chat/layers.13`, the layer from config or path;
assign `sae.config.sites` where that is wrong.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from ..io.file_names import CONFIG, WEIGHTS
from ..io.files import read_json, read_tensors
from ..models import SAE
from .build import Format, State, build
from .sites import to_site

_WEIGHTS = "model_final.safetensors|model_final.pt|ae.safetensors"
_WEIGHTS_OF_TWO, _CONFIG_OF_TWO = "cc_weights.safetensors|cc_weights.pt", "cfg.json"
_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_KINDS = {1: "crosscoder", 2: "sae", 3: "mixed", 4: "none", 5: "decoupled"}
_LAYER = re.compile(r"(?:^|[/_.-])l(?:ayers?)?[._-]?(\d+)(?=[/_.-]|$)")
_EPSILON = 1e-8  # the library's, in what it divides by
_LEAST = 1e-12  # of a norm: the row of a dead latent may be 0


def is_uploaded(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a crosscoder which its library put on the Hub."""
    return "model_type" not in config and {"activation_dim", "dict_size"} <= config.keys()


def about(config: dict[str, Any]) -> dict[str, Any]:
    """Layer, width and goal of dictionary_learning's config.json, under hfsae's names."""
    trainer = config.get("trainer") or config
    layer, names = trainer.get("layer"), ("k", "target_l0")
    site = None if layer is None else f"layers.{layer}"
    goal = {name: trainer.get(name) for name in names}
    return {"site": site, "d_sae": trainer.get("dict_size"), **goal}


def about_two_models(config: dict[str, Any]) -> dict[str, Any]:
    """Site and width of cfg.json, under hfsae's names."""
    site = to_site(config.get("hook_point"), config.get("model_name"))
    return {"site": site, "d_sae": config.get("dict_size")}


def load(folder: Path, source: str) -> SAE:
    """The crosscoder in `folder`, as a BatchTopK, JumpReLU or ReLU SAE with `sites`.

    JumpReLU where the library compares f itself, or f times a mixture of norms, with its threshold.

    Raises:
        ValueError: the weights are a pickle, tensors are missing or do not fit, or each site has a
            threshold of its own.
    """
    config = read_json(folder / CONFIG)
    trainer: dict[str, Any] = config.get("trainer") or config
    tensors = _read(folder, [*_WEIGHTS.split("|"), WEIGHTS], source)
    tensors = {name.removeprefix("_orig_mod."): t for name, t in tensors.items()}
    layer = trainer.get("layer")
    named = _LAYER.findall(source)
    place = named[-1] if layer is None and named else layer
    sites = _sites(None if place is None else f"layers.{place}", len(_weight(tensors, source)))
    return _built(tensors, trainer, {"sites": sites}, source)


def load_of_two_models(folder: Path, source: str) -> SAE:
    """The crosscoder in `folder`, as a ReLU SAE with `sites`, of activations as the file has them.

    Its training multiplies the activations of each model by a factor that the files do not hold;
    the warning says how to enter them.
    """
    config = read_json(folder / _CONFIG_OF_TWO)
    theirs = _read(folder, _WEIGHTS_OF_TWO.split("|"), source)
    if theirs["W_dec"].ndim != 3:
        raise Refused(f"{source}: W_dec has shape {list(theirs['W_dec'].shape)}, not [D, L, d]")
    values = (theirs["W_enc"], theirs["b_enc"], theirs["W_dec"].transpose(0, 1), theirs["b_dec"])
    tensors: State = dict(zip(_NAMES, values, strict=True))
    hook, model_name = config.get("hook_point"), config.get("model_name")
    sites = _sites(to_site(hook, model_name), len(_weight(tensors, source)))
    warnings.warn(
        f"{source} was trained on activations times a factor for each model that its files do not "
        "hold (its authors': sqrt(d) over the mean norm); with the factors, set "
        "sae.config.activation_scale = 1 and sae.config.site_scales = "
        "[1 / (factor * sites ** 0.5), ...]",
        stacklevel=2,
    )
    return _built(tensors, {}, {"sites": sites}, source)


FORMAT = Format((_WEIGHTS, CONFIG), load, None, CONFIG, about)
OF_TWO_MODELS = Format(
    (_WEIGHTS_OF_TWO, _CONFIG_OF_TWO), load_of_two_models, None, _CONFIG_OF_TWO, about_two_models
)


def _read(folder: Path, names: Sequence[str], source: str) -> State:
    there = [name for name in names if (folder / name).is_file()]
    plain = [name for name in there if name.endswith(".safetensors")]
    if plain:
        return read_tensors(folder / plain[0])[0]
    refuse_pickle(folder / (there or names)[0], source)


def refuse_pickle(path: Path, source: str) -> NoReturn:
    """Refuse a pickle, with the two lines that convert it."""
    raise Refused(
        f"{source}: {path.name} is a pickle, which can run any code, and is never read; convert it "
        f'by `tensors = torch.load("{path}", weights_only=True)`, then `safetensors.torch.'
        f"save_file({{n: t.contiguous() for n, t in tensors.items()}}, "
        f'"{path.with_suffix(".safetensors")}")`'
    )


def _weight(tensors: State, source: str) -> Float[Tensor, "L d D"]:
    """The encoder, once all four weights fit together."""
    W = tensors["encoder.weight"]
    if W.ndim != 3:
        raise Refused(f"{source}: encoder.weight has shape {list(W.shape)}, not [L, d, D]")
    n, d, width = W.shape
    for name, shape in zip(_NAMES, ([n, d, width], [width], [n, width, d], [n, d]), strict=True):
        tensor = tensors[name]
        if list(tensor.shape) != shape or not tensor.is_floating_point():
            raise Refused(
                f"{source}: {name} is {tensor.dtype} {list(tensor.shape)}, but the encoder of {n} "
                f"sites asks for floating-point numbers {shape}"
            )
    return W


def _sites(place: str | None, n: int) -> list[str]:
    """Names of n sites: of two, the models that are compared, whose names files leave out."""
    if n == 2:
        return [f"{model}/{place or 'unknown'}" for model in ("base", "chat")]
    return [f"{place or 'unknown'}/{i}" for i in range(n)]


def _built(tensors: State, trainer: dict[str, Any], fields: dict[str, Any], source: str) -> SAE:
    """The SAE of a crosscoder's tensors."""
    raw = [tensors[name] for name in _NAMES]  # in float32 at least: folded weights are new numbers
    E, b, D, c = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in raw)
    kind = str(trainer.get("code_normalization", "crosscoder")).lower()  # f is multiplied by it
    if "code_normalization_id" in tensors:
        kind = _KINDS.get(int(tensors["code_normalization_id"]), "unknown")
    is_l2 = kind == "sae" and "threshold" in tensors
    norms, compared = _norms(D, "sae" if is_l2 else "crosscoder"), _norms(D, kind, trainer)
    whole = 1.0  # the unit of latents, raw units: of all sites side by side, over what training saw
    mean, std = (tensors.get(f"activation_{name}") for name in ("mean", "std"))
    if not (mean is None or std is None or mean.isnan().any() or std.isnan().any()):
        # it reads (x - mean) gain, whose norms have the root mean square `target`, and writes
        # y size + mean
        mean, target = mean.float(), float(tensors.get("target_rms", torch.ones(())))
        gain = tensors.get("activation_global_scale")
        if gain is None:
            gain = target / (std.float().square().sum(dim=-1) + _EPSILON).sqrt()
        gain, size = gain.float(), 1 / (gain.float() + _EPSILON)
        b = b - torch.einsum("ld,ldD->D", mean * gain[:, None], E)
        E, D = E * gain[:, None, None], D * size[:, None, None]
        c = c * size[:, None] + mean
        whole = float(size.square().mean().sqrt())
        if len(E) > 1:
            scales = [target * float(each) for each in size]
            fields |= {"site_scales": scales, "scales_folded": True, "activation_scale": 1.0}
    scale = (norms * whole).clamp(min=_LEAST)
    state = {
        "W_enc": E.flatten(0, 1) * scale,
        "b_enc": b * scale,
        "W_dec": D.transpose(0, 1).flatten(1) / scale[:, None],
        "b_dec": c.flatten(),
    }
    if "threshold" not in tensors:
        return build("relu_sae", state, source, penalty="ri_l1", **fields)
    if kind == "decoupled" or tensors["threshold"].numel() != 1:
        raise Refused(
            f"{source}: its latents have a threshold at each site (code normalization DECOUPLED), "
            "so that one may fire at some sites only; hfsae has no such SAE"
        )
    threshold = tensors["threshold"].float().reshape(()).clamp(min=0)  # -1: not estimated
    if kind in ("crosscoder", "sae"):
        state["threshold"] = threshold * whole
        fields |= {"k": int(tensors.get("k", torch.tensor(trainer.get("k") or 100)))}
        row_norm = "l2" if is_l2 else "sum_of_sites"
        return build("batch_topk_sae", state, source, row_norm=row_norm, **fields)
    state["threshold"] = threshold * scale / compared.clamp(min=_LEAST)
    return build("jumprelu_sae", state, source, **fields)


def _norms(
    D: Float[Tensor, "L D d"], kind: str, trainer: Mapping[str, Any] | None = None
) -> Float[Tensor, " D"]:
    whole, summed = D.norm(dim=(0, 2)), D.norm(dim=2).sum(dim=0)
    if kind == "mixed":
        shares = [(trainer or {}).get(f"code_normalization_alpha_{n}") for n in ("sae", "cc")]
        a, b = (default if s is None else s for s, default in zip(shares, (1.0, 0.1), strict=True))
        return a * whole + b * summed
    known = {"crosscoder": summed, "decoupled": summed, "sae": whole, "none": whole.new_ones(())}
    if kind not in known:
        raise Refused(f"code normalization {kind!r} is unknown; known: {', '.join(known)}, mixed")
    return known[kind].expand(len(whole))
