"""dictionary_learning: `ae.pt` (a state dict, read with weights_only) and `config.json`.

| dict_class | formula, as its own code computes it |
| --- | --- |
| AutoEncoder | relu((x - bias) E.T + b) D.T + bias; decoder norms are folded on loading |
| AutoEncoderNew | relu(x E.T + b) D.T + decoder.bias |
| AutoEncoderTopK | the k largest of relu((x - b_dec) E.T + b) |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | p H(p - threshold), one threshold; -1: not estimated, 0 |
| GatedAutoEncoder | ours, with b_enc = gate_bias and exp(r_mag) on the shared encoder |
| JumpReluAutoEncoder | ours, x as it is |

Encoders are [d_sae, d_in] and decoders [d_out, d_sae] where they are called `.weight`; Matryoshka's
and JumpReLU's W_enc and W_dec have hfsae's layout.
"""

import json
import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.errors import Refused
from ..io.files import read_json
from ..models import SAE, BatchTopKSAE, GatedSAE, MatryoshkaBatchTopKSAE, TopKSAE
from ..models.base import fold_decoder_norms
from .build import Format, State, build, check_plain, exported, refuse, to_jumprelu
from .crosscoders import about, refuse_pickle
from .sites import to_hook, to_site

FILES = ("ae.pt", "config.json")
_RENAMED = {
    "encoder.bias": "b_enc",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "decoder.bias": "b_dec",
}
_CLASSES = {  # the variant, and whether it subtracts b_dec from the input
    "AutoEncoder": ("relu_sae", True),
    "AutoEncoderNew": ("relu_sae", False),
    "AutoEncoderTopK": ("topk_sae", True),
    "BatchTopKSAE": ("jumprelu_sae", True),
    "MatryoshkaBatchTopKSAE": ("jumprelu_sae", True),
    "GatedAutoEncoder": ("gated_sae", True),
    "JumpReluAutoEncoder": ("jumprelu_sae", False),
}
_SUBMODULES = {"resid_post": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "hook_attn_out"}


def load(folder: Path, source: str) -> SAE:
    """The SAE in `folder`."""
    config = read_json(folder / FILES[1]).get("trainer", {})
    if config.get("dict_class") in ("CrossCoder", "BatchTopKCrossCoder"):
        refuse_pickle(folder / FILES[0], source)
    tensors = read_tensors(folder / FILES[0], source).items()
    state: State = {_RENAMED.get(name, name): t for name, t in tensors if isinstance(t, Tensor)}
    for theirs, ours in (("encoder.weight", "W_enc"), ("decoder.weight", "W_dec")):
        if theirs in state:
            state[ours] = state.pop(theirs).T
    model_name, submodule = config.get("lm_name"), config.get("submodule_name") or ""
    named = re.fullmatch(r"(resid_post|mlp|attention)_layer_(\d+)", submodule)
    hook = f"blocks.{named[2]}.{_SUBMODULES[named[1]]}" if named else None
    fields: dict[str, Any] = {"model_name": model_name, "site": to_site(hook, model_name)}
    dict_class = config.get("dict_class", "AutoEncoder")
    if dict_class not in _CLASSES:
        raise Refused(
            f"{source}: dict_class {dict_class!r} is unknown; hfsae reads {', '.join(_CLASSES)}"
        )
    variant, fields["subtract_b_dec"] = _CLASSES[dict_class]
    if dict_class == "AutoEncoder":
        check_plain(state, source)
        state = fold_decoder_norms(state)
    elif variant == "topk_sae":
        fields["k"] = int(state.pop("k", config.get("k")))
        state.pop("threshold", None)
    elif dict_class == "JumpReluAutoEncoder":
        state["threshold"] = state["threshold"].clamp(min=0)
    elif variant == "jumprelu_sae":
        for name in ("k", "group_sizes"):
            state.pop(name, None)
        check_plain(state, source)
        threshold = state["threshold"].float().clamp(min=0)
        state["threshold"] = threshold.expand(state["b_enc"].shape).clone()
    return build(variant, state, source, **fields)


def read_tensors(path: Path, source: str) -> dict[str, Any]:
    """A torch file's contents if they are tensors and plain values; nothing else is unpickled.

    Raises:
        ValueError: it holds more, or is damaged.
    """
    what = f"{source}: {path.name} cannot be read:"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise Refused(f"{what} it holds more than tensors, and is not opened") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise Refused(
            f"{what} it is damaged, or it holds more than tensors, and is not opened"
        ) from error
    if not isinstance(content, dict):
        raise Refused(f"{source}: {path.name} holds a {type(content).__name__}, not a state dict")
    for name, value in content.items():
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise Refused(f"{what} {name} is a sparse tensor; save it as a dense one")
            content[name] = value.clone()  # out of the file, which may be replaced
    return content


def save(sae: SAE, folder: Path) -> None:
    """Write `ae.pt` and `config.json`: ReLU and JumpReLU as JumpReLU, the others as themselves.

    Raises:
        ValueError: the SAE is a transcoder, has token_norm or groupmax, or is TopK without relu.
    """
    refuse(sae, "dictionary_learning")
    k = getattr(sae.config, "k", None)
    own = isinstance(sae, TopKSAE | BatchTopKSAE | GatedSAE)
    state = exported(sae if own else to_jumprelu(sae))
    shift = state["b_dec"] @ state["W_enc"]  # most classes subtract b_dec from the input
    tensors = {
        "encoder.weight": state["W_enc"].T.contiguous(),
        "decoder.weight": state["W_dec"].T.contiguous(),
    }
    more: dict[str, Any] = {}
    if not own:
        dict_class, trainer_class, tensors = "JumpReluAutoEncoder", "JumpReluTrainer", state
    elif isinstance(sae, MatryoshkaBatchTopKSAE):
        dict_class, trainer_class = "MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"
        more = {"k": k, "group_sizes": [b - a for a, b in pairwise((0, *sae.config.ends))]}
        tensors = state | {"b_enc": state["b_enc"] + shift}
        tensors["group_sizes"] = torch.tensor(more["group_sizes"])
        tensors["k"] = torch.tensor(k, dtype=torch.int)
    elif isinstance(sae, GatedSAE):
        dict_class, trainer_class = "GatedAutoEncoder", "GatedSAETrainer"
        tensors |= {
            "decoder_bias": state["b_dec"],
            "r_mag": state["r_mag"],
            "gate_bias": state["b_enc"] + shift,
            "mag_bias": state["b_mag"] + state["r_mag"].exp() * shift,
        }
    else:
        dict_class, trainer_class, more = "BatchTopKSAE", "BatchTopKTrainer", {"k": k}
        if isinstance(sae, TopKSAE):
            dict_class, trainer_class = "AutoEncoderTopK", "TopKTrainer"
            if sae.config.selection != "topk" or not sae.config.relu:
                raise Refused("dictionary_learning's TopK can only take the k largest after relu")
        tensors |= {
            "encoder.bias": state["b_enc"] + shift,
            "b_dec": state["b_dec"],
            "k": torch.tensor(k, dtype=torch.int),
            "threshold": state.get("threshold", torch.tensor(-1.0)),
        }
    layer = re.search(r"\.(\d+)", sae.config.site or "")
    hook = to_hook(sae.config.site, sae.config.model_name) or ""
    names = {theirs: ours for ours, theirs in _SUBMODULES.items()}
    kind = names.get(hook.rpartition(".")[2])
    config = {
        "dict_class": dict_class,
        "trainer_class": trainer_class,
        **more,
        "activation_dim": sae.config.d_in,
        "dict_size": sae.config.d_sae,
        "lm_name": sae.config.model_name,
        "layer": int(layer[1]) if layer else None,
        "submodule_name": f"{kind}_layer_{layer[1]}" if kind and layer else sae.config.site,
    }
    torch.save(tensors, folder / FILES[0])
    text = json.dumps({"trainer": config, "buffer": {}}, indent=1) + "\n"
    (folder / FILES[1]).write_text(text, encoding="utf-8")


FORMAT = Format(FILES, load, save, FILES[1], about)
