"""EleutherAI's sparsify: `<hookpoint>/sae.safetensors` and `cfg.json`, TopK SAEs and transcoders.

encoder.weight [d_sae, d_in], encoder.bias, W_dec [d_sae, d_out], b_dec, and for some a W_skip
[d_out, d_in], applied as x @ W_skip.T. latents = topk(relu((x - b_dec) E.T + bias)); a transcoder
subtracts nothing. The folder's name is the module: an SAE reconstructs its output, a transcoder
predicts it from its input.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..io.errors import Refused
from ..io.files import read_json, read_tensors
from ..models import SAE, TopKSAE
from .build import Format, build, exported, refuse

FILES = ("sae.safetensors", "cfg.json")


def load(folder: Path, source: str) -> SAE:
    """The SAE in `folder`."""
    config = read_json(folder / FILES[1])
    tensors = read_tensors(folder / FILES[0])[0]
    state = {"W_enc": tensors.pop("encoder.weight").T, "b_enc": tensors.pop("encoder.bias")}
    state |= tensors
    transcode = config.get("transcode", False)
    name = Path(source.rstrip("/")).name
    module = name if re.search(r"\.\d+|embed|wte", name) else None
    fields: dict[str, Any] = {"site": module, "subtract_b_dec": not transcode}
    if transcode:
        fields |= {"site": module and f"{module}:in", "target_site": module or "unknown"}
    if "W_skip" in state:
        state["W_skip"] = state["W_skip"].T
        fields["skip_connection"] = True
    if config.get("signed"):
        raise Refused(
            f"{source}: signed=True keeps negative latents by size, which hfsae does not support"
        )
    if config.get("activation", "topk") not in ("topk", "groupmax"):
        raise Refused(f"{source}: activation {config['activation']!r} is unknown")
    fields |= {"k": config.get("k", 32), "selection": config.get("activation", "topk")}
    return build("topk_sae", state, source, **fields)


def about(config: dict[str, Any]) -> dict[str, Any]:
    """Width and k of cfg.json, under hfsae's names; the folder's name is the site."""
    width = config.get("num_latents") or config["expansion_factor"] * config["d_in"]
    return {"d_sae": width, "k": config.get("k")}


def save(sae: SAE, folder: Path) -> None:
    """Write `sae.safetensors` and `cfg.json`; name the folder after the module.

    Raises:
        ValueError: the SAE is not TopK with relu, has selection="approximate" or token_norm, or
            differs in width between input and output.
    """
    if not isinstance(sae, TopKSAE) or not sae.config.relu:
        raise Refused(f"sparsify files hold TopK SAEs with relu, not a {type(sae).__name__}")
    if sae.config.selection == "approximate":
        raise Refused("sparsify files support 'topk' and 'groupmax', not selection='approximate'")
    refuse(sae, "sparsify", transcoder=True, skip_connection=True)
    config, state = sae.config, exported(sae)
    if config.d_out != config.d_in:  # sparsify makes W_dec and b_dec of width d_in, always
        raise Refused(
            f"sparsify's outputs are as wide as their input, {config.d_in}, not {config.d_out}"
        )
    tensors = {
        "encoder.weight": state["W_enc"].T.contiguous(),
        "encoder.bias": state["b_enc"],
        "W_dec": state["W_dec"],
        "b_dec": state["b_dec"],
    }
    if config.skip_connection:
        tensors["W_skip"] = state["W_skip"].T.contiguous()
    if not config.is_transcoder:  # sparsify subtracts b_dec from the input, so b_enc adds it back
        tensors["encoder.bias"] = state["b_enc"] + state["b_dec"] @ state["W_enc"]
    written = {
        "activation": config.selection,
        "expansion_factor": 0,
        "normalize_decoder": True,
        "num_latents": config.d_sae,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": config.skip_connection,
        "transcode": config.is_transcoder,
        "d_in": config.d_in,
    }
    save_file(tensors, folder / FILES[0])
    (folder / FILES[1]).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


FORMAT = Format(FILES, load, save, FILES[1], about)
