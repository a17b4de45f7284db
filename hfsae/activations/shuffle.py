"""Token rows to shuffled batches of activations, in buckets, resumable to the bit.

A bucket is filled with `bucket_tokens` harvested activations, handed out in a random order (once,
or in several `passes`), and replaced by the next: Gemma Scope's way (arXiv:2408.05147, 3.1).
Everything follows from (seed, bucket number, offset, where in the text the bucket began), so that
is all there is to save; resuming harvests the current bucket again.

With several processes each harvests its share of the token rows, and all then hold the whole
bucket, from which each takes its slice of the same global batch. A run's batches therefore do not
depend on how many processes it has.

With `prefetch` a thread fills the next bucket while this one is handed out. It reads nothing that
training changes, so batches are the same, to the bit.

Memory per process: bucket_tokens * sum of site widths, in the LM's dtype (Gemma 2 2B, one site, a
million tokens: 4.8 GB), twice that with `prefetch`, and for a moment rows * ctx * processes more.
"""

import copy
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from ..machine.bounds import MOST_TOKENS, check_most, check_seed
from ..machine.processor import refuse_absent
from ..machine.refused import Refused
from .cache import lm_digest
from .harvest import Harvester
from .tokens import PackedRows, TokenBatch

_MOST_PASSES = 10**6


@dataclass
class ShuffleArguments:
    """In which order activations come."""

    bucket_tokens: int = 2**20
    """Activations held and shuffled together."""
    passes: int = 1
    """Times each bucket is handed out, each time in another order. Where the language model is half
    of the cost or more, passes are worth more than text: in equal time, three over 262k activations
    of SmolLM2 lower FVU by 2 to 3 % against one over 524k (4,096 latents)."""
    seed: int = 0
    """Seed of the order."""
    device: str = "cpu"
    """Where the bucket lies."""
    prefetch: bool = False
    """Fill the next bucket while training on this one; needs memory for two."""

    def __post_init__(self):
        if self.bucket_tokens < 1 or self.passes < 1:
            raise Refused(
                f"shuffle.bucket_tokens ({self.bucket_tokens}) and shuffle.passes ({self.passes}) "
                "must be 1 or more"
            )
        check_most("shuffle.bucket_tokens", self.bucket_tokens, MOST_TOKENS)
        check_most("shuffle.passes", self.passes, _MOST_PASSES)
        check_seed("shuffle.seed", self.seed)

    def check_device(self) -> None:
        """Check that the device exists. Called late: a dry run may describe another machine.

        Raises:
            ValueError: this machine has no such device.
        """
        try:
            refuse_absent(self.device)
        except ValueError as error:
            raise Refused(f"shuffle.{error}") from error


class _Bucket(NamedTuple):
    activations: dict[str, Float[Tensor, "_ _"]]
    tokens: str
    """hash of the token rows from which it was filled"""
    source_after: dict[str, Any]
    """where in the text the next bucket begins, and the counts up to there"""


class _Closed(Exception):
    """Nobody waits for the bucket that is being filled."""


class ShuffledActivations:
    """Endless stream of {site: [batch_size / processes, d]}, float32.

    Args:
        rows: endless token rows (`PackedRows(..., epochs=None)`), the same on every process.
        harvester: turns them into activations; its sites are the batches' keys.
        batch_size: activations in a global batch, divisible by the number of processes.
        n_batches: batches that will be used, so that no bucket is prefetched in vain.
    """

    def __init__(
        self,
        rows: PackedRows,
        harvester: Harvester,
        args: ShuffleArguments,
        batch_size: int,
        *,
        n_batches: int | None = None,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if args.bucket_tokens < batch_size:
            raise Refused(
                f"bucket_tokens ({args.bucket_tokens}) is smaller than a batch ({batch_size}); "
                "a bucket is best at least 50 batches"
            )
        if batch_size % num_processes:
            raise Refused(f"batch_size {batch_size} does not divide by {num_processes} processes")
        args.check_device()
        self.rows, self.harvester, self.args = rows, harvester, args
        self.batch_size, self.n_batches = batch_size, n_batches
        self.rank, self.world = process_index, num_processes
        self.progress: Callable[[int, int], None] = lambda done, total: None
        """Called with (activations so far, most there can be) while a bucket is filled; by another
        thread, if it is prefetched."""
        self._totals = {"kept": 0, "dropped_special": 0, "dropped_outliers": 0}
        self._digests = dict.fromkeys(harvester.sites, "")
        self._after = self._source()  # of the last bucket that was handed out
        self._position = {"bucket": 0, "offset": 0, "handed_out": 0, "source": self._after}
        self._bucket: _Bucket | None = None
        self._lm = lm_digest(harvester.lm)
        self._expected_tokens: str | None = None
        """hash of the tokens of the bucket in which a loaded position lies"""
        self._batches: Iterator[TokenBatch] | None = None
        self._batches_at: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, "harvest") if args.prefetch else None
        self._coming: Future[_Bucket] | None = None
        self._is_closed = threading.Event()
        # Collectives of two threads must not meet in one group.
        apart = args.prefetch and num_processes > 1
        group = dist.new_group(backend="gloo") if apart else None
        self._group = cast("dist.ProcessGroup | None", group)
        self._pins = harvester.lm.device.type == "cuda" and args.device == "cpu"

    @property
    def sites(self) -> list[str]:
        """The harvester's sites, which are the keys of the batches."""
        return self.harvester.sites

    @property
    def record(self) -> dict[str, Any]:
        """Positions harvested so far over all processes (kept, dropped_special, dropped_outliers)
        and, by site, the norm above which positions were dropped, and a hash of all activations:
        where it is equal, two trainings saw the same ones to the bit."""
        by_site = {name: dict(self._after.get(name, {})) for name in ("norm_limits", "digests")}
        return self._after["totals"] | by_site

    def sample(self, n: int) -> dict[str, Float[Tensor, "_ _"]]:
        """The first n activations of the current bucket's order, float32; consumes nothing."""
        bucket = self._filled()
        order = self._order(0)[:n]
        return {site: acts[order].float() for site, acts in bucket.items()}

    def next_batch(self) -> dict[str, Float[Tensor, "_ _"]]:
        """This process's slice of the next global batch, {site: [batch_size / processes, d]}."""
        self._filled()
        if self._position["offset"] >= self._batches_a_pass() * self.args.passes:
            self._position |= {
                "bucket": self._position["bucket"] + 1,
                "offset": 0,
                "source": self._after,
            }
            self._bucket = None  # freed before the next is filled: only prefetching holds two
        bucket = self._filled()
        self._prefetch()
        passes_done, batch = divmod(self._position["offset"], self._batches_a_pass())
        share = self.batch_size // self.world
        start = batch * self.batch_size + self.rank * share
        order = self._order(passes_done)[start : start + share]
        self._position["offset"] += 1
        self._position["handed_out"] += 1
        batches = {site: acts[order].float() for site, acts in bucket.items()}
        return {site: x.pin_memory() for site, x in batches.items()} if self._pins else batches

    def held(self) -> dict[str, Float[Tensor, "_ _"]]:
        """The current bucket, whole on every process, in the language model's dtype."""
        return self._filled()

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, from which `load_state_dict` continues."""
        tokens = self._bucket.tokens if self._bucket else self._expected_tokens
        state = {**self._position, "record": self._after, "tokens": tokens, "lm": self._lm}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position that `state_dict` returned.

        Raises:
            ValueError: the position was saved with another language model's weights.
        """
        state = copy.deepcopy(state)
        if state.get("lm", self._lm) != self._lm:
            raise Refused(
                "the language model's weights differ from those at the start of this training; use "
                "the original model, or train in another output_dir"
            )
        self._forget_coming()
        self._expected_tokens = state.get("tokens")
        self._after = state["record"]  # what a run that is over reports
        self._position = {name: state[name] for name in self._position}  # all of it is needed
        self._bucket = self._batches = None

    def wait(self) -> None:
        """Wait until the bucket that is being prefetched is full."""
        if self._coming is not None:
            wait([self._coming])

    def close(self) -> None:
        """Stop prefetching, and wait until it has stopped."""
        self._forget_coming()
        if self._thread is not None:
            self._thread.shutdown()

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
                "digests": self._digests,
            }
        )

    def _load_source(self, source: dict[str, Any]) -> None:
        self.rows.load_state_dict(source["rows"])
        self.harvester.norm_limits = dict(source["norm_limits"])
        self._totals = dict(source["totals"])
        self._digests = dict(source.get("digests", {}))  # an older version's position has none

    def _filled(self) -> dict[str, Float[Tensor, "_ _"]]:
        """The current bucket."""
        if self._bucket is None:
            coming, self._coming = self._coming, None
            source = self._position["source"]
            bucket = coming.result() if coming else self._made(source)
            self._refuse_other_text(bucket)
            self._bucket = bucket
            self._after = self._bucket.source_after
            for acts in self._bucket.activations.values():
                if coming and acts.is_cuda:  # it was made on another of the GPU's streams
                    acts.record_stream(torch.cuda.current_stream(acts.device))
        return self._bucket.activations

    def _refuse_other_text(self, bucket: _Bucket) -> None:
        expected, self._expected_tokens = self._expected_tokens, None
        if expected not in (None, bucket.tokens):
            self._expected_tokens = expected
            raise Refused(
                "the text, or its tokens, differ from those at the start of this training "
                f"(bucket {self._position['bucket'] + 1} differs); restore the content of "
                "text.dataset, or train in another output_dir"
            )

    def _prefetch(self) -> None:
        """Start filling the next bucket, if it will be needed."""
        if self._thread is None or self._coming is not None:
            return
        left_here = self._batches_a_pass() * self.args.passes - self._position["offset"]
        is_last = self.n_batches is not None and (
            self._position["handed_out"] + left_here >= self.n_batches
        )
        if not is_last:
            self._coming = self._thread.submit(self._made_beside, self._after)

    def _forget_coming(self) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            self._is_closed.set()
            wait([coming])
            self._is_closed.clear()

    def _made_beside(self, source: dict[str, Any]) -> _Bucket:
        """In the thread: a bucket; on a GPU, on a stream beside the one that training is on."""
        device = self.harvester.lm.device
        if device.type != "cuda":
            return self._made(source)
        beside = torch.cuda.Stream(device)
        with torch.cuda.stream(beside):
            bucket = self._made(source)
        beside.synchronize()
        return bucket

    def _made(self, source: dict[str, Any]) -> _Bucket:
        """The bucket that begins at `source`: the same one, if it is done again after a resume or
        after filling was interrupted."""
        if self._batches is None or self._batches_at != source:
            self._load_source(source)
            self._batches = iter(self.rows)
        batches, self._batches = self._batches, None  # lost if filling is interrupted
        try:
            read = self._read(batches)
            activations = self._fill(read)
        finally:
            self.harvester.flush()
        self._batches, self._batches_at = batches, self._source()
        return _Bucket(activations, _hash_of(read), self._batches_at)

    def _fill(self, batches: list[TokenBatch]) -> dict[str, Float[Tensor, "_ _"]]:
        capacity = sum(int(batch.keep.sum()) for batch in batches)
        self._agree_on_norm_limits(batches)
        bucket: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        n = 0
        for first in range(0, len(batches), self.world):  # one batch of token rows a process
            mine = first + self.rank
            acts_here = self.harvester(batches[min(mine, len(batches) - 1)]).activations
            n_before = n
            for site, acts in acts_here.items():
                acts = _gather(acts if mine < len(batches) else acts[:0], self.world, self._group)
                if site not in bucket:
                    size = (capacity, acts.shape[-1])
                    bucket[site] = torch.empty(size, dtype=acts.dtype, device=self.args.device)
                n = n_before + len(acts)
                bucket[site][n_before:n] = acts
                sums[site] = _column_sums(acts) + sums.get(site, 0)
            self.progress(n, capacity)
            if self._is_abandoned():
                raise _Closed
        if n < capacity:  # outliers were dropped: that was all
            self.progress(n, n)
        self._totals["kept"] += n
        self._totals["dropped_outliers"] += capacity - n
        self._totals["dropped_special"] += sum(b.keep.numel() for b in batches) - capacity
        if n < self.batch_size:
            raise Refused(
                f"the text gave {n} activations, fewer than a batch ({self.batch_size}); give more "
                "text or a smaller batch_size"
            )
        for site, before in self._digests.items():
            digest = blake2b(before.encode() + sums[site].cpu().numpy().tobytes(), digest_size=8)
            self._digests[site] = digest.hexdigest()
        return {site: acts[:n] for site, acts in bucket.items()}

    def _is_abandoned(self) -> bool:
        """Whether to abandon the bucket; agreed by all processes, which would otherwise wait for
        each other."""
        if self._group is None:
            return self._is_closed.is_set()
        closed = torch.tensor(int(self._is_closed.is_set()))
        dist.all_reduce(closed, group=self._group)
        return bool(closed)

    def _read(self, source: Iterator[TokenBatch]) -> list[TokenBatch]:
        """The bucket's token batches: decided by tokens alone, hence the same on every process."""
        batches, n = [], 0
        for batch in source:
            batches.append(batch)
            n += int(batch.keep.sum())
            if n >= self.args.bucket_tokens:
                break
        if not batches:
            raise Refused("the token rows are used up; give PackedRows(..., epochs=None)")
        return batches

    def _agree_on_norm_limits(self, batches: list[TokenBatch]) -> None:
        """Fix the limits, on every process, from the run's first batch that keeps a token, as a
        single process would."""
        if self.world == 1 or self.harvester.args.max_norm_ratio is None:
            return
        for batch in batches:
            if self.harvester.norm_limits:
                return
            self.harvester(batch)


def _hash_of(batches: list[TokenBatch]) -> str:
    digest = blake2b(digest_size=8)
    for batch in batches:
        for part in (batch.input_ids, batch.keep):
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _column_sums(acts: Float[Tensor, "n d"]) -> Int64[Tensor, " d"]:
    """For each dimension the sum of the numbers' bits, read as integers: exact, hence the same in
    any order, on any device, and another one where a single bit differs."""
    as_integers = acts.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[acts.element_size()])
    return as_integers.sum(0, dtype=torch.int64)


@lru_cache(maxsize=1)
def _permutation(seed: int, bucket: int, passes_done: int, n: int) -> Int64[Tensor, " n"]:
    mixed = random.Random(f"{seed} {bucket} {passes_done}").getrandbits(63)
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed))


def _gather(
    rows: Float[Tensor, "n d"], world: int, group: dist.ProcessGroup | None
) -> Float[Tensor, "_ d"]:
    """All processes' rows, in the order of their ranks; counts may differ. A separate group uses
    gloo, so rows move to the CPU."""
    if world == 1:
        return rows
    rows = rows if group is None else rows.cpu()
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count, group=group)
    padded = rows.new_zeros(max(int(c) for c in counts), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    # As bytes: not every backend knows every dtype.
    as_bytes = [part.view(torch.uint8) for part in parts]
    dist.all_gather(as_bytes, padded.view(torch.uint8), group=group)
    return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])
