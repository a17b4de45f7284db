"""Dictionaries over several sites in the order of a forward pass: cross-layer transcoders.

Latents are in S equal parts: those of source s read `sites[s]` and write at `target_sites[t]` of
every t >= s, as many targets as sources. So a target is known once its own source is read:

    f^s = activate(x^s W_enc^s + b_enc^s),   y^t = sum_{s <= t} f^s W_dec^{s->t} + b_dec^t
    loss = mean over targets of |target^t - y^t|^2 / c_t^2, and the variant's sparsity terms

With `skip_connection` there is + x^t W_skip^t too. Circuit Tracing (Anthropic 2025) has MLPs'
inputs as sources and MLPs' outputs as targets; where targets are the sites themselves it is the
weakly causal crosscoder (Anthropic 2024; Gemma Scope 2).

Units are those of a crosscoder (site_layout.py) on the side that is written, c_t sqrt(S); x^s is
read in units of c_s, as by an SAE of that site alone. A row's norm N is the sum of its targets'
norms, 1 in training. Everything else (non-linearity, thresholds, choice of the largest, penalties,
dead latents) is by latent and comes from the variant, over the latents of all sources together.

Weights are compact: `W_enc` [w, d_sae], w the width of each site, and for each source s
`W_dec_{s}` [d_sae / S, (S - s) w], rows side by side from target s on. `W_dec` and `decoder_rows()`
put them together as [d_sae, S w], with zeros before a latent's source, to look at.

Spread over processes (`training.shard_latents`), each holds a part of every source's decoder rows,
by far most of the weights; encoder rows and a batch's latents go to all of them in each step.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import initialization as init

from ..io.errors import Refused
from ..lm.hooks import Sites
from ..ops import EVERYWHERE, Place, indices_of
from .base import SAE
from .batch_topk import BatchTopKSAE, BatchTopKSAEConfig
from .config import INITIAL_FREE_NORM, SAEConfig
from .jumprelu import JumpReLUSAE, JumpReLUSAEConfig

_K_OF_SOURCE = 16


class CausalConfig(SAEConfig):
    """Fields of SAEs whose sources write at their own target and at later ones."""

    is_causal = True
    scale_names: ClassVar = (*SAEConfig.scale_names, "target_scales")

    target_sites: list | None = None
    """places that are reconstructed, one for each of `sites`, in the same order; None: `sites`
    themselves"""
    target_scales: list | None = None
    """c at each of `target_sites`, raw units, as `site_scales`; None: those of `sites`"""

    def check_sites(self) -> None:
        if self.sites is None:
            raise Refused(
                f"a {self.model_type} needs sites, the list of places that its sources read, as "
                "['layers.1.mlp:in', 'layers.2.mlp:in']; give it in the place of site"
            )
        super().check_sites()
        n = len(self.sites)
        if len(set(self.widths or ())) > 1 or self.d_out != self.d_in:
            widths = self.widths or [self.d_in // n, self.d_out // n]
            raise Refused(
                f"a {self.model_type} needs sites of one width, got {widths}; give those of one "
                "kind, such as the inputs and outputs of MLPs"
            )
        if self.d_sae % n:
            raise Refused(
                f"d_sae ({self.d_sae}) is not divisible by {n} sources, which have as many latents "
                f"each; use {self.d_sae - self.d_sae % n or n}"
            )
        if self.site_dropout:
            raise Refused(
                f"site_dropout is for latents that read all sites; a {self.model_type}'s read one: "
                "leave it at 0"
            )
        sites, targets = self.sites, self.targets
        are_places = isinstance(targets, list) and all(isinstance(at, str) for at in targets)
        if not are_places or len(targets) != len(sites):
            raise Refused(
                f"target_sites must name a place for each of the {len(sites)} sites, got {targets}"
            )
        if twice := [site for site in targets if targets.count(site) > 1]:
            raise Refused(f"target_sites names {twice[0]!r} twice; name each place once")
        if self.target_scales is not None and len(self.target_scales) != len(targets):
            raise Refused(
                f"target_scales must hold a number for each of the {len(targets)} target_sites, "
                f"got {self.target_scales}"
            )
        for t, target in enumerate(targets):
            for site in sites[: t + 1]:
                if _lies_before(target, site):
                    raise Refused(
                        f"target {target!r} lies before {site!r}, which writes to it: list sites "
                        "and target_sites in the order in which the model runs them"
                    )

    @property
    def targets(self) -> list[str]:
        """The places that are reconstructed."""
        return list((self.sites if self.target_sites is None else self.target_sites) or ())

    @property
    def is_transcoder(self) -> bool:
        return self.targets != self.sites

    @property
    def writes(self) -> Sites:
        return Sites(zip(self.targets, self.written_widths, strict=True))

    @property
    def read_column_scales(self) -> list[float]:
        return [float(scale) for scale in self.site_scales or [1.0]]

    @property
    def written_scales(self) -> list[float]:
        return self.target_scales or self.site_scales or [1.0]

    def fill_scales(self, read: Sequence[float], written: Sequence[float]) -> None:
        if self.is_transcoder and self.has_several_sites and self.target_scales is None:
            self.target_scales = list(written)
        whole = math.sqrt(sum(size**2 for size in written))
        super().fill_scales(read, [written[0] if len(written) == 1 else whole])


def _lies_before(one: str, other: str) -> bool:
    """Whether a place is in an earlier block of the same stack."""
    stacks = [re.match(r"(.*?)\.(\d+)(?=\.|:|$)", place) for place in (one, other)]
    first, second = stacks
    if first is None or second is None or first[1] != second[1]:
        return False
    return int(first[2]) < int(second[2])


class JumpReLUCLTConfig(JumpReLUSAEConfig, CausalConfig):
    """Fields of JumpReLU SAEs, with `sites` and `target_sites`."""

    model_type = "jumprelu_clt"


class BatchTopKCLTConfig(BatchTopKSAEConfig, CausalConfig):
    """Fields of BatchTopK SAEs, with `sites` and `target_sites`."""

    model_type = "batch_topk_clt"

    k: int = 0
    """latents of all sources together; 0: 16 for each source"""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.k == 0:
            self.k = min(_K_OF_SOURCE * max(1, len(self.sites or ())), self.d_sae)
        super().__post_init__(**kwargs)


class Causal(SAE):
    """The base of causal variants, behind the variant's own class: what differs by source."""

    config: CausalConfig

    def make_parameters(self) -> None:
        c, n = self.config, self.n_sources
        size = c.d_sae // n
        self.decoder_names = [f"W_dec_{s}" for s in range(n)]
        own = {name: dim for name, dim in self.latent_dims.items() if name != "W_dec"}
        self.latent_dims = own | dict.fromkeys(self.decoder_names, 0)  # pyright: ignore
        self.W_enc = nn.Parameter(torch.empty(c.d_sae, self.width).T)  # by latent in memory
        self.b_enc = nn.Parameter(torch.empty(c.d_sae))
        for s, name in enumerate(self.decoder_names):
            self.register_parameter(name, nn.Parameter(torch.empty(size, (n - s) * self.width)))
        self.b_dec = nn.Parameter(torch.empty(c.d_out))
        if c.skip_connection:
            self.W_skip = nn.Parameter(torch.empty(self.width, c.d_out))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the base, the same direction at each target."""
        if module is not self:
            return
        n, drawn = self.n_sources, torch.empty_like(self.encoder_rows(), device=self.b_dec.device)
        drawn = nn.init.kaiming_uniform_(drawn.contiguous())
        rows = nn.functional.normalize(drawn, dim=-1)
        norm = 1.0 if self.config.unit_norm_decoder else INITIAL_FREE_NORM
        for s, (p, part) in enumerate(zip(self.decoder_parts(), rows.chunk(n), strict=True)):
            share = n - s if self.config.sums_norms else (n - s) ** 0.5
            init.copy_(p, norm * part.repeat(1, n - s) / share)
        if self.config.is_transcoder:
            init.kaiming_uniform_(self.W_enc, mode="fan_out")  # of x @ W_enc, whose fan-in is w
        else:
            init.copy_(self.W_enc, norm * rows.T)
        for p in (self.b_enc, self.b_dec, *([self.W_skip] if self.config.skip_connection else ())):
            init.zeros_(p)

    @property
    def n_sources(self) -> int:
        """Number of sources, and of targets."""
        return len(self.config.sites or ())

    @property
    def width(self) -> int:
        """Width of the activations at each site."""
        return self.config.d_in // self.n_sources

    @property
    def W_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`decoder_rows()`."""
        return self.decoder_rows()

    def decoder_rows(self) -> Float[Tensor, "d_sae d_out"]:
        """What each latent writes, row i of latent i: put together, zeros before its source."""
        return self._padded(self.decoder_parts())

    def rows_of(self, chosen: Bool[Tensor, " d_sae"]) -> Float[Tensor, "n d_out"]:
        parts = zip(self.decoder_parts(), chosen.chunk(self.n_sources), strict=True)
        return self._padded([rows[indices_of(of, rows.device)] for rows, of in parts])

    def _padded(self, parts: Sequence[Tensor]) -> Tensor:
        if self.n_sources == 1:
            return parts[0]
        whole = [nn.functional.pad(rows, (s * self.width, 0)) for s, rows in enumerate(parts)]
        return torch.cat(whole)

    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        return torch.cat([self.row_norms(rows.float()) for rows in self.decoder_parts()])

    def sources(self) -> list[tuple[Tensor, Tensor, slice, slice]]:
        if (n := self.n_sources) == 1:
            return super().sources()
        read = zip(self.encoder_rows().chunk(n), self.decoder_parts(), strict=True)
        ends = [s * self.width for s in range(n + 1)]
        return [
            (rows, written, slice(ends[s], ends[s + 1]), slice(ends[s], ends[n]))
            for s, (rows, written) in enumerate(read)
        ]

    def _site_norms(self, rows: Float[Tensor, "n _"]) -> Float[Tensor, "n _"]:
        """By target; rows may lack the targets before their source."""
        norms = torch.linalg.vector_norm(rows.unflatten(-1, (-1, self.width)), dim=-1)
        if not self.config.scales_folded or self.config.site_scales is None:
            return norms
        return norms / norms.new_tensor(self.config.relative_scales[-norms.shape[-1] :])

    def normals(self, rows: Float[Tensor, "n _"]) -> Float[Tensor, "n _"]:
        if not self.config.sums_norms:
            return rows
        parts = rows.unflatten(-1, (-1, self.width))
        return (nn.functional.normalize(parts, dim=-1) / parts.shape[1] ** 0.5).flatten(1)

    @property
    def read_unit(self) -> float:
        """sqrt(S), where what is written is in units of c sqrt(S), and what is read in units of
        c."""
        return self.n_sources**0.5 if self.config.has_column_scales else 1.0

    def pre_activations_of(
        self, x: Float[Tensor, "*batch d_in"], chosen: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, "*batch n"]:
        n = self.n_sources
        columns = self.encoder_input(x).chunk(n, dim=-1)
        of_each = [indices_of(of, x.device) for of in chosen.chunk(n)]
        by_source = (self.encoder_rows(), self.latent_scale * self.b_enc)
        parts = zip(columns, *(each.chunk(n) for each in by_source), of_each, strict=True)
        return torch.cat([EVERYWHERE.project(x, W[of].T, b[of]) for x, W, b, of in parts], dim=-1)

    def pre_activations(
        self, x: Float[Tensor, "*batch d_in"], at: Place = EVERYWHERE
    ) -> Float[Tensor, "..."]:
        if (n := self.n_sources) == 1:
            return super().pre_activations(x, at)
        columns = [part.contiguous() for part in self.encoder_input(x).chunk(n, dim=-1)]
        rows = at.split_rows(self.encoder_rows(), n)
        biases = (self.latent_scale * self.b_enc).chunk(n)
        parts = zip(at.parts(n), columns, rows, biases, strict=True)
        return torch.cat([place.project(x, W.T, b) for place, x, W, b in parts], dim=-1)

    def _combine(self, latents: Tensor, x: Tensor | None, at: Place) -> Tensor:
        n = self.n_sources
        parts = zip(at.parts(n), at.split(latents, n), self.decoder_parts(), strict=True)
        recon, *others = [place.combine(f, rows) for place, f, rows in parts]
        for s, written in enumerate(others, start=1):
            recon = recon + nn.functional.pad(written, (s * self.width, 0))
        return self._completed(recon, x)

    def _skipped(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        n = self.n_sources
        parts = zip(self._normalised(x).chunk(n, -1), self.W_skip.chunk(n, -1), strict=True)
        skipped = torch.cat([part @ W for part, W in parts], dim=-1)
        if self.config.has_column_scales:
            skipped = skipped * (self.write_scale / self.latent_scale)
        return skipped.to(self.b_dec.dtype)

    def _fold_(self, state: dict[str, Tensor], config: SAEConfig) -> None:
        n, unit = self.n_sources, self.latent_scale
        d, one = self.config.d_out, torch.ones((), device=self.b_dec.device)
        read = (unit / (one * self.read_scale)).expand(d).chunk(n)
        written = (one * self.write_scale / unit).expand(d).chunk(n)
        if self.config.subtract_b_dec:
            biases = (self.read_unit * state["b_dec"]).chunk(n)
            columns = state["W_enc"].chunk(n, dim=1)
            state["b_enc"] -= torch.cat([b @ W for b, W in zip(biases, columns, strict=True)])
        for s, name in enumerate(self.decoder_names):
            state[name] *= torch.cat(written[s:])
            state["W_enc"].chunk(n, dim=1)[s].mul_(read[s][:, None])
            if self.config.skip_connection:
                skip = state["W_skip"].chunk(n, dim=1)[s]
                skip.mul_(read[s][:, None]).mul_(written[s])
        state["b_enc"] *= unit
        state["b_dec"] *= self.write_scale


class JumpReLUCLT(JumpReLUSAE, Causal):
    """recon_t = sum_{s <= t} f_s W_dec_{s->t} + b_dec_t, f as JumpReLU.

    loss = mean over targets of |target^t - y^t|^2 / c_t^2 + lambda * L0, over all sources; with
    `l0_loss="quadratic"` it is lambda (L0 / target_l0 - 1)^2, and one `target_l0` is for all.
    A cross-layer transcoder, as in Circuit Tracing (Anthropic 2025) and Gemma Scope 2, with the
    losses of JumpReLU SAEs (arXiv:2407.14435). Anthropic's own is penalty="tanh", ste_to_inputs and
    pre_act_coefficient.
    """

    config_class = JumpReLUCLTConfig
    config: JumpReLUCLTConfig


class BatchTopKCLT(BatchTopKSAE, Causal):
    """recon_t = sum_{s <= t} f_s W_dec_{s->t} + b_dec_t, f as BatchTopK.

    Trained on the k B largest z of a batch, of all sources together (arXiv:2412.06410), with the
    auxiliary loss on the error at all targets side by side. Prefer it to JumpReLU where there is no
    time to train thresholds.
    """

    config_class = BatchTopKCLTConfig
    config: BatchTopKCLTConfig
