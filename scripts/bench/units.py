"""Whether training depends on the unit and the mean of activations: it should not.

    python scripts/bench/units.py ACTIVATIONS

ACTIVATIONS is what `quality.py` harvested, FOLDER/activations-131072.safetensors. SAEs train on
them as they are, with a constant vector added to all (four times their spread), and times ten, with
the quickstart's settings, in units of the spread and of the norm; FVU, L0 and silent latents are of
test documents. bfloat16 activations are made float32 first, since a shift would round them anew.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from quality_sides import Problem, hfsae, measure
from safetensors.torch import load_file
from torch import Tensor

from hfsae.machine.markdown import table

FIELDS = {
    "jumprelu_sae": {"target_l0": 50, "bandwidth": 0.03, "log_threshold": False},
    "batch_topk_sae": {"k": 50},
    "topk_sae": {"k": 50},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("activations", type=Path)
    parser.add_argument("--d_sae", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=3e-3)
    args = parser.parse_args()
    tensors = {name: x.float() for name, x in load_file(args.activations).items()}
    rows = [["variant", "unit", "activations", "FVU", "L0", "silent"]]
    for model_type, fields in FIELDS.items():
        for unit in ("spread", "norm"):
            for name, move in moves(tensors["train"]).items():
                problem = Problem(move(tensors["train"]), 256, args.d_sae, 50, args.rate, seed=0)
                trained = hfsae(problem, model_type, {"unit": unit}, **fields)
                of = measure(trained, move(tensors["test"]), 1.0)
                numbers = [f"{of['fvu']:.5f}", f"{of['l0']:.2f}", f"{of['dead']:.2%}"]
                rows.append([model_type, unit, name, *numbers])
                print(*rows[-1], flush=True)
    print(f"\n{table(rows)}")


def moves(train: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """By name, what becomes of activations."""
    spread = float((train - train.mean(dim=0)).square().sum(-1).mean().sqrt())
    direction = torch.nn.functional.normalize(torch.randn(train.shape[1]), dim=0)
    return {
        "as they are": lambda x: x,
        "plus a vector": lambda x: x + 4 * spread * direction,
        "times ten": lambda x: 10 * x,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
