"""Write tests/explanations/saebench_scores.json with SAEBench's own scoring. Needs its environment.

FOLDER/saebench/bin/python scripts/interop/write_saebench_scores.py OUT

Each case has activations of 14 windows [14, 21], the threshold that SAEBench gets from the
strongest (1 % of the largest), a judge's answer, and what its code makes of them: which windows are
active, the windows named (null: it does not parse, and SAEBench leaves the latent out), the score.
"""

import json
import sys
from types import SimpleNamespace

import torch
from sae_bench.evals.autointerp.main import AutoInterp, Example, Examples

N_WINDOWS, N_TOKENS, N_RANDOM = 14, 21, 10
ANSWERS = (
    "None",
    "none of them",
    "1, 4, 9",
    "2,3,",
    "7.",
    "1, 4 and 9",
    " 14 ",
    "5, 5",
    "1 4",
    "x",
)
ANSWERS += ("20", "", "None.", "3, 99", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")
MODEL = SimpleNamespace(to_str_tokens=lambda tokens: ["a"] * len(tokens))


def case(activations: torch.Tensor, threshold: float, answer: str) -> dict:
    """What SAEBench's code makes of an answer."""
    tokens = [0] * N_TOKENS
    windows = [Example(tokens, row.tolist(), threshold, MODEL) for row in activations]  # pyright: ignore
    examples = Examples.__new__(Examples)
    examples.examples = windows  # in the order of the prompt
    named = AutoInterp.parse_predictions(None, answer)  # pyright: ignore
    score = None if named is None else AutoInterp.score_predictions(None, named, examples)  # pyright: ignore
    return {
        "activations": [[round(value, 6) for value in row] for row in activations.tolist()],
        "threshold": threshold,
        "answer": answer,
        "active": [window.is_active for window in windows],
        "named": named,
        "score": score,
    }


def main(out: str) -> None:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for answer in ANSWERS:
        strengths = torch.rand(N_WINDOWS, 1, generator=generator) ** 4
        activations = strengths * torch.rand(N_WINDOWS, N_TOKENS, generator=generator)
        activations = (activations * 1e6).round() / 1e6
        silent = torch.randperm(N_WINDOWS, generator=generator)[:N_RANDOM]
        activations[silent] = 0.0
        cases.append(case(activations, 0.01 * float(activations.max()), answer))
    with open(out, "w", encoding="utf-8") as file:
        json.dump(cases, file)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
