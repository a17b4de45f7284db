"""Write the fixtures of OpenAI's sparse_autoencoder format. Needs only torch and safetensors.

python scripts/interop/write_fixtures_openai.py OUT
writes OUT/openai/NAME/NAME.pt. That package is not on PyPI, so its published forward pass is
restated here: with activation "TopK", and only then, each input is centred and divided by its
standard deviation (unbiased, plus 1e-5), and the reconstruction is brought back. Names that start
with `refuse_` have no expected.safetensors.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from fixture import D_IN, D_SAE, fresh, inputs, value, write
from torch import Tensor


def state(name: str, activation: str | None, postact: str = "ReLU", k: int = 5) -> dict[str, Any]:
    """What Autoencoder.state_dict() holds; None leaves the activation out, as old files do."""
    shapes = {
        "pre_bias": (D_IN,),
        "latent_bias": (D_SAE,),
        "encoder.weight": (D_SAE, D_IN),
        "decoder.weight": (D_IN, D_SAE),
    }
    tensors: dict[str, Any] = {key: value(name, key, shape) for key, shape in shapes.items()}
    tensors["stats_last_nonzero"] = torch.arange(D_SAE)
    tensors["latents_activation_frequency"] = torch.full((D_SAE,), 0.01)
    tensors["latents_mean_square"] = torch.full((D_SAE,), 0.25)
    if activation is not None:
        tensors["activation"] = activation
        top = {"k": k, "postact_fn": postact}
        tensors["activation_state_dict"] = top if activation == "TopK" else {}
    return tensors


def top(pre: Tensor, k: int, postact: str) -> Tensor:
    """Keep the k largest pre-activations of each row, whatever their sign before `postact`."""
    kept = pre.topk(k)
    values = kept.values.relu() if postact == "ReLU" else kept.values
    return torch.zeros_like(pre).scatter(-1, kept.indices, values)


def computed(tensors: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """The published forward pass."""
    activation = tensors.get("activation", "ReLU")
    normalise = activation == "TopK"
    if normalise:
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        x = (x - mean) / (deviation + 1e-5)
    pre = (x - tensors["pre_bias"]) @ tensors["encoder.weight"].T + tensors["latent_bias"]
    if activation == "TopK":
        settings = tensors["activation_state_dict"]
        latents = top(pre, settings["k"], settings["postact_fn"])
    elif activation == "Identity":
        latents = pre
    else:
        latents = pre.relu()
    recon = latents @ tensors["decoder.weight"].T + tensors["pre_bias"]
    return latents, recon * deviation + mean if normalise else recon


def main() -> None:
    """Write them all."""
    out = Path(sys.argv[1]) / "openai"
    for name, settings in (
        ("topk", {"activation": "TopK", "k": 20}),  # above what is positive
        ("topk_identity", {"activation": "TopK", "postact": "Identity", "k": 16}),
        ("relu", {"activation": "ReLU"}),
        ("no_activation", {"activation": None}),
    ):
        folder = fresh(out / name)
        torch.save(state(name, **settings), folder / f"{name}.pt")
        x = inputs(name)
        write(folder, x, *computed(torch.load(folder / f"{name}.pt"), x))
    name = "refuse_identity"  # not sparse at all
    torch.save(state(name, "Identity"), fresh(out / name) / f"{name}.pt")
    name = "refuse_tied"  # the package's own loader refuses it too: it always builds a decoder
    tied = state(name, "ReLU")
    tied["decoder.linear.weight"] = tied["encoder.weight"]
    del tied["decoder.weight"]
    torch.save(tied, fresh(out / name) / f"{name}.pt")


if __name__ == "__main__":
    main()
