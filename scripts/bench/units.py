"""Whether training depends on the unit and the mean of activations: it should not.

    python scripts/bench/units.py ACTIVATIONS [--variants JumpReLU BatchTopK TopK]

ACTIVATIONS is what `quality.py` harvested, FOLDER/activations-131072.safetensors. SAEs train on
them as they are, with a constant vector added to all (four times their spread), and times ten, with
the quickstart's settings, in units of the spread and of the norm; FVU, L0 and silent latents are of
test documents. bfloat16 activations are made float32 first, since a shift would round them anew.
"""

from collections.abc import Callable

import torch
from kept import table
from quality_sides import Problem, hfsae, measure, parser_of
from safetensors.torch import load_file
from torch import Tensor

BATCH, L0 = 256, 50


def main() -> None:
    args = parser_of(__doc__).parse_args()
    tensors = {name: x.float() for name, x in load_file(args.activations).items()}
    rows = [["variant", "unit", "activations", "FVU", "L0", "silent"]]
    for variant in args.variants:
        for unit in ("spread", "norm"):
            for name, move in moves(tensors["train"]).items():
                train = move(tensors["train"])
                problem = Problem(train, BATCH, args.d_sae, L0, args.rate, args.seed)
                trained = hfsae(problem, variant, {"unit": unit})
                of = measure(trained, move(tensors["test"]), 1.0)
                numbers = [f"{of['fvu']:.5f}", f"{of['l0']:.2f}", f"{of['dead']:.2%}"]
                rows.append([variant, unit, name, *numbers])
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
