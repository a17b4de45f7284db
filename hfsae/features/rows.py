"""What the latents of an SAE fire on where there is no text: rows of files, patches of pictures.

    Source.batches --pieces--> latents --RowBlock--> Seen --> FeatureStore

A document takes the place of a row of tokens: a latent has at most one example from it. Documents
may be of any length, go on in later batches, and take turns. Activations are held piece by piece:
only numbers of documents grow with what is read, 8 bytes each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationBatch
from ..io.errors import Refused
from ..models import SAE
from .collecting import (
    CollectArguments,
    description,
    latents_table,
    lists,
    ranked_examples,
    warn_of_silence,
)
from .draws import uniform
from .store import COLUMNS, UNITS, FeatureStore
from .summary import BLOCK_LATENTS, LatentStatistics, Peaks, Windows

if TYPE_CHECKING:
    import pyarrow

_PIECE_LATENTS = BLOCK_LATENTS // 4  # each row may be a document, which takes further memory
_UNITS = [unit for unit in UNITS if unit != "token"]
NO_MODEL = "none: there is no language model"
_OF_ROWS = {
    "latents": {
        "density": "share of the {units} read on which the latent is above 0",
        "n_firings": "number of those {units}",
        "mean_activation": "mean over the {units} on which it fired; 0 if it never did",
        "histogram": "{units} per bin of activation; edges in meta.json, outer bins are open-ended",
        **{f"{one}_tokens": "empty: no language model" for one in ("promoted", "suppressed")},
        **{f"{one}_logits": "empty: no language model" for one in ("promoted", "suppressed")},
    },
    "examples": {
        "kind": "'top', or 'quantile_q': drawn from the q-th of equal groups (1: the weakest) of a "
        "uniform sample of the documents it fires in, by largest activation; no top examples",
        "document": "number of the document that the {unit} belongs to",
        "row": "running number of the document among those read; a latent has at most one example "
        "from a document",
        "position": "place of the {unit} in its document",
        "activation": "activation at the {unit}: the largest of its document",
        "firing": "index of the {unit} in the three lists below",
        "tokens": "the {unit} in words; of the others of its window the place",
        "token_ids": "places in the document",
        "activations": "the latent at each of them",
    },
}
"""The meaning of columns that differ from those of text."""


@torch.no_grad()
def collect_rows(
    sae: SAE,
    batches: Iterable[ActivationBatch],
    args: CollectArguments | None = None,
    *,
    caption: Callable[[int, int], str],
    n: int | None = None,
    unit: str = "row",
    progress: Callable[[int], object] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> FeatureStore:
    """Every latent's firings in activations without text, and the latents most similar to it.

        store = collect_rows(sae, source.batches("test"), caption=source.caption)
        print(show(store[17]))

    An example is one row. Its window: the rows up to `args.window` places before and after it in
    its document, if they are read not much earlier or later. A negative place, such as that of a
    picture's CLS vector, is next to no other.

    Args:
        batches: of a source, as `source.batches("test")`.
        caption: the words for a document's number and a position.
        n: read only the first n rows.
        unit: what a row is: "row" or "patch".
        progress: called after each batch with its number of rows.
        meta: further entries of meta.json.

    Raises:
        ValueError: there is no row, rows come without positions, or the unit is another one.
    """
    if unit not in _UNITS:
        raise Refused(f"the unit is {unit!r}; it can be {', '.join(map(repr, _UNITS))}")
    if n is not None and n < 1:
        raise Refused(f"n is {n}; give 1 row or more, or None for all")
    args = args or CollectArguments()
    seen = LatentStatistics(
        sae.config.d_sae,
        top=args.top,
        reservoir=args.reservoir,
        window=args.window,
        seed=args.seed,
        device=sae.W_dec.device,
        whole=torch.int64,
    )
    documents = []
    for piece in _pieces(_rows(sae, batches, n, progress), sae.config.d_sae, args.window):
        block = RowBlock(sae.encode(piece.rows.x.to(sae.W_dec)), *piece, args.window)
        seen.add_(block, uniform(block.documents, sae.config.d_sae, args.seed))
        documents.append(block.documents.cpu().numpy())
    if not seen.n_tokens:
        raise Refused("no activation is left to collect from; give a side that has documents")
    warn_of_silence(seen, UNITS[unit])
    store = _build_store(sae, seen, args, np.concatenate(documents), unit, caption)
    store.meta |= meta or {}
    return store


class Rows(NamedTuple):
    """Activations in the order of reading, and where each belongs."""

    x: Float[Tensor, "n d_in"]
    document: Int[Tensor, " n"]
    position: Int[Tensor, " n"]

    @classmethod
    def of(cls, sae: SAE, batch: ActivationBatch) -> "Rows":
        """What an SAE reads of a batch; documents and positions are on the CPU.

        Raises:
            ValueError: the batch has no positions.
        """
        if batch.position is None:
            raise Refused(
                "the activations come without positions, which tell the rows of a document apart; "
                "give ActivationBatch(activations, document, position)"
            )
        x = sae.config.reads.joined(batch.activations)
        return cls(x, batch.document.cpu(), batch.position.cpu())

    def part(self, first: int, stop: int | None = None) -> "Rows":
        """Some of them."""
        return Rows(*(field[first:stop] for field in self))


class _Piece(NamedTuple):
    rows: Rows
    counted: slice
    """Those whose firings count: the others are neighbours, and count in another piece."""


def _rows(
    sae: SAE,
    batches: Iterable[ActivationBatch],
    n: int | None,
    progress: Callable[[int], object] | None,
) -> Iterator[Rows]:
    """What the SAE reads of each batch, in all at most n rows."""
    left = n
    for batch in batches:
        rows = Rows.of(sae, batch).part(0, left)
        if not len(rows.x):
            continue
        yield rows
        if progress is not None:
            progress(len(rows.x))
        left = None if left is None else left - len(rows.x)
        if left == 0:
            return


def _pieces(batches: Iterable[Rows], d_sae: int, window: int) -> Iterator[_Piece]:
    """The same rows in pieces of bounded size, each with the rows before and after it."""
    size = max(1, _PIECE_LATENTS // d_sae, 4 * window)
    held, first = None, 0
    for rows in batches:
        held = rows if held is None else Rows(*map(torch.cat, zip(held, rows, strict=True)))
        while len(held.x) > size:
            yield _Piece(held.part(0, size), slice(first, size - window))
            held, first = held.part(size - 2 * window), window
    if held is not None:
        yield _Piece(held, slice(first, len(held.x)))


class RowBlock(Peaks):
    """The latents of some rows of documents; the documents are its rows, numbered as they come.

    Args:
        counted: the rows whose firings count; the others are there for windows.
    """

    def __init__(self, latents: Float[Tensor, "n d_sae"], rows: Rows, counted: slice, window: int):
        document, self.place = (field.to(latents.device) for field in rows[1:])
        self.sorted, inverse = document.unique(return_inverse=True)
        n, device = len(document), latents.device
        first = torch.full((len(self.sorted),), n, device=device)
        first.scatter_reduce_(0, inverse, torch.arange(n, device=device), "amin")
        self.documents = self.sorted[first.argsort()]
        self.row_of_sorted = first.argsort().argsort()
        self.row = self.row_of_sorted[inverse]
        super().__init__(latents[counted], self.row[counted], self.place[counted], len(self.sorted))
        self.latents, self.steps = latents, torch.arange(-window, window + 1, device=device)
        self.low, self.span = self.place.min(), self.place.max() - self.place.min() + 1
        self.keys, self.order = (self.row * self.span + self.place - self.low).sort()

    def windows(
        self, keys: Float[Tensor, "rows d_sae"], row: Int[Tensor, " p"], latent: Int[Tensor, " p"]
    ) -> Windows:
        """Fields of Windows for p pairs of a document and a latent; `row` is the document's number,
        and activations are NaN where there is no row."""
        position = self.position[row, latent]
        index = self._neighbours(row, position)
        around = self.latents[index, latent[:, None]].float().masked_fill_(index < 0, torch.nan)
        peak = self.peak[row, latent]
        return Windows(keys[row, latent], peak, self.documents[row], position, around)

    def _neighbours(
        self, row: Int[Tensor, " p"], position: Int[Tensor, " p"]
    ) -> Int[Tensor, "p width"]:
        """The index among the n of the rows around a position; -1 where there is none."""
        wanted = position[:, None] + self.steps
        keys = row[:, None] * self.span + wanted - self.low
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        index = self.order[at]
        is_there = (self.row[index] == row[:, None]) & (self.place[index] == wanted)
        is_beside = (wanted >= 0) & (position[:, None] >= 0)
        return index.where(is_there & (is_beside | (self.steps == 0)), -1)

    def once_(self, keys: Float[Tensor, "rows d_sae"], windows: Windows) -> None:
        """Of a document that went on in this block, keep the stronger of two peaks."""
        at = torch.searchsorted(self.sorted, windows.row).clamp_(max=len(self.sorted) - 1)
        is_here = (self.sorted[at] == windows.row) & (windows.key > -torch.inf)
        latent, slot = is_here.nonzero(as_tuple=True)
        row = self.row_of_sorted[at[latent, slot]]
        is_stronger = self.peak[row, latent] > windows.peak[latent, slot]
        windows.key[latent[is_stronger], slot[is_stronger]] = -torch.inf
        keys[row[~is_stronger], latent[~is_stronger]] = -torch.inf


def _build_store(
    sae: SAE,
    seen: LatentStatistics,
    args: CollectArguments,
    documents: np.ndarray,
    unit: str,
    caption: Callable[[int, int], str],
) -> FeatureStore:
    """`documents`: in the order of reading; repeats are allowed."""
    import pyarrow.dataset

    numbers, first = np.unique(documents, return_index=True)
    examples = _examples_table(seen, args, caption, numbers, first.argsort().argsort())
    sizes = {"n_tokens": seen.n_tokens, "n_rows": len(numbers)}
    meta = description(sae, args, sizes, logit_lens=NO_MODEL, columns=_columns(unit))
    return FeatureStore(
        latents=latents_table(sae, seen, args, None, str),
        examples=pyarrow.dataset.dataset(examples),
        meta={**meta, "unit": unit},
    )


def _columns(unit: str) -> dict[str, dict[str, str]]:
    words = {"unit": unit, "units": UNITS[unit]}
    own = {
        table: {name: text.format(**words) for name, text in columns.items()}
        for table, columns in _OF_ROWS.items()
    }
    return {table: {**COLUMNS[table], **own[table]} for table in COLUMNS}


def _examples_table(
    seen: LatentStatistics,
    args: CollectArguments,
    caption: Callable[[int, int], str],
    numbers: np.ndarray,
    running: np.ndarray,
) -> "pyarrow.Table":
    """`running`: the running number of each of the documents with these numbers, sorted."""
    import pyarrow as pa

    ranked, document, position, around = ranked_examples(seen, args)
    places = position[:, None] + np.arange(-args.window, args.window + 1)  # [examples, width]
    inside = ~np.isnan(around)
    columns = {
        **{name: ranked[name] for name in ("latent", "kind", "rank")},
        "document": document,
        "row": running[np.searchsorted(numbers, document)],
        "position": position,
        "activation": ranked["activation"],
        "firing": inside[:, : args.window].sum(1),
        "tokens": _texts(document, places, inside, args.window, caption),
        "token_ids": lists(places, inside),
        "activations": lists(around, inside),
    }
    return pa.table(columns)


def _texts(
    document: np.ndarray,
    places: np.ndarray,
    inside: np.ndarray,
    window: int,
    caption: Callable[[int, int], str],
) -> "pyarrow.ListArray":
    """Places, which stand apart from each other when texts are joined, around a caption."""
    import pyarrow as pa

    offsets = np.concatenate([[0], inside.sum(1).cumsum()]).astype(np.int32)
    values, which = np.unique(places[inside], return_inverse=True)
    texts = [f"{v} " for v in values] + [f" {v}" for v in values]
    texts += map(lru_cache(maxsize=None)(caption), document.tolist(), places[:, window].tolist())
    is_after = np.broadcast_to(np.arange(2 * window + 1) > window, places.shape)
    which = which + len(values) * is_after[inside]
    at_peak = offsets[:-1] + inside[:, :window].sum(1)
    which[at_peak] = 2 * len(values) + np.arange(len(document))
    return pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string()).take(pa.array(which)))
