"""The two models of a crosscoder, what each latent explains of the change from one to the other,
and whether it is in the other model, too.

**Explained.** With x^A and x^B the activations of both models over the scale of their site, f the
activation of a latent, and d its row of B less its row of A (of a dedicated latent: its row of B),

    change     y_n = x^B_n - x^A_n - (b_dec^B - b_dec^A)
    explained  1 - sum_n |y_n - f_n d|^2 / sum_n |y_n|^2

over all tokens, and over those on which it fires; both with f and d as the SAE has them, without a
factor that would fit them better. A shift of all tokens, which b_dec holds, is of no latent, so it
is taken off: once, so that all latents have the same change to explain, and not by centring y and
f d, which would take from a latent that fires on most tokens most of what it writes.

The control is the same with f permuted over tokens: what as many and as large firings explain
elsewhere. A latent that stands for a shift of all tokens explains no more than its control.

**Scaled** (latent scaling; Minder et al., arXiv:2504.02922). Is a latent of one model in the other,
too? For a latent of one model, with direction d there and activations f, and any vectors y,

    beta(y) = argmin_beta min_c sum_n |y_n - c - beta f_n d|^2
            = sum_n (f_n - mean f) <d, y_n> / (|d|^2 sum_n (f_n - mean f)^2)

is how much of the latent is in y. The constant c, which the paper has not, takes what is in y on
all tokens alike: without it the activations' mean counts as the latent. Of each model M two kinds
of y are looked at:

    recon   the reconstruction of M, with the latent left in
    error   the activation of M less the reconstruction without the latent: a - (recon - f d^M)

and nu = beta of the other model / beta of the latent's own. A latent that is really of one model
has both near 0. With nu_recon near 1 other latents carry it in the other model; with nu_error near
1 it is there too, and the dictionary left it out. Where the own beta is small, since other latents
write against it on its tokens, the quotient is undetermined.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..evaluation.metrics import DocumentSums, bootstrap_weights
from ..io.errors import Refused
from ..lm.places import SLASH
from ..models import SAE
from ..ops import upload

FIRST, SECOND, SHARED, OTHER = "first", "second", "shared", "other"
GROUPS = (FIRST, SECOND, SHARED, OTHER)
MOSTLY = 0.9
"""from this share on a latent counts to one model"""
EVEN = (0.4, 0.6)
"""shares of a latent of both models"""
_ROUNDING = 1e-9
N_GROUPS = 64
"""Documents are resampled in so many groups: sums of each document would not fit in memory."""
_N_RESAMPLES = 1000
_AT_ONCE = 1024  # latents
_MOST_LEFT_OUT = 0.01  # of the resamples: a latent fires in fewer than five groups
Values = dict[str, Tensor]
_CONTROL = "shuffled_"
KINDS = ("recon", "error")
MOST_NU = 0.2
"""little of a latent is in the other model: both nu are below it in size, intervals included"""
LEAST_OWN = 0.5
"""own coefficients below it leave nu undetermined: they are 1 where no other latent interferes"""
LITTLE, SOME, UNDETERMINED = "little", "some", "undetermined"


class Sides:
    """Activations, reconstructions and decoder rows of an SAE, apart for each of two models.

    All are over the scale c_s of their site, in which shares are measured; several sites of a model
    stand side by side.

    Raises:
        ValueError: the SAE has not sites of two models, the same in both and equally wide.
    """

    def __init__(self, sae: SAE) -> None:
        self.sae = sae if sae.config.scales_folded else sae.folded()
        config = self.sae.config
        paths: dict[str, list[tuple[str, int]]] = {}
        for site, width in config.writes:
            name, slash, path = site.partition(SLASH)
            paths.setdefault(name if slash else "", []).append((path, width))
        if len(paths) != 2 or "" in paths:
            of = f"reads {config.writes}" if "" in paths else f"has sites of {', '.join(paths)}"
            raise Refused(
                f"this SAE {of}; `hfsae diff` compares two language models, by an SAE over sites "
                "of both, such as base/layers.13 and chat/layers.13 (a recipe with lms)"
            )
        (first, ours), (second, theirs) = ((name, sorted(of)) for name, of in paths.items())
        if ours != theirs:
            lists = "; ".join(
                ", ".join(f"{path} ({width} wide)" for path, width in of) for of in (ours, theirs)
            )
            raise Refused(
                f"{first} and {second} are not read at the same sites, equally wide ({lists}), so "
                "their directions cannot be compared"
            )
        self.names = first, second
        self._sites = {name: [f"{name}{SLASH}{path}" for path, _ in ours] for name in self.names}
        scales = config.site_scales or [1.0] * len(config.writes)
        self._scales = dict(zip(config.writes.names, map(float, scales), strict=True))

    def of(self, x: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, "n _"]]:
        """The columns of each model, float64."""
        parts = self.sae.split(x)
        return {
            name: torch.cat([parts[site].double() / self._scales[site] for site in sites], dim=-1)
            for name, sites in self._sites.items()
        }

    @property
    def rows(self) -> dict[str, Float[Tensor, "d_sae _"]]:
        """The decoder rows of each model: what a latent of activation 1 writes there."""
        return self.of(self.sae.W_dec.detach())

    @property
    def moves(self) -> Float[Tensor, "d_sae _"]:
        """d: the second model's rows less the first one's; 0 for a latent that changes nothing."""
        first, second = self.rows.values()
        return second - first

    @property
    def shift(self) -> Float[Tensor, " _"]:
        """The difference of the two models that b_dec holds, on all tokens alike."""
        first, second = self.of(self.sae.b_dec.detach()[None]).values()
        return (second - first)[0]

    @property
    def share(self) -> Float[Tensor, " d_sae"]:
        """r: the share of each latent's row that is the second model's; NaN for a row of zeros."""
        shares = dict(zip(self.sae.config.writes.names, self.sae.shares.double().T, strict=True))
        ours, theirs = (
            torch.stack([shares[site] for site in self._sites[name]]).sum(dim=0)
            for name in self.names
        )
        return theirs / (ours + theirs)

    @property
    def cosine(self) -> Float[Tensor, " d_sae"]:
        """Of each latent's two rows."""
        first, second = self.rows.values()
        return torch.nn.functional.cosine_similarity(first, second, dim=-1)


def groups_of(share: Float[Tensor, " d_sae"]) -> Int[Tensor, " d_sae"]:
    """The group of each latent, as an index of `GROUPS`.

    r >= .9: the second model's; r <= .1: the first one's; .4 to .6: of both; the others, and
    latents that write nothing (NaN), are in none of these.
    """
    index = torch.full_like(share, GROUPS.index(OTHER), dtype=torch.long)
    low, high = EVEN
    index[share <= 1 - MOSTLY + _ROUNDING] = GROUPS.index(FIRST)
    index[share >= MOSTLY - _ROUNDING] = GROUPS.index(SECOND)
    index[(share >= low - _ROUNDING) & (share <= high + _ROUNDING)] = GROUPS.index(SHARED)
    return index


def resampled(
    sums: Values, of: Callable[[Values], Values], seed: int = 0
) -> dict[str, Float[Tensor, "3 m"]]:
    """Each value of `of`, and the two ends of its percentile bootstrap interval.

    Args:
        sums: by group of documents, [groups], or [groups, m] of m latents.
        of: values [..., m] from sums [...] and [..., m] over any groups. One that is NaN in a
            resample, as where a latent did not fire, is left out of it; where that is in more than
            a hundredth of them, there is no interval (NaN).
    """
    n_groups = len(next(iter(sums.values())))
    weights = torch.cat([*bootstrap_weights(n_groups, _N_RESAMPLES, seed)])
    levels = weights.new_tensor([0.025, 0.975])
    n_latents = max(table.shape[1] for table in sums.values() if table.ndim > 1)
    parts = []
    for first in range(0, max(n_latents, 1), _AT_ONCE):
        at = slice(first, first + _AT_ONCE)
        tables = {name: t[:, at] if t.ndim > 1 else t for name, t in sums.items()}
        values = of({name: table.sum(dim=0) for name, table in tables.items()})
        draws = of({name: weights @ table for name, table in tables.items()})
        part = {}
        for name, value in values.items():
            of_draws = draws[name]
            low, high = of_draws.nanquantile(levels, dim=0) if len(value) else of_draws[:2]
            ends = torch.minimum(low, value), torch.maximum(high, value)  # outside by rounding
            part[name] = torch.stack([value, *ends])
            is_rare = of_draws.isnan().double().mean(dim=0) > _MOST_LEFT_OUT
            part[name][1:, is_rare | (n_groups == 1)] = torch.nan
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


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
        elsewhere = upload(torch.randperm(len(f), generator=self._generator), f.device)
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

        def shares_of(sums: Values) -> Values:
            every, values = sums["square"][..., None], {}
            for title, name in (("explained", ""), ("shuffled", _CONTROL)):
                values[title] = sums[f"{name}gain"] / every
                values[f"{title}_firing"] = sums[f"{name}gain"] / sums[f"{name}fired"]
            return values

        shares = resampled(self.sums.per_document(), shares_of)
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


class Scaling:
    """Sums over tokens, float64, by 64 groups of documents, from which beta and nu of some latents
    follow.

    Args:
        latents: indices.
        of_second: whether each of them is the second model's.
    """

    def __init__(
        self, sides: Sides, latents: Int[Tensor, " m"], of_second: Bool[Tensor, " m"]
    ) -> None:
        self.sides, self.latents, self.of_second = sides, latents, of_second
        first, second = (rows[latents] for rows in sides.rows.values())
        own = torch.where(of_second[:, None], second, first)  # d
        self._unit = own / own.square().sum(dim=1, keepdim=True)
        self._left_out = [(rows * self._unit).sum(dim=1) for rows in (first, second)]
        self.sums = DocumentSums()

    def add(
        self,
        x: Float[Tensor, "n d"],
        recon: Float[Tensor, "n d"],
        latents: Float[Tensor, "n d_sae"],
        document: Int[Tensor, " n"],
    ) -> None:
        """Add tokens: raw activations, reconstructions, and the activations of all latents."""
        f = latents[:, self.latents].double()
        values = {"tokens": f.new_ones(len(f)), "f": f, "square": f.square()}
        along = []  # <d, y> / |d|^2 of each model, for both kinds
        parts = zip(self.sides.of(x).values(), self.sides.of(recon).values(), strict=True)
        for (a, written), left_out in zip(parts, self._left_out, strict=True):
            along.append((written @ self._unit.T, (a - written) @ self._unit.T + f * left_out))
        for kind, first, second in zip(KINDS, *along, strict=True):
            for name, y in (
                ("own", torch.where(self.of_second, second, first)),
                ("other", torch.where(self.of_second, first, second)),
            ):
                values |= {f"{name}_{kind}": y, f"f_{name}_{kind}": f * y}
        self.sums.add(document % N_GROUPS, values)
        self.sums.per_document()  # merged, so that memory does not grow

    def nu(self) -> dict[str, Float[Tensor, "3 m"]]:
        """own_recon, own_error (the latent's own beta), nu_recon and nu_error: values, and the ends
        of their intervals over documents; NaN where a latent never fired."""

        def nu_of(sums: Values) -> Values:
            mean = sums["f"] / sums["tokens"][..., None]
            spread = sums["square"] - mean * sums["f"]
            spread = torch.where(sums["square"] > 0, spread, torch.nan)
            own, other = (
                [(sums[f"f_{of}_{kind}"] - mean * sums[f"{of}_{kind}"]) / spread for kind in KINDS]
                for of in ("own", "other")
            )
            names = [f"{name}_{kind}" for name in ("own", "nu") for kind in KINDS]
            nus = [theirs / ours for ours, theirs in zip(own, other, strict=True)]
            return dict(zip(names, [*own, *nus], strict=True))

        return resampled(self.sums.per_document(), nu_of)


def in_other(nu: dict[str, Float[Tensor, "3 m"]]) -> list[str | None]:
    """Whether "little" or "some" of each latent is in the other model, or "undetermined", from
    values and intervals of `Scaling.nu`; None for one that never fired.

    Little: both intervals of nu lie within -.2 and .2. Some: one lies above .2. Else, and where the
    interval of an own coefficient reaches below .5, it is undetermined: a quotient of a small
    number can be anything.
    """
    own, nus = (torch.stack([nu[f"{name}_{kind}"] for kind in KINDS]) for name in ("own", "nu"))
    is_sure = (own[:, 1] >= LEAST_OWN).all(dim=0)
    is_little = (nus.abs() < MOST_NU).all(dim=0).all(dim=0)
    is_some = (nus[:, 1] > MOST_NU).any(dim=0)
    words = []
    for sure, little, some, value in zip(is_sure, is_little, is_some, own[0, 0], strict=True):
        word = LITTLE if little else SOME if some else UNDETERMINED
        words.append(None if value.isnan() else word if sure else UNDETERMINED)
    return words
