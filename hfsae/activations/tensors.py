"""Tensors as a source of activations: no text, and no language model."""

from collections.abc import Generator, Iterator, Mapping
from hashlib import blake2b
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from .arguments import Split
from .source import ActivationBatch, Filling, Refusals

Activations = dict[str, Float[Tensor, "_ _"]]


class TensorSource:
    """A source that reads tensors in memory, once and in their order.

    It is a source for `ShuffledActivations`, and by itself a stream for the trainer: of batches in
    the order of the tensors. A subclass that overrides `part` can make activations as they are
    read, without end.

    Args:
        tensors: by site, [n, d].
        batch_size: activations in a global batch, divisible by the number of processes.
    """

    refusals = Refusals(
        too_few="the tensors gave {n} activations, fewer than a batch ({batch_size}); give more "
        "or a smaller batch_size",
        other_content="the tensors differ from those at the start of this training (bucket "
        "{bucket} differs); give the same ones, or train in another output_dir",
        other_origin="this training began on activations from elsewhere; train in another "
        "output_dir",
    )
    device = torch.device("cpu")

    def __init__(
        self,
        tensors: Mapping[str, Float[Tensor, "_ _"]],
        batch_size: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.tensors, self.batch_size = dict(tensors), batch_size
        self.sites = list(tensors)
        self.rank, self.world = process_index, num_processes
        self.progress = lambda done, total: None
        self.position = 0
        """Parts that were read."""

    def part(self, number: int, n: int) -> Activations:
        """The n rows of a part, float32; parts are counted from 1, and part 0 is `sample`'s."""
        first = max(0, number - 1) * n
        return {site: x[first : first + n].float() for site, x in self.tensors.items()}

    def _next_part(self, n: int) -> Activations:
        self.position += 1
        return self.part(self.position, n)

    def fill(self, n: int, rank: int = 0, n_processes: int = 1) -> Filling:
        """The next n activations, of which each process returns its share."""
        acts, digest = self._next_part(n), blake2b(digest_size=8)
        for x in acts.values():
            digest.update(x.contiguous().numpy().tobytes())

        def parts() -> Generator[Activations, None, None]:
            yield {site: x.tensor_split(n_processes)[rank] for site, x in acts.items()}

        return Filling(_n_rows(acts), 0, digest.hexdigest(), parts())

    def batches(self, side: Split, n: int | None = None) -> Iterator[ActivationBatch]:
        """All activations, or about n of them, in batches; each batch counts as one document.

        Raises:
            ValueError: the side is not "train", the only one that tensors have.
        """
        if side != "train":
            raise Refused(f"tensors have no {side} side; make a TensorSource of held-out ones")
        n_read = 0
        for number in count(1):
            acts = self.part(number, self.batch_size)
            if not _n_rows(acts) or (n is not None and n_read >= n):
                return
            n_rows = _n_rows(acts)
            n_read += n_rows
            yield ActivationBatch(acts, torch.full((n_rows,), number), torch.arange(n_rows))

    def next_batch(self) -> Activations:
        """This process's slice of the next global batch.

        Raises:
            ValueError: no activation is left.
        """
        acts = self._next_part(self.batch_size)
        if not _n_rows(acts):
            raise Refused(
                f"the tensors are used up after {self.position - 1} batches; give more activations "
                "or a smaller training.n_tokens"
            )
        return {site: x.chunk(self.world)[self.rank] for site, x in acts.items()}

    def sample(self, n: int) -> Activations:
        """The first n activations."""
        return self.part(0, n)

    def held(self) -> Activations:
        """All activations, in their own dtype."""
        return self.tensors

    def state_dict(self) -> dict[str, Any]:
        """The number of parts that were read."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned."""
        self.position = state["position"]

    def origin(self) -> str:
        """Empty: no model computes the activations."""
        return ""

    def content(self) -> None:
        """None: the content is not hashed."""

    def describe(self) -> dict[str, Any]:
        """Empty: tensors have no settings."""
        return {}


def _n_rows(acts: Activations) -> int:
    return len(next(iter(acts.values())))
