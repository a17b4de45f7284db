"""Write tests/evaluation/saebench_absorption.json with SAEBench's own code. Needs its environment.

PYTHONPATH=. FOLDER/saebench/bin/python scripts/interop/write_saebench_absorption.py OUT

On the words of tests/evaluation/planted_letters.py: the probe of the activations, the sparse probe
of the latents, the letters' main latents with their F1, and absorption by both formulas for each
test word. Changed in SAEBench's code for this: probes begin at zeros instead of random weights, and
the language model is a stub that gives a word's activation.
"""

import json
import random
import sys
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_bench.evals.absorption import feature_absorption_calculator as calculator
from sae_bench.evals.absorption import k_sparse_probing, probing
from sklearn.metrics import f1_score
from torch.nn.functional import one_hot

from tests.evaluation.planted_letters import Planted, planted

LETTERS = k_sparse_probing.LETTERS
MOST = 10


class FromZeros(probing.LinearProbe):
    """SAEBench's probe with zero weights."""

    def __init__(self, input_dim: int, num_outputs: int = 1):
        super().__init__(input_dim, num_outputs)
        torch.nn.init.zeros_(self.fc.weight)
        torch.nn.init.zeros_(self.fc.bias)


class Stub:
    """An SAE, and a language model, of which the words are row numbers."""

    device, dtype = "cpu", torch.float32

    def __init__(self, words: Planted):
        self.x, self.latents = torch.from_numpy(words.x), torch.from_numpy(words.latents)
        self.W_dec = torch.from_numpy(words.W_dec)
        self.cfg = SimpleNamespace(d_sae=len(self.W_dec))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.cdist(x.double(), self.x.double()).argmin(dim=1)
        return self.latents[rows]

    def to_tokens(self, prompt: str) -> list[list[int]]:
        return [[0]]

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> Any:
        rows = [int(prompt.splitlines()[-1][1:].split(":")[0]) for prompt in prompts]
        return None, {names_filter[0]: self.x[rows][:, None].expand(-1, 2, -1)}


def probe_of(words: Planted) -> probing.LinearProbe:
    """The probe of the activations, all rows in a batch; float64: Adam multiplies rounding."""
    n = words.n_train
    return probing.train_multi_probe(
        torch.from_numpy(words.x[:n]).double(),
        one_hot(torch.from_numpy(words.letters[:n])),
        batch_size=n,
        num_epochs=50,
        weight_decay=1e-4,
        show_progress=False,
        device=torch.device("cpu"),
    )


def main_latents(words: Planted, stub: Stub) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Of each letter the main latents and the F1 of the sparse probe on them."""
    n = words.n_train
    labels = [("word", int(letter)) for letter in words.letters[:n]]
    probes = k_sparse_probing.train_k_sparse_probes(
        stub,  # pyright: ignore
        labels,
        torch.from_numpy(words.x[:n]),
        ks=range(1, MOST + 1),
        precalc_sae_acts=True,
    )
    rows = []
    for letter, name in enumerate(LETTERS):
        row: dict[str, Any] = {"letter": name}
        is_so = words.letters[n:] == letter
        for k in range(1, MOST + 1):
            scores = probes[k][letter](stub.latents[n:])
            row[f"f1_sparse_sae_{k}"] = f1_score(is_so, scores.numpy() > 0)
            row[f"sparse_sae_k_{k}_feats"] = probes[k][letter].feature_ids.numpy()
        rows.append(row)
    frame = pd.DataFrame(rows)
    k_sparse_probing.add_feature_splits_to_metrics_df(frame, MOST)
    main = dict(zip(frame["letter"], frame["split_feats"], strict=True))
    f1 = {row["letter"]: row[f"f1_sparse_sae_{len(main[row['letter']])}"] for row in rows}
    return main, f1


def absorbed(words: Planted, stub: Stub, main: dict[str, list[int]]) -> dict[str, Any]:
    """Both formulas for the test words of each letter, along the planted directions."""
    own = calculator.FeatureAbsorptionCalculator(
        model=stub,  # pyright: ignore
        icl_word_list=["wa", "wb"],
        max_icl_examples=0,
        word_token_pos=-1,
    )
    results = {}
    for letter, name in enumerate(LETTERS):
        rows = np.flatnonzero(words.letters[words.n_train :] == letter) + words.n_train
        result = own.calculate_absorption(
            stub,  # pyright: ignore
            [f"w{row}" for row in rows],  # a word needs a letter
            torch.from_numpy(words.directions[letter]),
            main[name],
            layer=0,
            show_progress=False,
        )
        of_words = result.word_results
        results[name] = {
            "full": [word.is_full_absorption for word in of_words],
            "fraction": [float(word.absorption_fraction) for word in of_words],
        }
    return results


def main(out: str) -> None:
    random.seed(0)
    torch.manual_seed(0)
    probing.LinearProbe = FromZeros
    words = planted()
    stub = Stub(words)
    probe = probe_of(words)
    latents, f1 = main_latents(words, stub)
    others = {name: [ids[0]] for name, ids in latents.items()}  # with one main latent only
    record = {
        "sae_bench": version("sae-bench"),
        "probe": [[round(float(w), 9) for w in row] for row in probe.weights[:3].detach()],
        "main": latents,
        "f1": f1,
        "absorbed": absorbed(words, stub, latents),
        "absorbed_of_one": absorbed(words, stub, others),
    }
    with open(out, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
