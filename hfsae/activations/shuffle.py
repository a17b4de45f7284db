"""Token rows to shuffled batches of activations, in buckets, resumable to the bit.

A bucket is filled with `bucket_tokens` harvested activations, handed out in a random order (once,
or in several `passes`), and replaced by the next: Gemma Scope's way (arXiv:2408.05147, 3.1).
Everything follows from (seed, bucket number, offset, where in the text the bucket began), so that
is all there is to save; resuming harvests the current bucket again.

With several processes each harvests its share of the token rows, and all then hold the whole
bucket, from which each takes its slice of the same global batch. A run's batches therefore do not
depend on how many processes it has.

Memory per process: bucket_tokens * sum of site widths, in the LM's dtype (Gemma 2 2B, one site, a
million tokens: 4.8 GB), and for a moment rows * ctx * processes more.
"""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from .harvest import Harvester
from .tokens import PackedRows, TokenBatch


@dataclass
class ShuffleArguments:
    """In which order activations come."""

    bucket_tokens: int = 2**20
    """Activations held and shuffled together."""
    passes: int = 1
    """Times each bucket is handed out, each time in another order. Where the language model is the
    cost (on a CPU), two passes over half the text train as well as one over all of it."""
    seed: int = 0
    """Seed of the order."""
    device: str = "cpu"
    """Where the bucket lies."""

    def __post_init__(self):
        if self.bucket_tokens < 1 or self.passes < 1:
            raise ValueError(
                f"bucket_tokens ({self.bucket_tokens}) and passes ({self.passes}) must be 1 or more"
            )

    def check_device(self) -> None:
        """Not at once: a plan may be of another machine.

        Raises:
            ValueError: there is no such device here.
        """
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"shuffle.device is {self.device!r}, but torch sees no GPU; use 'cpu'")


class ShuffledActivations:
    """Endless stream of {site: [batch_size / processes, d]}, float32.

    Args:
        rows: endless token rows (`PackedRows(..., epochs=None)`), the same on every process.
        harvester: turns them into activations; its sites are the batches' keys.
        batch_size: activations in a global batch, divisible by the number of processes.
    """

    def __init__(
        self,
        rows: PackedRows,
        harvester: Harvester,
        args: ShuffleArguments,
        batch_size: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if args.bucket_tokens < batch_size:
            raise ValueError(
                f"bucket_tokens ({args.bucket_tokens}) is smaller than a batch ({batch_size}); "
                "a bucket is best at least 50 batches"
            )
        if batch_size % num_processes:
            raise ValueError(
                f"batch_size {batch_size} does not divide by {num_processes} processes"
            )
        args.check_device()
        self.rows, self.harvester, self.args = rows, harvester, args
        self.batch_size = batch_size
        self.rank, self.world = process_index, num_processes
        self.progress: Callable[[int, int], None] = lambda done, total: None
        """Called with (activations so far, most there can be) while a bucket is filled."""
        self._totals = {"kept": 0, "dropped_special": 0, "dropped_outliers": 0}
        self._position = {"bucket": 0, "offset": 0, "source": self._source()}
        self._activations: dict[str, Tensor] | None = None
        self._source_after: dict[str, Any] = {}
        self._batches: Iterator[TokenBatch] | None = None

    @property
    def sites(self) -> list[str]:
        return self.harvester.sites

    @property
    def record(self) -> dict[str, Any]:
        """Positions harvested so far over all processes (kept, dropped_special, dropped_outliers)
        and, by site, the norm above which positions were dropped."""
        return {**self._totals, "norm_limits": dict(self.harvester.norm_limits)}

    def sample(self, n: int) -> dict[str, Float[Tensor, "_ _"]]:
        """The first n activations of the current bucket's order, float32; takes nothing away."""
        bucket = self._filled()
        chosen = self._order(0)[:n]
        return {site: acts[chosen].float() for site, acts in bucket.items()}

    def next_batch(self) -> dict[str, Float[Tensor, "_ _"]]:
        """This process's slice of the next global batch, {site: [batch_size / processes, d]}."""
        self._filled()
        if self._position["offset"] >= self._batches_a_pass() * self.args.passes:
            self._position = {
                "bucket": self._position["bucket"] + 1,
                "offset": 0,
                "source": self._source_after,
            }
            self._activations = None  # freed before the next is filled: never two in memory
        bucket = self._filled()
        passes_done, batch = divmod(self._position["offset"], self._batches_a_pass())
        share = self.batch_size // self.world
        start = batch * self.batch_size + self.rank * share
        chosen = self._order(passes_done)[start : start + share]
        self._position["offset"] += 1
        return {site: acts[chosen].float() for site, acts in bucket.items()}

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy({**self._position, "record": self._source()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        self._load_source(state.pop("record"))  # what a run that is over reports
        self._position, self._activations, self._batches = state, None, None

    def _batches_a_pass(self) -> int:
        return self._n() // self.batch_size

    def _n(self) -> int:
        return len(next(iter(self._filled().values())))

    def _order(self, passes_done: int) -> Int64[Tensor, " n"]:
        key = (self.args.seed, self._position["bucket"], passes_done, self._n())
        return _permutation(*key)

    def _source(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "rows": self.rows.state_dict(),
                "norm_limits": self.harvester.norm_limits,
                "totals": self._totals,
            }
        )

    def _load_source(self, source: dict[str, Any]) -> None:
        self.rows.load_state_dict(source["rows"])
        self.harvester.norm_limits = dict(source["norm_limits"])
        self._totals = dict(source["totals"])

    def _filled(self) -> dict[str, Float[Tensor, "_ _"]]:
        """The current bucket. Filling starts from the saved position, so that one that was
        interrupted, or is done again after a resume, gives the same bucket."""
        if self._activations is None:
            start = self._position["source"]
            if self._batches is None or self._source_after != start:
                self._load_source(start)
                self._batches = iter(self.rows)
            batches, self._batches = self._batches, None  # lost if filling is interrupted
            self._activations = self._fill(batches)
            self._batches, self._source_after = batches, self._source()
        return self._activations

    def _fill(self, source: Iterator[TokenBatch]) -> dict[str, Float[Tensor, "_ _"]]:
        batches = self._read(source)
        capacity = sum(int(batch.keep.sum()) for batch in batches)
        self._agree_on_norm_limits(batches[0])
        bucket: dict[str, Tensor] = {}
        n = 0
        for first in range(0, len(batches), self.world):  # one batch of token rows a process
            mine = first + self.rank
            acts_here = self.harvester(batches[min(mine, len(batches) - 1)]).activations
            n_before = n
            for site, acts in acts_here.items():
                acts = _gather(acts if mine < len(batches) else acts[:0], self.world)
                if site not in bucket:
                    size = (capacity, acts.shape[-1])
                    bucket[site] = torch.empty(size, dtype=acts.dtype, device=self.args.device)
                n = n_before + len(acts)
                bucket[site][n_before:n] = acts
            self.progress(n, capacity)
        self.harvester.flush()
        if n < capacity:  # outliers were dropped: that was all
            self.progress(n, n)
        self._totals["kept"] += n
        self._totals["dropped_outliers"] += capacity - n
        self._totals["dropped_special"] += sum(b.keep.numel() for b in batches) - capacity
        if n < self.batch_size:
            raise ValueError(
                f"the text gave {n} activations, fewer than a batch ({self.batch_size}); give more "
                "text or a smaller batch_size"
            )
        return {site: acts[:n] for site, acts in bucket.items()}

    def _read(self, source: Iterator[TokenBatch]) -> list[TokenBatch]:
        """The bucket's token batches: decided by tokens alone, hence the same on every process."""
        batches, n = [], 0
        for batch in source:
            batches.append(batch)
            n += int(batch.keep.sum())
            if n >= self.args.bucket_tokens:
                break
        if not batches:
            raise ValueError("the token rows are used up; give PackedRows(..., epochs=None)")
        return batches

    def _agree_on_norm_limits(self, batch: TokenBatch) -> None:
        """Let every process fix the limits on the run's first batch, as one alone would."""
        wants_limits = self.harvester.args.max_norm_ratio is not None
        if self.world > 1 and wants_limits and not self.harvester.norm_limits:
            self.harvester(batch)


@lru_cache(maxsize=1)
def _permutation(seed: int, bucket: int, passes_done: int, n: int) -> Int64[Tensor, " n"]:
    mixed = random.Random(f"{seed} {bucket} {passes_done}").getrandbits(63)
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed))


def _gather(rows: Float[Tensor, "n d"], world: int) -> Float[Tensor, "_ d"]:
    """All processes' rows, in the order of their ranks; counts may differ."""
    if world == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    padded = rows.new_zeros(max(int(c) for c in counts), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    # As bytes: not every backend knows every dtype.
    dist.all_gather([part.view(torch.uint8) for part in parts], padded.view(torch.uint8))
    return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])
