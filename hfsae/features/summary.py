"""The summary of a stream of latents: for each, windows around its peaks, a histogram and a sum.

Only token ids and document numbers grow with the text, 8 bytes a token. A latent takes 5.4 KB with
the default arguments: 44 MB for 8192.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import TokenBatch
from ..ops import upload

BLOCK_LATENTS = 2**24
"""Latents encoded at a time: 64 MiB of float32, but at least one row."""

# The same bins for every latent and run, four an octave: counts of parts can be added up, and the
# bin of a value is found by comparing floats, never from a rounded logarithm.
HISTOGRAM_EDGES = 2.0 ** (torch.arange(-12 * 4, 18 * 4 + 1) / 4)

# Steele, Lea and Flood 2014 (SplitMix64), as signed numbers: products of int64 wrap.
_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Windows(NamedTuple):
    """For each latent the k rows with the largest keys, best first, and the latent around its peak.

    There is at most one window from a row, so that no two show the same text.
    """

    key: Float[Tensor, "d_sae k"]  # -inf where there is no row
    peak: Float[Tensor, "d_sae k"]  # the latent's largest activation in the row
    row: Int[Tensor, "d_sae k"]
    position: Int[Tensor, "d_sae k"]  # of the peak
    around: Float[Tensor, "d_sae k width"]  # activations at position - window ... position + window

    @classmethod
    def empty(
        cls, d_sae: int, k: int, window: int, device: torch.device, whole: torch.dtype = torch.int32
    ) -> "Windows":
        """No rows yet: every key is -inf. `whole`: the type of rows and positions."""
        keys = torch.full((d_sae, k), -torch.inf, device=device)
        rows = torch.full((d_sae, k), -1, dtype=whole, device=device)
        around = torch.zeros(d_sae, k, 2 * window + 1, device=device)
        return cls(keys, torch.zeros_like(keys), rows, torch.zeros_like(rows), around)

    def merge_(self, keys: Float[Tensor, "rows d_sae"], block: "Peaks") -> None:
        """Take the block's rows where their keys are larger; of equal keys the earlier stays."""
        block.once_(keys, self)
        k = self.key.shape[1]
        latents = (keys.amax(0) > self.key.amin(1)).nonzero().squeeze(1)
        pool = torch.cat([self.key[latents], keys.T[latents]], 1)  # [c, k + rows]
        best = pool.sort(dim=1, descending=True, stable=True).indices[:, :k]
        stay = best.clamp(max=k - 1)
        where, slot = (best >= k).nonzero(as_tuple=True)
        new = block.windows(keys, best[where, slot] - k, latents[where])
        for kept, fresh in zip(self, new, strict=True):
            moved = kept[latents].take_along_dim(stay.view(*stay.shape, *[1] * (kept.ndim - 2)), 1)
            moved[where, slot] = fresh.to(kept.dtype)
            kept[latents] = moved


class Peaks:
    """The firings at n places, and each latent's peak in each of the rows that they lie in."""

    def __init__(
        self,
        latents: Float[Tensor, "n d_sae"],
        row: Int[Tensor, " n"],
        position: Int[Tensor, " n"],
        n_rows: int,
    ):
        self.n = len(latents)
        token, self.fired = (latents > 0).nonzero(as_tuple=True)
        self.values = latents[token, self.fired].float()
        peaks = self.values.new_zeros(n_rows * latents.shape[1])
        cell = row[token] * latents.shape[1] + self.fired
        peaks.scatter_reduce_(0, cell, self.values, "amax")
        at_peak = (self.values == peaks[cell]).nonzero()[:, 0]
        cell, where = cell[at_peak], position[token[at_peak]]
        positions = torch.zeros_like(peaks, dtype=torch.long)
        positions.scatter_reduce_(0, cell, where, "amin", include_self=False)
        self.peak = peaks.view(n_rows, -1)  # [rows, d_sae], 0 where it does not fire
        self.position = positions.view(n_rows, -1)

    def windows(
        self, keys: Float[Tensor, "rows d_sae"], row: Int[Tensor, " p"], latent: Int[Tensor, " p"]
    ) -> Windows:
        """Fields of Windows for p pairs of a row and a latent, without the dimension k."""
        raise NotImplementedError

    def once_(self, keys: Float[Tensor, "rows d_sae"], windows: Windows) -> None:
        """Where a window of one of these rows is there already, set the key of the lower to -inf:
        the one that is there, or this row's. Here none is: each row of tokens comes once."""


class Block(Peaks):
    """The latents of a few whole rows of tokens.

    n counts the tokens that were harvested; `row` and `position` are their places.
    """

    def __init__(
        self,
        latents: Float[Tensor, "n d_sae"],
        row: Int[Tensor, " n"],
        position: Int[Tensor, " n"],
        shape: tuple[int, int],
        *,
        first_row: int,
        window: int,
    ):
        super().__init__(latents, row, position, shape[0])
        self.latents, self.first_row, self.width = latents, first_row, 2 * window + 1
        # The index among the n at each place, or -1; padded, since windows overhang ends of rows.
        self.index = torch.full((shape[0], shape[1] + 2 * window), -1, device=latents.device)
        self.index[row, position + window] = torch.arange(len(latents), device=latents.device)

    def windows(
        self, keys: Float[Tensor, "rows d_sae"], row: Int[Tensor, " p"], latent: Int[Tensor, " p"]
    ) -> Windows:
        position = self.position[row, latent]
        steps = torch.arange(self.width, device=keys.device)
        index = self.index[row[:, None], position[:, None] + steps]  # [p, width]
        around = self.latents[index, latent[:, None]].float().masked_fill_(index < 0, 0.0)
        first = self.first_row
        return Windows(keys[row, latent], self.peak[row, latent], row + first, position, around)


class LatentStatistics:
    """The whole summary: for each latent its strongest rows, `top`, and random ones, `sample`."""

    def __init__(
        self,
        d_sae: int,
        *,
        top: int,
        reservoir: int,
        window: int,
        seed: int,
        device: torch.device,
        whole: torch.dtype = torch.int32,
    ):
        self.window = window
        self.top = Windows.empty(d_sae, top, window, device, whole)
        self.sample = Windows.empty(d_sae, reservoir, window, device, whole)
        self.edges = HISTOGRAM_EDGES.to(device)
        n_bins = len(HISTOGRAM_EDGES) - 1
        self.histogram = torch.zeros(d_sae, n_bins, dtype=torch.int32, device=device)
        self.sum = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.generator = torch.Generator().manual_seed(seed)
        self.tokens: list[Tensor] = []
        self.documents: list[Tensor] = []
        self.n_rows = self.n_tokens = 0

    def add_block_(
        self,
        latents: Float[Tensor, "n d_sae"],
        row: Int[Tensor, " n"],
        position: Int[Tensor, " n"],
        batch: TokenBatch,
    ) -> None:
        """The latents of a batch of whole rows, of the tokens in it that were harvested."""
        shape = (len(batch.input_ids), batch.input_ids.shape[1])
        block = Block(latents, row, position, shape, first_row=self.n_rows, window=self.window)
        # Every row and latent draws a key, fired or not: so the sample does not depend on the size
        # of batches.
        drawn = torch.rand(block.peak.shape, generator=self.generator)
        keys = upload(drawn, block.peak.device)
        self.add_(block, keys)
        self.tokens.append(batch.input_ids.int().cpu())
        self.documents.append(batch.document.int().cpu())

    def add_(self, block: Peaks, keys: Float[Tensor, "rows d_sae"]) -> None:
        """A block's firings. The rows with the largest of independent uniform keys are a uniform
        sample; `keys` is overwritten."""
        fires = block.peak > 0
        self.top.merge_(block.peak.masked_fill(~fires, -torch.inf), block)
        self.sample.merge_(keys.masked_fill_(~fires, -torch.inf), block)
        bins = torch.bucketize(block.values, self.edges[1:-1], right=True)
        cells = block.fired * self.histogram.shape[1] + bins
        self.histogram.view(-1).scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        self.sum.scatter_add_(0, block.fired, block.values.double())
        self.n_rows += len(fires)
        self.n_tokens += block.n

    def state(self) -> dict[str, Tensor]:
        """Everything that was seen so far, for `load_state_`."""
        return {
            **self._filled(),
            "tokens": torch.cat(self.tokens),
            "documents": torch.cat(self.documents),
            "n_tokens": torch.tensor(self.n_tokens),
            "generator": self.generator.get_state(),
        }

    def load_state_(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state` of a summary with the same arguments."""
        for name, tensor in self._filled().items():
            tensor.copy_(state[name])
        self.tokens, self.documents = [state["tokens"]], [state["documents"]]
        self.n_rows, self.n_tokens = len(state["tokens"]), int(state["n_tokens"])
        self.generator.set_state(state["generator"])

    def _filled(self) -> dict[str, Tensor]:
        """The tensors of fixed size that blocks are added to."""
        both = {"top": self.top, "sample": self.sample}.items()
        windows = {f"{kind}.{k}": v for kind, w in both for k, v in w._asdict().items()}
        return {**windows, "histogram": self.histogram, "sum": self.sum}


def hashed(numbers: Int[Tensor, "*shape"], seed: int) -> Int[Tensor, "*shape"]:
    """A number from 0 to 2^63 - 1 for each, without order among them: random numbers that follow
    from what they are drawn for, in whatever order that is read."""
    start = _mixed(torch.tensor(seed % 2**63, device=numbers.device))
    return _shifted(_mixed(_mixed(numbers) ^ start), 1)


def uniform(
    numbers: Int[Tensor, " n"], n_columns: int, seed: int
) -> Float[Tensor, "n {n_columns}"]:
    """From 0 to 1, drawn for each pair of a number and a column."""
    column = torch.arange(n_columns, device=numbers.device)
    bits = _mixed(hashed(numbers, seed)[:, None] + column)
    return _shifted(bits, 40).float() / 2**24  # as many bits as a float32 holds


def _mixed(x: Tensor) -> Tensor:
    x = x + _STEP
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros on the left: of a negative number, torch's shift brings ones."""
    return (x >> by) & (2 ** (64 - by) - 1)
