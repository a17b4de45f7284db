"""Write the dictionary_learning fixtures, with its own code. Needs its environment.

FOLDER/dictionary_learning/bin/python scripts/interop/write_fixtures_dictionary_learning.py OUT
writes OUT/dictionary_learning/NAME/trainer_0/, with `expected.safetensors` beside ae.pt. The files
come from the library's own training function, which is given no data to train on.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedAutoEncoder, GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluAutoEncoder, JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import (
    MatryoshkaBatchTopKSAE,
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from fixture import D_IN, D_SAE, fill, fresh, inputs, write
from torch import nn


class Data(list):
    """Batches with the description that an activation buffer has."""

    config = {  # noqa: RUF012
        "d_submodule": D_IN,
        "io": "out",
        "n_ctxs": 128,
        "ctx_len": 128,
        "refresh_batch_size": 32,
        "out_batch_size": 16,
        "device": "cpu",
    }


def unit(weight: nn.Parameter, axis: int) -> None:
    """Give the decoder the unit norms that most trainers keep."""
    weight.data /= weight.data.norm(dim=axis, keepdim=True)


def made(name: str, dictionary: type, threshold: float | None, norms: bool) -> Callable[..., Any]:
    """What stands in for the dictionary's class: it gives every new one distinctive numbers."""

    @torch.no_grad()
    def build(*args: Any, **kwargs: Any) -> Any:
        new = dictionary(*args, **kwargs)
        fill(name, new)
        if not norms:
            weight, axis = (new.W_dec, 1) if hasattr(new, "W_dec") else (new.decoder.weight, 0)
            unit(weight, axis)
        if threshold is not None:
            new.threshold.fill_(threshold)
        return new

    return build


def trained(
    out: Path,
    name: str,
    trainer: type,
    dictionary: type,
    threshold: float | None = None,
    norms: bool = False,
    normalize_activations: bool = False,
    **config: Any,
) -> None:
    """One SAE saved by trainSAE, and what it computes once loaded again."""
    folder = fresh(out / name)
    config |= {
        "trainer": trainer,
        "dict_class": made(name, dictionary, threshold, norms),
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 1,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_1",
        "device": "cpu",
        "steps": 10_000,
        "seed": 0,
        "warmup_steps": 1000,
    }
    data = Data([inputs(name + "/scale")] if normalize_activations else [])
    trainSAE(
        data,
        [config],
        steps=0,
        save_dir=str(folder),
        device="cpu",
        normalize_activations=normalize_activations,
    )
    check(folder, name)


@torch.no_grad()
def check(folder: Path, name: str) -> None:
    """Load as the library's users do and write what that computes.

    `latents_raw` are those of the tensors as saved, where loading has rescaled them.
    """
    path = folder / "trainer_0"
    sae, _ = load_dictionary(str(path), "cpu")
    x = inputs(name)
    more = {}
    if isinstance(sae, AutoEncoder):
        raw = AutoEncoder.from_pretrained(str(path / "ae.pt"), normalize_decoder=False)
        more["latents_raw"] = raw.encode(x)
    write(path, x, sae.encode(x), sae(x), **more)


def main() -> None:
    """Write them all."""
    out = Path(sys.argv[1]) / "dictionary_learning"
    trained(out, "standard", StandardTrainer, AutoEncoder)
    trained(out, "standard_decoder_norms", StandardTrainerAprilUpdate, AutoEncoder, norms=True)
    trained(out, "gated", GatedSAETrainer, GatedAutoEncoder, norms=True)
    top = {"k": 5}
    trained(out, "topk", TopKTrainer, AutoEncoderTopK, 0.6, **top)
    trained(out, "batch_topk", BatchTopKTrainer, BatchTopKSAE, 0.6, **top)
    trained(out, "batch_topk_no_threshold", BatchTopKTrainer, BatchTopKSAE, **top)
    groups = {**top, "group_fractions": [0.25, 0.25, 0.5]}
    matryoshka = (MatryoshkaBatchTopKTrainer, MatryoshkaBatchTopKSAE)
    trained(out, "matryoshka", *matryoshka, 0.6, **groups)
    trained(out, "jumprelu", JumpReluTrainer, JumpReluAutoEncoder)
    scaled = {"normalize_activations": True, **top}
    trained(out, "batch_topk_normalized", BatchTopKTrainer, BatchTopKSAE, 0.2, **scaled)

    # No trainer of this version makes one; its loader reads them all the same.
    name = "autoencoder_new"
    folder = fresh(out / name / "trainer_0")
    sae = AutoEncoderNew(D_IN, D_SAE)
    fill(name, sae)
    torch.save(sae.state_dict(), folder / "ae.pt")
    config = {
        "trainer_class": "StandardTrainerNew",
        "dict_class": "AutoEncoderNew",
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "layer": 1,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_1",
    }
    text = json.dumps({"trainer": config, "buffer": Data.config}, indent=4)
    (folder / "config.json").write_text(text)
    check(folder.parent, name)


if __name__ == "__main__":
    main()
