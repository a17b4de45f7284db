"""An activation stream with a known answer, sparse sums of unit directions, and runs on it."""

import os
import signal
from itertools import count
from pathlib import Path

import jaxtyping
import torch
from torch import Tensor

from hfsae import SAE, JumpReLUSAE, JumpReLUSAEConfig
from hfsae.activations import ShuffledActivations, TensorSource
from hfsae.training import TrainingArguments


class PlantedStream(TensorSource):
    """x = 9 * (about `l0` of n_features unit directions, each times 0.5 to 1.5) + noise."""

    def __init__(
        self, batch_size=256, d=16, n_features=32, l0=3.0, sites=("layers.1",), world=(0, 1)
    ):
        generator = torch.Generator().manual_seed(7)
        directions = torch.randn(n_features, d, generator=generator)
        self.directions = torch.nn.functional.normalize(directions, dim=1)
        self.l0, (rank, n_ranks) = l0, world
        nothing = {site: torch.empty(0, d) for site in sites}
        super().__init__(nothing, batch_size, process_index=rank, num_processes=n_ranks)

    def part(self, number: int, n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(number)
        n_features, d = self.directions.shape
        on = torch.rand(n, n_features, generator=generator) < self.l0 / n_features
        size = 0.5 + torch.rand(n, n_features, generator=generator)
        x = 9 * ((on * size) @ self.directions)
        x += 0.3 * torch.randn(n, d, generator=generator)
        return {site: (i + 1) * x for i, site in enumerate(self.sites)}

    def next_batch(self) -> dict[str, Tensor]:
        check_shapes_of_step(self.position + 1)
        return super().next_batch()

    def sample(self, n: int) -> dict[str, Tensor]:
        return super().sample(min(n, 4096))

    def held(self) -> dict[str, Tensor]:
        return self.part(1, 4096)


def check_shapes_of_step(step: int) -> None:
    """Checks take half of a tiny step: the first three have them, and each twentieth."""
    jaxtyping.config.update("jaxtyping_disable", step > 3 and step % 20 > 0)


def make_sae(seed: int = 0, **fields) -> JumpReLUSAE:
    torch.manual_seed(seed)
    defaults = {
        "d_in": 16,
        "d_sae": 32,
        "site": "layers.1",
        "bandwidth": 0.1,
        "initial_threshold": 0.05,
        "log_threshold": False,
        "l0_coefficient": 0.01,
    }
    return JumpReLUSAE(JumpReLUSAEConfig(**defaults | fields))


def arguments(folder: Path, steps: int = 40, **fields) -> TrainingArguments:
    defaults = {
        "n_tokens": 256 * steps,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "threshold_learning_rate": 3e-3,
        "warmup_steps": 5,
        "sparsity_warmup_steps": 0,
        "logging_steps": 10,
        "save_steps": max(10, steps // 4),
    }
    return TrainingArguments(output_dir=str(folder), **defaults | fields)


def weights(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in sae.named_parameters()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_at(stream: PlantedStream | ShuffledActivations, n_batches: int):
    """A `next_batch` that sends this process SIGINT, as Ctrl-C would, in its nth call."""
    original, calls = stream.next_batch, count(1)

    def next_batch():
        batch = original()
        if next(calls) == n_batches:
            os.kill(os.getpid(), signal.SIGINT)
        return batch

    return next_batch
