"""Write tests/evaluation/sae_probes.json with sae-probes' own code. Needs its environment.

PYTHONPATH=. FOLDER/sae_probes/bin/python scripts/interop/write_sae_probes.py OUT

On the words of tests/evaluation/planted_letters.py, the first letter against the others of a few:
the ranking of latents, and AUC, F1 and accuracy of its regression on the first k. Packages that its
modules import and this does not need (XGBoost, Transformers, TransformerLens, SAELens) are stubs.
"""

import json
import sys
from importlib.metadata import version
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

from tests.evaluation.planted_letters import probing_task

_STUBS = ("xgboost", "sae_lens", "transformer_lens", "transformers")
for _name in (*_STUBS, "transformers.tokenization_utils_base"):
    _stub = ModuleType(_name)
    _stub.__getattr__ = lambda attribute: MagicMock()  # pyright: ignore
    sys.modules.setdefault(_name, _stub)

from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization  # noqa: E402
from sae_probes.utils_training import find_best_reg  # noqa: E402

KS = (1, 2, 5, 16)


def main(out: str) -> None:
    train, labels, test, test_labels = probing_task()
    order = get_sorted_indices(
        torch.from_numpy(train), torch.from_numpy(labels.astype(int)), mean_act_normalization
    ).numpy()
    scores = {}
    for k in KS:
        chosen = order[:k]
        metrics = find_best_reg(
            train[:, chosen].astype(np.float64),
            labels.astype(int),
            test[:, chosen].astype(np.float64),
            test_labels.astype(int),
        ).metrics
        scores[k] = [metrics.test_auc, metrics.test_f1, metrics.test_acc]
    record = {"sae_probes": version("sae-probes"), "order": order.tolist(), "scores": scores}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
