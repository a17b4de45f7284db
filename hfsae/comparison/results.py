"""What was measured of each SAE of a comparison, kept in its folder and read back from there."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..evaluation import EvaluationResult
from ..records import read_json, read_tensors, write_tensors, write_whole
from .arms import ArmRun

_DOCUMENTS = "documents.safetensors"


class Measured(NamedTuple):
    """One trained SAE."""

    arm: str
    seed: int
    name: str
    value: float
    """of the field that its arm sweeps"""
    folder: Path
    metrics: dict[str, float]
    sums: dict[str, Float[Tensor, " documents"]]
    """by document, as "fidelity.error" """
    record: dict[str, Any]
    """of its training run"""

    @property
    def scale(self) -> float:
        """c of what it reconstructs, which was folded into its weights."""
        trained = self.record["sae_as_trained"]
        return float(trained.get("target_scale") or trained["activation_scale"] or 1)


def write(result: EvaluationResult, folder: Path) -> None:
    """Keep a result; evaluation.json comes last, so that where it lies all is there."""
    sums = {
        f"{table}.{name}": values
        for table, columns in result.of_documents.items()
        for name, values in columns.items()
    }
    write_tensors(folder / _DOCUMENTS, sums)
    write_whole(folder / "evaluation.json", json.dumps(result.to_dict(), indent=1) + "\n")


def is_measured(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("evaluation.json", _DOCUMENTS))


def read(runs: Iterable[ArmRun]) -> list[Measured]:
    """All SAEs of these runs.

    Raises:
        ValueError: a file is damaged, or they were not evaluated on the same documents.
    """
    found = [_read(run, name, folder) for run in runs for name, folder in run.folders.items()]
    first = found[0]
    for other in found[1:]:
        for key in ("fidelity.tokens", "losses.tokens"):
            if not torch.equal(first.sums[key], other.sums[key]):
                raise ValueError(
                    f"{first.folder} and {other.folder} were evaluated on different documents; "
                    "delete both files evaluation.json and run the comparison again"
                )
    return found


def _read(run: ArmRun, name: str, folder: Path) -> Measured:
    evaluation = EvaluationResult.from_dict(read_json(folder / "evaluation.json"))
    sums, _ = read_tensors(folder / _DOCUMENTS)
    metrics = {key: metric.value for key, metric in evaluation.metrics.items()}
    record = read_json(folder / "training.json")
    return Measured(run.arm, run.seed, name, run.values[name], folder, metrics, sums, record)
