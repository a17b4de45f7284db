"""A steering vector: between two kinds of texts, which needs no SAE, or of latents; and as a file,
for other programs to add to the residual stream.

The vector of a set of latents is the sum of strength * W_dec[latent]. Mode "add" adds it at every
token; only this mode needs no SAE at the time of use.

`.safetensors`: one tensor [d_model], named by its site, and metadata. `.gguf`: a control vector for
llama.cpp (`--control-vector`). llama.cpp adds the tensor `direction.N` to the output of block N,
blocks counted from 0, as here, but never to that of block 0.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations.arguments import text_list
from ..activations.token_text import tokenise
from ..io.errors import Refused
from ..io.files import refuse_special, replacing
from ..lm import Site, capture, tokenizer_of
from ..models import SAE
from .intervention import Edits, Maxima, Unit, resolve

FORMAT = "hfsae steering vector v1"
_USE = "add to the activation at the site that names the tensor, at every token"


@torch.no_grad()
def mean_difference(
    lm: PreTrainedModel,
    site: str,
    texts: Sequence[str],
    others: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Float[Tensor, " d"]:
    """The mean activation at the last token of texts, less that of others: float32, raw units.

        calm = hfsae.mean_difference(lm, "layers.12", calm_texts, angry_texts)
        with hfsae.patch(lm, {"layers.12": lambda x: x + calm.to(x)}):
            lm.generate(**tokens)

    As in arXiv:2605.07990, where it switches the tool that a model calls. Two sides of different
    length or content differ in more than what they are meant to; give pairs where you can.

    Args:
        site: any place of the model, as an SAE's (`hfsae.lm.hooks`).
        tokenizer: None: the one that `hfsae.load_lm` loaded with the model.

    Raises:
        ValueError: a side has no text, a text is empty, or there is no such site.
    """
    speller, means = tokenizer or tokenizer_of(lm), list[Tensor]()
    for side in (texts, others):
        rows = [tokenise(speller, text).ids for text in text_list(side)]
        last = []
        for ids in rows:
            with capture(lm, [site], stop_early=True) as activations:
                lm(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
            last.append(activations[site][0, -1].double().cpu())
        means.append(torch.stack(last).mean(dim=0))
    return (means[0] - means[1]).float()


def save_steering_vector(
    path: str | Path,
    sae: SAE | Mapping[str, Tensor],
    latents: Edits | None = None,
    *,
    unit: Unit = "raw",
    max_activations: Maxima | None = None,
    site: str | None = None,
) -> Path:
    """Write the sum of strength * W_dec[latent], raw units, to a file; returns its path.

        hfsae.save_steering_vector("calm.gguf", sae, {1234: 40.0})
        calm = hfsae.mean_difference(lm, "layers.12", calm_texts, angry_texts)
        hfsae.save_steering_vector("calm.safetensors", {"calm": calm}, site="layers.12")

    Args:
        path: its suffix sets the format: .safetensors or .gguf (needs the package gguf).
        sae: or directions [d] by label, raw units, of a `site`; in a .safetensors file, which
            `training.init_decoder` takes. `load_steering_vector` reads a file of one.
        latents: {latent: strength}, for mode "add".
        unit: "raw" or "max", as in `hfsae.steer`.

    Raises:
        ValueError: the suffix, mode or unit is another one; the maxima belong to another SAE; the
            SAE has token_norm or names no site; or, for GGUF, its site is not the residual stream
            after block 1 or later; or directions come without a site, with latents, or are no
            vectors of one width.
    """
    path = Path(path)
    if isinstance(sae, Mapping):
        if site is None or latents is not None or path.suffix != ".safetensors":
            raise Refused(
                "directions need their site, a .safetensors file, and no latents: "
                "save_steering_vector('calm.safetensors', {'calm': vector}, site='layers.12')"
            )
        vectors = [x.detach().float().cpu() for x in sae.values()]
        if {x.ndim for x in vectors} != {1} or len({*map(len, vectors)}) > 1:
            raise Refused("directions are vectors [d] of one width by label, as {'calm': vector}")
        tensor = vectors[0] if len(vectors) == 1 else torch.stack(vectors)
        metadata = {"format": FORMAT, "labels": json.dumps([*sae]), "use": _USE}
        with replacing(path) as written:
            save_file({site: tensor.contiguous()}, written, metadata=metadata)
        return path
    if latents is None or site is not None:
        raise Refused("of an SAE give latents, {latent: strength}, and no site: it names its own")
    config = sae.config
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
        "use": _USE,
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
            if (vector := file.get_tensor(names[0])).ndim != 1:
                raise Refused(f"{str(path)!r} has {len(vector)} directions; save the one to add")
            return names[0], vector, metadata
    except (SafetensorError, OSError) as error:
        raise Refused(f"{str(path)!r} cannot be read: {error}") from error
