"""OpenAI's sparse_autoencoder: one `.pt` file (a state dict, read with weights_only).

pre_bias [d_in], encoder.weight [d_sae, d_in], latent_bias, decoder.weight [d_in, d_sae], activation
("ReLU" or "TopK"), activation_state_dict. latents = act((x - pre_bias) E.T + latent_bias). Files
with TopK are of SAEs that see each token after its own normalisation: (x - mean) / (std + 1e-5).
The files name neither model nor site.
"""

from pathlib import Path

import torch

from ..io.errors import Refused
from ..models import SAE, ReLUSAE, TopKSAE
from .build import Format, build, exported, refuse
from .dictionary_learning import read_tensors

_TENSORS = {
    "pre_bias": "b_dec",
    "latent_bias": "b_enc",
    "encoder.weight": "W_enc",
    "decoder.weight": "W_dec",
}


def load(file: Path, source: str) -> SAE:
    """The SAE in `file`."""
    content = read_tensors(file, source)
    state = {ours: content[theirs] for theirs, ours in _TENSORS.items()}
    state |= {"W_enc": state["W_enc"].T, "W_dec": state["W_dec"].T}
    activation = content.get("activation", "ReLU")
    if activation == "ReLU":
        return build("relu_sae", state, source, subtract_b_dec=True)
    options = content.get("activation_state_dict") or {}
    postact = options.get("postact_fn", "ReLU")
    if activation != "TopK" or postact not in ("ReLU", "Identity"):
        raise Refused(f"{source}: activation {activation} with {postact} is unknown")
    fields = {"k": int(options["k"]), "relu": postact == "ReLU", "token_norm": "layer_norm"}
    return build("topk_sae", state, source, subtract_b_dec=True, **fields)


def save(sae: SAE, file: Path) -> None:
    """Write a `.pt` file.

    Raises:
        ValueError: the SAE is neither a ReLU SAE nor a TopK SAE with token_norm="layer_norm".
    """
    refuse(sae, "OpenAI's", token_norm=sae.config.token_norm == "layer_norm")
    is_topk = isinstance(sae, TopKSAE) and sae.config.selection == "topk"
    if not (is_topk or isinstance(sae, ReLUSAE)) or is_topk != (sae.config.token_norm != "none"):
        raise Refused(
            "OpenAI's files hold ReLU SAEs, and TopK SAEs with token_norm='layer_norm', not a "
            f"{type(sae).__name__} with token_norm={sae.config.token_norm!r}"
        )
    state = exported(sae)
    tensors: dict[str, object] = {
        "pre_bias": state["b_dec"],
        "latent_bias": state["b_enc"] + state["b_dec"] @ state["W_enc"],
        "encoder.weight": state["W_enc"].T.contiguous(),
        "decoder.weight": state["W_dec"].T.contiguous(),
        "activation": "TopK" if is_topk else "ReLU",
    }
    for name in ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"):
        tensors[name] = torch.zeros(sae.config.d_sae)
    if isinstance(sae, TopKSAE):
        postact = "ReLU" if sae.config.relu else "Identity"
        tensors["activation_state_dict"] = {"k": sae.config.k, "postact_fn": postact}
    torch.save(tensors, file)


FORMAT = Format(("*.pt",), load, save, is_file=True)
