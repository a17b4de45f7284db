"""A source's activations in shuffled batches, from buckets, resumable to the bit.

A bucket is filled with `bucket_tokens` activations of a source, handed out in a random order (once,
or in several `passes`), and replaced by the next: Gemma Scope's way (arXiv:2408.05147, 3.1).
Everything follows from (seed, bucket number, offset, where in the source the bucket began), so
that is all there is to save; resuming fills the current bucket again.

With several processes each makes its share of the activations, and all then hold the whole bucket,
from which each takes its slice of the same global batch. A run's batches therefore do not depend on
how many processes it has.

With `prefetch` a thread fills the next bucket while this one is handed out. It reads nothing that
training changes, so batches are the same, to the bit.

Memory per process: bucket_tokens * sum of site widths, in the source's dtype (Gemma 2 2B, one site,
a million tokens: 4.8 GB), twice that with `prefetch`, and for a moment a part of each process more
(of text: rows * ctx positions).
"""

import copy
import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import lru_cache
from hashlib import blake2b
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from ..io.errors import Refused
from ..io.processor import refuse_absent
from ..ops import ASYNCHRONOUS, upload
from .arguments import ShuffleArguments
from .source import Activations, Source

_SUMMED_ROWS = 256  # their copy as 64-bit integers stays in a processor's cache: 6 times as fast


_Bucket = tuple[Activations, str, dict[str, Any]]
"""activations, hash of what they were filled from, and where in the source the next bucket begins,
with the counts up to there"""


class _Closed(Exception):
    """Nobody waits for the bucket that is being filled."""


class ShuffledActivations:
    """Endless stream of {site: [batch_size / processes, d]}, float32.

    Args:
        source: an endless one; its sites are the batches' keys.
        batch_size: activations in a global batch, divisible by the number of processes.
        n_batches: batches that will be used, so that no bucket is prefetched in vain.
    """

    def __init__(
        self,
        source: Source,
        args: ShuffleArguments,
        batch_size: int,
        *,
        n_batches: int | None = None,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if args.bucket_tokens < batch_size:
            raise Refused(
                f"bucket_tokens ({args.bucket_tokens}) is smaller than a batch "
                f"({batch_size}); use a bucket of 50 batches or more"
            )
        if batch_size % num_processes:
            raise Refused(f"batch_size {batch_size} is not divisible by {num_processes} processes")
        refuse_absent(args.device, "shuffle.")
        self.source, self.args = source, args
        self.batch_size, self.n_batches = batch_size, n_batches
        self.rank, self.world = process_index, num_processes
        self.progress: Callable[[int, int], None] = lambda done, total: None
        """Called with (activations so far, most there can be) while a bucket is filled; by another
        thread, if it is prefetched."""
        self._totals = {"kept": 0, "dropped_special": 0, "dropped_outliers": 0}
        self._digests = dict.fromkeys(source.sites, "")
        self._after = self._reached()  # by the last bucket that was handed out
        self._position = {"bucket": 0, "offset": 0, "handed_out": 0, "source": self._after}
        self._bucket: Activations | None = None
        self._spare: dict[str, Tensor] = {}  # memory of the bucket before, for the next
        self._origin = source.origin()
        self._content: str | None = None
        """hash of what the current bucket was filled from; of a loaded position, has to be"""
        self._thread = ThreadPoolExecutor(1, "harvest") if args.prefetch else None
        self._coming: Future[_Bucket] | None = None  # the next bucket
        self._is_closed = threading.Event()
        # Collectives of two threads must not meet in one group.
        apart = args.prefetch and num_processes > 1
        group = dist.new_group(backend="gloo") if apart else None
        self._group = cast("dist.ProcessGroup | None", group)
        self._pins = source.device.type in ASYNCHRONOUS and args.device == "cpu"

    @property
    def sites(self) -> list[str]:
        """The source's sites, which are the keys of the batches."""
        return self.source.sites

    @property
    def record(self) -> dict[str, Any]:
        """Positions read so far over all processes (kept, dropped_special, dropped_outliers)
        and, by site, the norm above which positions were dropped, and a hash of all activations:
        where it is equal, two trainings saw the same ones to the bit, in the same order."""
        by_site = {name: dict(self._after.get(name, {})) for name in ("norm_limits", "digests")}
        return self._after["totals"] | by_site

    def sample(self, n: int) -> Activations:
        """The first n activations of the current bucket's order, float32; consumes nothing."""
        bucket = self._current()
        n_all = len(next(iter(bucket.values())))
        order = _permutation(self.args.seed, self._position["bucket"], 0, n_all)[:n]
        return {site: _rows_of(acts, order) for site, acts in bucket.items()}

    def next_batch(self) -> Activations:
        """This process's slice of the next global batch, {site: [batch_size / processes, d]}."""
        passes, at = self.args.passes, self._position
        n_batches = len(next(iter(self._current().values()))) // self.batch_size  # of a pass
        if at["offset"] >= n_batches * passes:
            at |= {"bucket": at["bucket"] + 1, "offset": 0, "source": self._after}
            self._retire()  # before the next is filled: only prefetching holds two
        bucket = self._current()
        n_all = len(next(iter(bucket.values())))
        n_batches = n_all // self.batch_size
        if self._thread is not None and self._coming is None:
            n_handed_out = at["handed_out"] + n_batches * passes - at["offset"]  # with all of these
            if self.n_batches is None or n_handed_out < self.n_batches:
                self._coming = self._thread.submit(self._made_beside, self._after)
        passes_done, batch = divmod(at["offset"], n_batches)
        share = self.batch_size // self.world
        start = batch * self.batch_size + self.rank * share
        order = _permutation(self.args.seed, at["bucket"], passes_done, n_all)
        order = order[start : start + share]
        at["offset"] += 1
        at["handed_out"] += 1
        batches = {site: _rows_of(acts, order) for site, acts in bucket.items()}
        return {site: x.pin_memory() for site, x in batches.items()} if self._pins else batches

    def held(self) -> Activations:
        """The current bucket, whole on every process, in the source's dtype; the next one may be
        written over it."""
        return self._current()

    def validation(self, n: int) -> Activations:
        """Activations of about n positions of the validation side, whole on every process, in the
        source's dtype; after the last batch, as the source leaves its place."""
        self._forget_coming()
        self.source.load_state_dict(self._after)  # the training's limits of norms
        parts = [batch.activations for batch in self.source.batches("validation", n)]
        return {site: torch.cat([part[site].cpu() for part in parts]) for site in self.sites}

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, from which `load_state_dict` continues."""
        # The names of the format are those of text and a language model, its first source.
        state = {"record": self._after, "tokens": self._content, "lm": self._origin}
        return copy.deepcopy(self._position | state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position that `state_dict` returned.

        Raises:
            ValueError: the position was saved with a source of another origin.
        """
        state = copy.deepcopy(state)
        if state.get("lm", self._origin) != self._origin:
            raise Refused(self.source.refusals["other_origin"])
        self._forget_coming()
        self._after = state["record"]  # what a run that is over reports
        self._position = {name: state[name] for name in self._position}  # all of it is needed
        self._retire()
        self._content = state.get("tokens")

    def wait(self) -> None:
        """Wait until the bucket that is being prefetched is full."""
        if self._coming is not None:
            wait([self._coming])

    def close(self) -> None:
        """Stop prefetching, and wait until it has stopped."""
        self._forget_coming()
        if self._thread is not None:
            self._thread.shutdown()

    def _retire(self) -> None:
        """Let the next bucket be filled. On a CPU it takes this one's memory, as new memory costs
        as much time as filling it; a GPU may still be reading."""
        bucket, self._bucket, self._content = self._bucket, None, None
        if bucket is not None and self.args.device == "cpu":
            self._spare = bucket

    def _reached(self) -> dict[str, Any]:
        """Where the source is, with the counts and hashes up to there."""
        own = {"totals": self._totals, "digests": self._digests}
        return copy.deepcopy(self.source.state_dict() | own)

    def _current(self) -> Activations:
        """The current bucket."""
        if self._bucket is None:
            coming, self._coming = self._coming, None
            bucket, content, after = (
                coming.result() if coming else self._made(self._position["source"])
            )
            if self._content not in (None, content):
                number = self._position["bucket"] + 1
                raise Refused(self.source.refusals["other_content"].format(bucket=number))
            self._bucket, self._content, self._after = bucket, content, after
            for acts in bucket.values():
                if coming and acts.is_cuda:  # it was made on another of the GPU's streams
                    acts.record_stream(torch.cuda.current_stream(acts.device))
        return self._bucket

    def _forget_coming(self) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            self._is_closed.set()
            wait([coming])
            self._is_closed.clear()

    def _made_beside(self, position: dict[str, Any]) -> _Bucket:
        """In the thread: a bucket; on a GPU, on a stream beside the one that training is on."""
        device = self.source.device
        if device.type != "cuda":
            return self._made(position)
        beside = torch.cuda.Stream(device)
        with torch.cuda.stream(beside):
            bucket = self._made(position)
        beside.synchronize()
        return bucket

    def _made(self, position: dict[str, Any]) -> _Bucket:
        """The bucket that begins at `position`: the same one, if it is done again after a resume
        or after filling was interrupted."""
        self.source.load_state_dict(position)
        self._totals = dict(position["totals"])
        self._digests = dict(position.get("digests", {}))  # an older version's position has none
        filling = self.source.fill(self.args.bucket_tokens, self.rank, self.world)
        bucket: dict[str, Tensor] = {}
        n, capacity = 0, filling.capacity
        with closing(filling.parts):
            for part in filling.parts:
                n_before = n
                for site, own in part.items():
                    acts = own if self.world == 1 else _gather(own, self.world, self._group)
                    if site not in bucket:  # the memory of the bucket before, if that suits
                        spare, size = self._spare.pop(site, None), (capacity, acts.shape[-1])
                        is_large = spare is not None and spare.numel() >= math.prod(size)
                        if spare is not None and is_large and spare.dtype == acts.dtype:
                            bucket[site] = spare.view(-1)[: math.prod(size)].view(size)
                        else:
                            del spare  # before there is more
                            device = self.args.device
                            bucket[site] = torch.empty(size, dtype=acts.dtype, device=device)
                    n = n_before + len(acts)
                    bucket[site][n_before:n] = acts
                self.progress(n, capacity)
                is_abandoned = torch.tensor(int(self._is_closed.is_set()))
                if self._group is not None:  # processes agree, or one would wait for another
                    dist.all_reduce(is_abandoned, group=self._group)
                if is_abandoned:
                    raise _Closed
        if n < capacity:  # outliers were dropped: that was all
            self.progress(n, n)
        self._totals["kept"] += n
        self._totals["dropped_outliers"] += capacity - n
        self._totals["dropped_special"] += filling.n_special
        if n < self.batch_size:
            too_few = self.source.refusals["too_few"]
            raise Refused(too_few.format(n=n, batch_size=self.batch_size))
        bucket = {site: acts[:n] for site, acts in bucket.items()}
        for site, before in self._digests.items():
            # Of each 256 rows, for each dimension, the sum of the numbers' bits, read as integers:
            # exact, hence the same on any device, and another where a bit, or the order, differs.
            acts = bucket[site]
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[acts.element_size()]
            parts = acts.view(bits).split(_SUMMED_ROWS)
            sums = torch.stack([part.sum(0, dtype=torch.int64) for part in parts]).cpu().numpy()
            digest = blake2b(before.encode() + sums.tobytes(), digest_size=8)
            self._digests[site] = digest.hexdigest()
        return bucket, filling.digest, self._reached()


def _rows_of(acts: Float[Tensor, "n d"], order: Int64[Tensor, " m"]) -> Float[Tensor, "m d"]:
    """Some rows, float32. On a CPU `index_select` takes a third of the time of indexing."""
    return acts.index_select(0, upload(order, acts.device)).float()


@lru_cache(maxsize=1)
def _permutation(seed: int, bucket: int, passes_done: int, n: int) -> Int64[Tensor, " n"]:
    mixed = random.Random(f"{seed} {bucket} {passes_done}").getrandbits(63)
    return torch.randperm(n, generator=torch.Generator().manual_seed(mixed))


def _gather(
    rows: Float[Tensor, "n d"], world: int, group: dist.ProcessGroup | None
) -> Float[Tensor, "_ d"]:
    """All processes' rows, in the order of their ranks; counts may differ. A separate group uses
    gloo, so rows move to the CPU."""
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
