"""Sources of activations: the interface that training and evaluation use, and two of the sources.

    Source --fill--> `ShuffledActivations` --> batches of a training
    Source --batches--> `ActivationBatch` --> reconstructions, fingerprints

`TextSource` runs a language model on rows of tokens, `TensorSource` reads tensors in memory;
`pictures` and `files` have the others.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import count
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..io.errors import Refused
from ..packaged import shares_of_texts
from .arguments import Split
from .harvest import Batch, Harvester, lm_digest
from .tokens import PackedRows, TokenBatch, mask_token, special_ids, text_digest, text_origin

Activations = dict[str, Float[Tensor, "_ _"]]
"""by site"""


class ActivationBatch(NamedTuple):
    activations: dict[str, Float[Tensor, "n _"]]
    """Activations [n, d] by site, raw units."""
    document: Int64[Tensor, " n"]
    """The number of the document that each activation belongs to."""
    position: Int64[Tensor, " n"] | None = None
    """The place of each activation in its document, such as a row of a file or a patch of a
    picture; of text, in its row of tokens. None: the source does not tell it."""
    token: Int64[Tensor, " n"] | None = None
    """The id of the token that was read there. None: what was read is no text."""


class Filling(NamedTuple):
    """The positions that a source read for a bucket, and their activations."""

    capacity: int
    """Positions that were read and kept; outliers among them may give no activation."""
    n_special: int
    """Positions that were left out without harvesting, such as special tokens and masked ones."""
    digest: str
    """Hash of what was read."""
    parts: Generator[Activations, None, None]
    """This process's activations by site, as many parts as on every other process: the bucket
    holds the first part of each process, in the order of ranks, then the second, and so on."""
    documents: list[Int64[Tensor, " _"]] = []  # noqa: RUF012 - a source gives a list of its own
    """For each part that was taken, the number of each activation's document; empty of a source
    that does not tell."""


@runtime_checkable
class Source(Protocol):  # checkable: shapes and types are checked in tests
    """Activations at some sites, read in one order that a position resumes to the bit."""

    refusals: ClassVar[Mapping[str, str]]
    """Error sentences: "too_few", a bucket holds only {n} activations, fewer than {batch_size};
    "other_content", a resumed training reads another text or file in {bucket}, counted from 1; and
    "other_origin"."""

    @property
    def sites(self) -> list[str]:
        """The keys of all activations."""
        ...

    @property
    def device(self) -> torch.device:
        """Where activations are made."""
        ...

    def fill(self, n: int, rank: int, n_processes: int) -> Filling:
        """Read until n positions or slightly more are kept; every process reads the same ones."""
        ...

    def batches(self, side: Split, n: int | None = None) -> Iterator[ActivationBatch]:
        """One side's activations, once; with n, only those of about n positions."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the latest filling."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned; other keys are ignored."""
        ...

    def origin(self) -> str:
        """Hash of what computes the activations, such as a model; it is fixed during a training."""
        ...

    def content(self) -> str | None:
        """Hash of everything that can be read; None if it is unknown."""
        ...

    def describe(self) -> dict[str, Any]:
        """Entries for the record of a training, training.json."""
        ...


class TextSource:
    """A source that runs a language model on rows of tokens.

    Args:
        rows: endless token rows (`PackedRows(..., epochs=None)`), the same on every process.
        harvester: turns them into activations; its sites are the source's.
    """

    refusals: ClassVar[Mapping[str, str]] = {
        "too_few": "the text gave {n} activations, fewer than a batch ({batch_size}); give more "
        "text or a smaller batch_size",
        "other_content": "the text, or its tokens, differ from those at the start of this training "
        "(bucket {bucket} differs); restore the content of text.dataset, or train in another "
        "output_dir",
        "other_origin": "the language model's weights differ from those at the start of this "
        "training; use the original model, or train in another output_dir",
    }

    def __init__(self, rows: PackedRows, harvester: Harvester):
        self.rows, self.harvester = rows, harvester
        if rows.args.mask_share:
            self._mask, self._special = mask_token(rows.tokenizer), special_ids(rows.tokenizer)
        self.sites, self.device = harvester.sites, cast(torch.device, harvester.lm.device)
        self._batches: Iterator[TokenBatch] | None = None

    def fill(self, n: int, rank: int = 0, n_processes: int = 1) -> Filling:
        """Read token batches until n tokens are kept; each process harvests its share of them.

        Raises:
            ValueError: the rows have an end.
        """
        batches, self._batches = self._batches or iter(self.rows), None  # lost if interrupted
        read, n_kept, digest = [], 0, blake2b(digest_size=8)
        for batch in batches:  # by tokens alone, hence the same ones on every process
            batch = self._masked(batch) if self.rows.args.mask_share else batch
            read.append(batch)
            n_kept += int(batch.keep.sum())
            for part in (batch.input_ids, batch.keep):
                digest.update(part.cpu().contiguous().numpy().tobytes())
            if n_kept >= n:
                break
        if not read:
            raise Refused("the token rows are used up; give PackedRows(..., epochs=None)")
        self._batches = batches
        n_special = sum(batch.keep.numel() for batch in read) - n_kept
        documents: list[Tensor] = []
        how = (rank, n_processes, documents)
        parts = harvest_share(self.harvester, read, lambda batch: batch, *how)
        return Filling(n_kept, n_special, digest.hexdigest(), parts, documents)

    def _masked(self, batch: TokenBatch) -> TokenBatch:
        """With `text.mask_share` of its tokens replaced and no longer kept; which ones depends on
        the text's seed and on how many tokens were read."""
        args, read = self.rows.args, self.rows.state_dict()
        at = blake2b(f"{args.seed} {read['epoch']} {read['tokens']}".encode(), digest_size=8)
        generator = torch.Generator().manual_seed(int.from_bytes(at.digest(), "big") >> 1)
        chosen = torch.rand(batch.keep.shape, generator=generator) < args.mask_share
        chosen &= ~torch.isin(batch.input_ids, torch.tensor(self._special))
        ids = batch.input_ids.masked_fill(chosen, self._mask)
        return batch._replace(input_ids=ids, keep=batch.keep & ~chosen)

    def batches(self, side: Split, n: int | None = None) -> Iterator[ActivationBatch]:
        """One side's activations, once, without a mask; with n, only those of rows that keep n
        tokens."""
        rows = self.rows
        once = PackedRows(rows.tokenizer, rows.args, side, rows=rows.rows, max_tokens=n)
        for harvested in map(self.harvester, once):
            at = harvested.document, harvested.position, harvested.tokens
            yield ActivationBatch(harvested.activations, *at)

    def state_dict(self) -> dict[str, Any]:
        """The position in the text, and the norm limits."""
        limits = dict(self.harvester.norm_limits)
        return {"rows": self.rows.state_dict(), "norm_limits": limits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; the text is not read again if the latest filling ended there."""
        here = self.state_dict()
        if self._batches is None or any(state[name] != here[name] for name in here):
            self.rows.load_state_dict(state["rows"])
            self.harvester.norm_limits = dict(state["norm_limits"])
            self._batches = iter(self.rows)

    def origin(self) -> str:
        """Hash of the language model's weights, or of the weights of several."""
        return " ".join(map(lm_digest, self.harvester.lms))

    def content(self) -> str | None:
        """Hash of the text, all sides; None if the Hub does not answer."""
        return text_digest(self.rows.args)

    def describe(self) -> dict[str, Any]:
        """All settings of the text and of the harvest; of packaged texts, how large each is."""
        text = self.rows.args
        shares = shares_of_texts(text.dataset, text.fractions)
        listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        of_text = {**asdict(text), "origin": text_origin(text)}
        if not text.mask_share:  # records from before it stay as they are
            del of_text["mask_share"]
        of_text |= {"shares": listed} if listed else {}
        return {"text": of_text, "harvest": asdict(self.harvester.args)}


T = TypeVar("T")


def harvest_share(
    harvester: Harvester,
    batches: Sequence[T],
    read: Callable[[T], Batch],
    rank: int,
    n_processes: int,
    documents: list[Int64[Tensor, " _"]],
) -> Generator[Activations, None, None]:
    """`Filling.parts`: one batch a process, and so on until all are harvested.

    Args:
        batches: the same on every process.
        read: makes rows of one of them, on the process that harvests it.
        documents: gets those of each part.
    """
    if n_processes > 1:
        agree_on_norm_limits(harvester, batches, read)
    for first in range(0, len(batches), n_processes):
        mine = first + rank
        harvested = harvester(read(batches[min(mine, len(batches) - 1)]))
        n = None if mine < len(batches) else 0
        documents.append(harvested.document[:n].cpu())
        yield {site: x[:n] for site, x in harvested.activations.items()}


def agree_on_norm_limits(
    harvester: Harvester, batches: Sequence[T], read: Callable[[T], Batch]
) -> None:
    """Fix the limits, on every process, from the run's first batch that keeps a position, as a
    single process would."""
    if harvester.args.max_norm_ratio is None:
        return
    for batch in batches:
        if harvester.norm_limits:
            return
        harvester(read(batch))


class TensorSource:
    """A source that reads tensors in memory, once and in their order.

    It is a source for `ShuffledActivations`, and by itself a stream for the trainer: of batches in
    the order of the tensors. A subclass that overrides `part` can make activations as they are
    read, without end.

    Args:
        tensors: by site, [n, d].
        batch_size: activations in a global batch, divisible by the number of processes.
    """

    refusals: ClassVar[Mapping[str, str]] = {
        "too_few": "the tensors gave {n} activations, fewer than a batch ({batch_size}); give more "
        "or a smaller batch_size",
        "other_content": "the tensors differ from those at the start of this training (bucket "
        "{bucket} differs); give the same ones, or train in another output_dir",
        "other_origin": "this training began on activations from elsewhere; train in another "
        "output_dir",
    }
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
