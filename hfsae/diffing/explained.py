"""How much of what changed from one model to the other a latent explains.

With x^A and x^B the activations of both models over the scale of their site, f the activation of a
latent, and d its row of B less its row of A (of a dedicated latent: its row of B),

    change     y_n = x^B_n - x^A_n - (b_dec^B - b_dec^A)
    explained  1 - sum_n |y_n - f_n d|^2 / sum_n |y_n|^2

over all tokens, and over those on which it fires; both with f and d as the SAE has them, without a
factor that would fit them better. A shift of all tokens, which b_dec holds, is of no latent, so it
is taken off: once, so that all latents have the same change to explain, and not by centring y and
f d, which would take from a latent that fires on most tokens most of what it writes.

The control is the same with f permuted over tokens: what as many and as large firings explain
elsewhere. A latent that stands for a shift of all tokens explains no more than its control.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..evaluation.metrics import DocumentSums
from .intervals import N_GROUPS, Values, resampled
from .sides import Sides

_CONTROL = "shuffled_"


class Explained:
    """Sums over tokens, float64, by 64 groups of documents; `latents` are those that write not the
    same in both models."""

    def __init__(self, sides: Sides) -> None:
        moves = sides.moves
        self.sides, self.shift = sides, sides.shift
        self.latents = moves.any(dim=1).nonzero()[:, 0]
        self.moves = moves[self.latents]  # d
        self.sums, self._of_all = DocumentSums(), DocumentSums()
        self._generator = torch.Generator().manual_seed(0)

    def add(
        self,
        x: Float[Tensor, "n d"],
        recon: Float[Tensor, "n d"],
        latents: Float[Tensor, "n d_sae"],
        document: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: raw activations, reconstructions, and the activations of all latents."""
        (a, b), written = self.sides.of(x).values(), self.sides.of(recon).values()
        change = b - a - self.shift
        square, along = change.square().sum(dim=1), change @ self.moves.T
        f = latents[:, self.latents].double()
        elsewhere = torch.randperm(len(f), generator=self._generator).to(f.device)
        values = {"square": square}
        for name, firings in (("", f), (_CONTROL, f[elsewhere])):
            # |y|^2 - |y - f d|^2
            gain = 2 * firings * along - firings.square() * self.moves.square().sum(dim=1)
            values |= {f"{name}gain": gain, f"{name}fired": (firings != 0) * square[:, None]}
        first, second = written
        whole = {
            "tokens": torch.ones_like(square),
            "x": a,
            "x_square": a.square().sum(dim=1),
            "difference": (b - a).square().sum(dim=1),
            "square": square,
            "left": (b - a - second + first).square().sum(dim=1),
        }
        for sums, added in ((self.sums, values), (self._of_all, whole)):
            sums.add(document % N_GROUPS, added)
            sums.per_document()  # merged, so that memory does not grow

    def by_latent(self) -> dict[str, Float[Tensor, "3 m"]]:
        """explained (over all tokens), explained_firing (where it fires), and both of the control,
        shuffled and shuffled_firing: values, and the ends of their intervals over documents. NaN
        where a latent never fired, and of all where both models have the same activations."""
        shares = resampled(self.sums.per_document(), _shares)
        if self.whole()["difference"] == 0:
            return {name: torch.full_like(share, torch.nan) for name, share in shares.items()}
        return shares

    def whole(self) -> dict[str, float]:
        """Of the whole change: the squared difference of both models, as a share of the spread of
        the first one's activations; the share of it that the shift takes; and the share of the rest
        that all latents together explain."""
        sums = {name: value.sum(dim=0) for name, value in self._of_all.per_document().items()}
        spread = sums["x_square"] - sums["x"].square().sum() / sums["tokens"]
        values = {
            "difference": sums["difference"] / spread,
            "shift": 1 - sums["square"] / sums["difference"],
            "explained": 1 - sums["left"] / sums["square"],
        }
        if sums["difference"] == 0:
            return {"difference": 0.0, "shift": math.nan, "explained": math.nan}
        return {name: float(value) for name, value in values.items()}


def _shares(sums: Values) -> Values:
    every = sums["square"][..., None]
    values = {}
    for title, name in (("explained", ""), ("shuffled", _CONTROL)):
        values[title] = sums[f"{name}gain"] / every
        values[f"{title}_firing"] = sums[f"{name}gain"] / sums[f"{name}fired"]
    return values
