"""What the latents of an SAE fire on where there is no text: rows of files, patches of pictures.

    Source.batches --pieces--> latents --RowBlock--> LatentStatistics --> FeatureStore

A document takes the place of a row of tokens: a latent has at most one example from it. Documents
may be of any length, go on in later batches, and take turns. Activations are held piece by piece:
only numbers of documents grow with what is read, 8 bytes each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationBatch
from ..io.errors import Refused
from ..models import SAE
from .arguments import CollectArguments
from .collecting import description, latents_table, lists, ranked_examples, warn_of_silence
from .store import COLUMNS, UNITS, FeatureStore
from .summary import BLOCK_LATENTS, LatentStatistics, Peaks, Windows, uniform

if TYPE_CHECKING:
    import pyarrow

_PIECE_LATENTS = BLOCK_LATENTS // 4  # each row may be a document, which takes further memory
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
    import pyarrow.dataset

    if unit not in UNITS or unit == "token":
        units = ", ".join(repr(one) for one in UNITS if one != "token")
        raise Refused(f"the unit is {unit!r}; it can be {units}")
    if n is not None and n < 1:
        raise Refused(f"n is {n}; give 1 row or more, or None for all")
    args = args or CollectArguments()
    sizes = {name: getattr(args, name) for name in ("top", "reservoir", "window", "seed")}
    device, d_sae = sae.W_dec.device, sae.config.d_sae
    seen = LatentStatistics(d_sae, **sizes, device=device, whole=torch.int64)
    documents = []
    for (x, document, position), counted in _pieces(sae, batches, n, args.window, progress):
        latents = sae.encode(x.to(sae.W_dec))
        block = RowBlock(latents, document, position, counted, args.window)
        seen.add_(block, uniform(block.documents, d_sae, args.seed))
        documents.append(block.documents.cpu().numpy())
    if not seen.n_tokens:
        raise Refused("no activation is left to collect from; give a side that has documents")
    warn_of_silence(seen, UNITS[unit])
    numbers, first = np.unique(np.concatenate(documents), return_index=True)
    examples = _examples_table(seen, args, caption, numbers, first.argsort().argsort())
    words = {"unit": unit, "units": UNITS[unit]}
    columns = {
        table: {**texts, **{k: text.format(**words) for k, text in _OF_ROWS[table].items()}}
        for table, texts in COLUMNS.items()
    }
    n_read = {"n_tokens": seen.n_tokens, "n_rows": len(numbers)}
    about = description(sae, args, n_read, logit_lens=NO_MODEL, columns=columns)
    return FeatureStore(
        latents=latents_table(sae, seen, args, None, str),
        examples=pyarrow.dataset.dataset(examples),
        meta={**about, "unit": unit, **(meta or {})},
    )


def _pieces(
    sae: SAE,
    batches: Iterable[ActivationBatch],
    n: int | None,
    window: int,
    progress: Callable[[int], object] | None,
) -> Iterator[tuple[list[Tensor], slice]]:
    """What the SAE reads, at most n rows, in pieces of bounded size: activations, documents and
    positions, and the slice of rows whose firings count. The others are neighbours of these, and
    count in another piece."""
    size = max(1, _PIECE_LATENTS // sae.config.d_sae, 4 * window)
    held, first, left = None, 0, n
    for batch in batches:
        if batch.position is None:
            raise Refused(
                "the activations come without positions, which tell the rows of a document apart; "
                "give ActivationBatch(activations, document, position)"
            )
        x = sae.config.reads.joined(batch.activations)
        rows = [field[:left] for field in (x, batch.document.cpu(), batch.position.cpu())]
        if not len(rows[0]):
            continue
        held = rows if held is None else [*map(torch.cat, zip(held, rows, strict=True))]
        while len(held[0]) > size:
            yield [field[:size] for field in held], slice(first, size - window)
            held, first = [field[size - 2 * window :] for field in held], window
        if progress is not None:
            progress(len(rows[0]))
        if left is not None and not (left := left - len(rows[0])):
            break
    if held is not None:
        yield held, slice(first, len(held[0]))


class RowBlock(Peaks):
    """The latents of some rows of documents; the documents are its rows, numbered as they come.

    Args:
        counted: the rows whose firings count; the others are there for windows.
    """

    def __init__(
        self,
        latents: Float[Tensor, "n d_sae"],
        document: Int[Tensor, " n"],
        position: Int[Tensor, " n"],
        counted: slice,
        window: int,
    ):
        document, self.place = document.to(latents.device), position.to(latents.device)
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
        # the index among the n of the rows around it; -1 where there is none
        wanted = position[:, None] + self.steps  # [p, width]
        wanted_keys = row[:, None] * self.span + wanted - self.low
        at = torch.searchsorted(self.keys, wanted_keys).clamp_(max=len(self.keys) - 1)
        index = self.order[at]
        is_there = (self.row[index] == row[:, None]) & (self.place[index] == wanted)
        is_beside = (wanted >= 0) & (position[:, None] >= 0)
        index = index.where(is_there & (is_beside | (self.steps == 0)), -1)
        around = self.latents[index, latent[:, None]].float().masked_fill_(index < 0, torch.nan)
        peak = self.peak[row, latent]
        return Windows(keys[row, latent], peak, self.documents[row], position, around)

    def once_(self, keys: Float[Tensor, "rows d_sae"], windows: Windows) -> None:
        """Of a document that went on in this block, keep the stronger of two peaks."""
        at = torch.searchsorted(self.sorted, windows.row).clamp_(max=len(self.sorted) - 1)
        is_here = (self.sorted[at] == windows.row) & (windows.key > -torch.inf)
        latent, slot = is_here.nonzero(as_tuple=True)
        row = self.row_of_sorted[at[latent, slot]]
        is_stronger = self.peak[row, latent] > windows.peak[latent, slot]
        windows.key[latent[is_stronger], slot[is_stronger]] = -torch.inf
        keys[row[~is_stronger], latent[~is_stronger]] = -torch.inf


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
    window = args.window
    places = position[:, None] + np.arange(-window, window + 1)  # [examples, width]
    inside = ~np.isnan(around)
    # texts: places, which stand apart from each other when texts are joined, around a caption
    offsets = np.concatenate([[0], inside.sum(1).cumsum()]).astype(np.int32)
    values, which = np.unique(places[inside], return_inverse=True)
    texts = [f"{v} " for v in values] + [f" {v}" for v in values]
    texts += map(lru_cache(maxsize=None)(caption), document.tolist(), position.tolist())
    is_after = np.broadcast_to(np.arange(2 * window + 1) > window, places.shape)
    which = which + len(values) * is_after[inside]
    firing = inside[:, :window].sum(1)
    which[offsets[:-1] + firing] = 2 * len(values) + np.arange(len(document))
    tokens = pa.array(texts, pa.string()).take(pa.array(which))
    columns = {
        **{name: ranked[name] for name in ("latent", "kind", "rank")},
        "document": document,
        "row": running[np.searchsorted(numbers, document)],
        "position": position,
        "activation": ranked["activation"],
        "firing": firing,
        "tokens": pa.ListArray.from_arrays(offsets, tokens),
        "token_ids": lists(places, inside),
        "activations": lists(around, inside),
    }
    return pa.table(columns)
