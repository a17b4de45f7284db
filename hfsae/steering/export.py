"""A steering vector as a file, for other programs to add to the residual stream.

The vector of a set of latents is the sum of strength * W_dec[latent]. Mode "add" adds it at every
token; only this mode needs no SAE at the time of use.

`.safetensors`: one tensor [d_model], named by its site, and metadata. `.gguf`: a control vector for
llama.cpp (`--control-vector`). llama.cpp adds the tensor `direction.N` to the output of block N,
blocks counted from 0, as here, but never to that of block 0.
"""

import json
import re
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..io.errors import Refused
from ..io.files import refuse_special, replacing
from ..lm import Site
from ..models import SAE
from .intervention import Edits, Maxima, Unit, resolve

FORMAT = "hfsae steering vector v1"


def save_steering_vector(
    path: str | Path,
    sae: SAE,
    latents: Edits,
    *,
    unit: Unit = "raw",
    max_activations: Maxima | None = None,
) -> Path:
    """Write the sum of strength * W_dec[latent], raw units, to a file; returns its path.

        hfsae.save_steering_vector("calm.gguf", sae, {1234: 40.0})

    Args:
        path: its suffix sets the format: .safetensors or .gguf (needs the package gguf).
        latents: {latent: strength}, for mode "add".
        unit: "raw" or "max", as in `hfsae.steer`.

    Raises:
        ValueError: the suffix, mode or unit is another one; the maxima belong to another SAE; the
            SAE has token_norm or names no site; or, for GGUF, its site is not the residual stream
            after block 1 or later.
    """
    path, config = Path(path), sae.config
    if path.suffix not in (".safetensors", ".gguf"):
        raise Refused(f"{path.name!r} has no known suffix; end it in .safetensors or .gguf")
    edits, site = resolve(sae, latents, "add", unit, max_activations), config.writes.only_site
    if config.token_norm != "none":
        raise Refused(
            f"this SAE has token_norm {config.token_norm!r}: each token needs its own "
            "vector; steer with the SAE instead"
        )
    for latent, edit in edits.items():
        if edit.mode != "add" or edit.unit == "norm":
            what = "unit 'norm'" if edit.unit == "norm" else f"mode {edit.mode!r}"
            raise Refused(
                f"{what} (latent {latent}) depends on the token, so one vector cannot hold "
                "it; use mode 'add' in the unit 'raw' or 'max'"
            )
    strengths = {latent: float(edit.strength) for latent, edit in edits.items()}
    vector = torch.tensor([*strengths.values()]) @ sae.W_dec.detach().float().cpu()[[*strengths]]
    metadata = {
        "format": FORMAT,
        "model_name": config.model_name or "",
        "model_revision": config.model_revision or "",
        "latents": json.dumps(strengths),
        "use": "add to the activation at the site that names the tensor, at every token",
    }
    if path.suffix == ".safetensors":
        with replacing(path) as written:
            save_file({site: vector}, written, metadata=metadata)
        return path
    module, port = Site.parse(site)
    match = re.fullmatch(r"(?:\w+\.)*(?:layers|h)\.(\d+)", module)
    block = int(match[1]) - (port == "in") if match else -1
    if block < 1:
        raise Refused(
            f"llama.cpp adds control vectors to the residual stream after block 1 or later, not at "
            f"{site!r}; use a .safetensors file"
        )
    from gguf import GGUFWriter

    with replacing(path) as written:
        writer = GGUFWriter(written, "controlvector")
        writer.add_string("controlvector.model_hint", metadata["model_name"])
        writer.add_uint32("controlvector.layer_count", block)
        for key in ("format", "latents"):
            writer.add_string(f"hfsae.{key}", metadata[key])
        writer.add_tensor(f"direction.{block}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def load_steering_vector(
    path: str | Path,
) -> tuple[str, Float[Tensor, " d_model"], dict[str, str]]:
    """The vector in a .safetensors file from `save_steering_vector`: its site; the vector, raw
    units, multiplied by the strengths; and its origin.

        site, vector, _ = load_steering_vector("calm.safetensors")
        with hfsae.patch(lm, {site: lambda x: x + vector.to(x)}):
            lm.generate(**tokens)

    Raises:
        ValueError: the file is not from `save_steering_vector`.
    """
    refuse_special(Path(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            if metadata.get("format") != FORMAT or len(names) != 1:
                raise Refused(
                    f"{str(path)!r} is not a steering vector: its format is "
                    f"{metadata.get('format')!r}, not {FORMAT!r}"
                )
            return names[0], file.get_tensor(names[0]), metadata
    except (SafetensorError, OSError) as error:
        raise Refused(f"{str(path)!r} cannot be read: {error}") from error
