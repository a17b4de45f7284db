"""Gemma Scope (arXiv:2408.05147): `params.npz`, JumpReLU SAEs of Gemma 2.

W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc, b_dec, threshold: hfsae's names, orientation and
formula; b_dec is not subtracted before encoding, all scales are folded. There is no config file:
model and site follow from the published paths, `gemma-scope-2b-pt-res/layer_12/width_16k/`.

| published folder | site |
| --- | --- |
| res | `layers.L` |
| att | `layers.L.self_attn.o_proj:in` |
| mlp | `layers.L.post_feedforward_layernorm` |
| embedding (in res) | `embed_tokens`, whose output is the embedding times sqrt(d_in): folded |
| transcoders | what `pre_feedforward_layernorm` divides, before its gain; see `load` |
"""

import re
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Damaged, Refused, one_line
from ..models import SAE
from .build import build, check_plain, exported, refuse, to_jumprelu

FILES = ("params.npz",)
_REPO = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)\b")
_SITES = {
    "res": "layers.{}",
    "att": "layers.{}.self_attn.o_proj:in",
    "mlp": "layers.{}.post_feedforward_layernorm",
    "transcoders": "layers.{}.pre_feedforward_layernorm",
}
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_OF_ARCHIVES = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, ValueError, EOFError, OSError)
_OF_ARCHIVES += (TokenError,)  # of numpy, which reads an array's header as Python


def load(folder: Path, source: str, norm_gain: Float[Tensor, " d_in"] | None = None) -> SAE:
    """The SAE in `folder`.

    Args:
        source: repo id and path, which give model and site.
        norm_gain: for a transcoder, the gain of the norm before it: `1 + weight` of the
            model's `layers.L.pre_feedforward_layernorm`. Published transcoders read activations
            from before that gain, where no module ends. With it they are rewritten to read the
            norm's output; without it the SAE has no site.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        with np.load(folder / FILES[0], allow_pickle=False) as arrays:
            names = {name.replace("w_", "W_"): name for name in arrays.files}
            if missing := [name for name in _NAMES if name not in names]:
                raise Refused(f"it lacks {', '.join(missing)}")
            state = {name: np.asarray(arrays[names[name]]) for name in _NAMES}
    except _OF_ARCHIVES as error:
        what = f"{folder / FILES[0]} is not a Gemma Scope file"
        raise Damaged(f"{what}: {one_line(error)}") from error
    for name, array in state.items():
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise Refused(
                f"{name} holds {array.dtype}, not floating-point numbers of at most 64 bits"
            )
    state = {n: torch.from_numpy(np.array(a, np.float32, order="C")) for n, a in state.items()}
    check_plain(state, source)
    if (state["threshold"] < 0).any():  # z > threshold alone would let negative z through
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
    if "target_site" in fields:
        if norm_gain is None:
            fields["site"] = None
        else:
            gain = norm_gain.detach().to(state["W_enc"])
            if gain.shape != state["W_enc"].shape[:1]:
                raise Refused(
                    f"norm_gain has shape {list(gain.shape)}, but {source} reads "
                    f"{len(state['W_enc'])} numbers; give `1 + weight` of the norm in front of it"
                )
            state["W_enc"] = state["W_enc"] / gain[:, None]
    return build("jumprelu_sae", state, source, **fields)


def save(sae: SAE, folder: Path) -> None:
    """Write `params.npz`.

    Raises:
        ValueError: the format cannot represent the SAE, such as TopK, token_norm or a skip
            connection.
    """
    refuse(sae, "Gemma Scope", transcoder=True)
    state = exported(to_jumprelu(sae))
    arrays: Any = {name: state[name].numpy() for name in _NAMES}
    np.savez(folder / FILES[0], **arrays)
