"""The base of every sparse autoencoder: a config, four parameters, one forward pass.

    pre_acts = x W_enc + b_enc          [*batch, d_sae]
    latents  = activate(pre_acts)       [*batch, d_sae], sparse; the variant's non-linearity
    recon    = latents W_dec + b_dec    [*batch, d_out]
    loss     = |x - recon|^2 / c^2 + the variant's sparsity terms, averaged over the batch

**Sparse steps.** Each of these is written once and computed in one of two places
(`hfsae.ops.sparse`): everywhere, or, given a `workspace`, only at the entries where a latent can
have a value or a gradient. Loss and gradients are the same to float32 rounding; the cost is mostly
the encoder's product in bfloat16, by which `entries` finds them.

**Units.** An SAE takes and returns raw activations, always. Training wants activations of unit
mean square (so that one learning rate, bandwidth and coefficient serve every layer), hence
`config.activation_scale`, c: the root of the mean squared norm, or of the mean squared distance
from the mean (`training.unit`). Biases and thresholds are *stored*
in units of x/c and multiplied by c where they are used; weights have no unit. So scale is a number
in the config, not a mode, and callers need not know it after loading. `folded()` multiplies it
into the stored biases and thresholds for good: same pre-activations, latents and reconstruction.

**Transcoders** are SAEs whose `target_site` differs from `site`: they read x at one site and
predict `target` at another, whose scale is `config.target_scale`. Latents have the unit of what
they write: latent i adds `latents[i] * W_dec[i]`, and rows of W_dec have unit norm. `read_scale` is
c at `site`, the other scales are c at `target_site`. With `skip_connection` there is a linear part
too, x W_skip.

**Per-token normalisation** (`token_norm`) is there for SAEs from elsewhere that were trained so. It
is undone after decoding, which therefore needs x: `decode(latents, x)`, as with a skip connection.

**Variants in users' own modules** are imported by name or as a file, at the end of this one.

**Penalties** that variants add to the squared error: means over tokens of latents in units of x/c.

    l1          sum_i f_i                                Bricken et al. 2023
    ri_l1       sum_i f_i |W_dec_i|                      Conerly et al. 2024: norms are free
    tanh        sum_i tanh(slope f_i |W_dec_i|)          Anthropic 2025: a count, smooth near zero
    pre_act     sum_i relu(threshold_i - z_i) |W_dec_i|  Anthropic 2025: brings dead latents back
    aux_k       |e - recon from dead|^2 / |e - mean e|^2 Gao et al. 2024: likewise; e: the error
    quadratic   (L0 / target - 1)^2                      arXiv:2407.14435, appendix F
    frequency   sum_i p_i (1 + p_i / limit)              Smith et al. 2025; L0 is sum_i p_i

Those of several variants stand here, the others in jumprelu.py. p_i is the share of tokens that
latent i fires on. The last two are not sums over tokens: with several processes, or a batch in
parts, each process or part computes them on its own share, and a step uses the mean of these
gradients. It differs from the whole batch's by the noise in L0 and p_i of a share, which is small
beside a target or limit as long as shares have some hundred tokens.
"""

import copy
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from ..io.errors import Refused
from ..ops import (
    EVERYWHERE,
    Entries,
    Place,
    Summed,
    Workspace,
    blocks,
    indices_of,
    largest,
    one_process,
    screen,
    sparse,
    upload,
)
from . import dedicated
from .config import EPSILON, INITIAL_FREE_NORM, Number, SAEConfig, variants
from .site_layout import SiteLayout
from .strict_loading import StrictLoading


class Schedule(NamedTuple):
    """One training step's settings: multipliers (1 leaves the config's value), and dead latents."""

    sparsity: float = 1.0
    """factor on every sparsity coefficient: warm-up times the L0 controller"""
    bandwidth: float = 1.0
    """factor on the bandwidth of straight-through estimators; 0: none of their gradients"""
    dead: Bool[Tensor, " d_sae"] | None = None
    """latents that have not fired for long; in main memory, where the host can count them"""
    summed: Summed = one_process
    """sums a tensor over the processes that share the batch"""
    training: bool = False
    """whether latents are chosen as in training, which may use the whole batch; set by `forward`"""


@dataclass
class SAEOutput(ModelOutput):
    """Result of a forward pass, raw units. `loss` and `losses` only with `return_loss=True`."""

    loss: Tensor | None = None
    """sum of `losses`"""
    losses: dict[str, Tensor] | None = None
    """the mse in units of (x/c)^2, and the sparsity terms, already times their coefficients"""
    recon: Tensor | None = None
    """[*batch, d_out]"""
    latents: Tensor | None = None
    """[*batch, d_sae], zero where a latent does not fire"""
    pre_acts: Tensor | None = None
    """[*batch, d_sae], before the non-linearity"""
    at: Place | None = None
    """positions of latents and pre_acts; for `Entries` both are [n], one number per entry"""


class ForwardParts(NamedTuple):
    """Results of a forward pass, from which a variant computes its penalties."""

    x: Float[Tensor, "*batch d_in"]
    pre_acts: Float[Tensor, "*batch d_sae"]
    latents: Float[Tensor, "*batch d_sae"]
    recon: Float[Tensor, "*batch d_out"]
    error: Float[Tensor, "*batch d_out"]
    """target - recon in units of x/c, float32; the other tensors are in raw units"""
    at: Place
    """positions of pre_acts and latents"""
    nested: Sequence[Float[Tensor, "*batch d_out"]] = ()
    """reconstructions from the first few latents, then from more; empty for most variants"""

    @property
    def n_tokens(self) -> float:
        """Number of tokens in the batch, over which means are taken."""
        return self.error.numel() / self.error.shape[-1]

    def per_token(self, values: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
        """Sum over latents, mean over tokens."""
        return values.sum() / self.n_tokens


class SAE(SiteLayout, StrictLoading):
    """Base of all variants. A variant defines `activate` and, if it has any, `sparsity_losses`.

    Parameters: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out] with unit-norm rows, b_dec
    [d_out]. Initialised as Gemma Scope (arXiv:2408.05147, 3.2): W_dec He-uniform, rows scaled to
    unit norm (free norms start at 0.1, Conerly et al. 2024); W_enc its transpose (drawn by itself
    for a transcoder, appendix C); biases zero.
    """

    config_class: type[SAEConfig] = SAEConfig
    config: SAEConfig
    base_model_prefix = ""
    main_input_name = "x"
    has_one_reconstruction: ClassVar[bool] = True
    """whether the loss has a single reconstruction, that from all latents"""
    float32_parameters: tuple[str, ...] = ()
    """names of parameters that stay float32 whatever dtype the model is moved to"""
    latent_dims: ClassVar[Mapping[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    """by name of a parameter, the dimension that counts latents; others have none"""

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Register a class that has a config of its own with `AutoModel`; a class that a notebook's
        cell defines again replaces the former one."""
        is_own = "config_class" in vars(cls)  # transformers sets it on every class
        super().__init_subclass__(**kwargs)
        if is_own:
            config = cls.config_class
            is_held = config.model_type in CONFIG_MAPPING
            if not is_held or str(CONFIG_MAPPING[config.model_type]) == str(config):
                AutoConfig.register(config.model_type, config, exist_ok=True)
                AutoModel.register(config, cls, exist_ok=True)

    @classmethod
    def formula(cls) -> str:
        """The first line of the class's docstring; a card shows it."""
        return (cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def papers(cls) -> list[str]:
        """arXiv ids in the class's docstring, in their order; a card cites them."""
        return re.findall(r"arXiv:(\d{4}\.\d{4,5})", cls.__doc__ or "")

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.make_parameters()
        self.post_init()

    def make_parameters(self) -> None:
        """Create the parameters, not yet initialised; variants extend this with their own."""
        d_in, d_sae, d_out = self.config.d_in, self.config.d_sae, self.config.d_out
        self.W_enc = nn.Parameter(torch.empty(d_sae, d_in).T)  # by latent in memory, as W_dec
        self.b_enc = nn.Parameter(torch.empty(d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_out))
        self.b_dec = nn.Parameter(torch.empty(d_out))
        if self.config.skip_connection:
            self.W_skip = nn.Parameter(torch.empty(d_in, d_out))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is not self:
            return
        init.kaiming_uniform_(self.W_dec)  # transformers.initialization skips loaded tensors
        norm = 1.0 if self.config.unit_norm_decoder else INITIAL_FREE_NORM
        init.copy_(self.W_dec, norm * self.first_rows(self.W_dec))
        if self.config.is_transcoder or self.config.d_in != self.config.d_out:
            init.kaiming_uniform_(self.W_enc, mode="fan_out")  # of x @ W_enc, whose fan-in is d_in
        else:
            init.copy_(self.W_enc, self.W_dec.T)
        init.zeros_(self.b_enc)
        init.zeros_(self.b_dec)
        if self.config.skip_connection:
            init.zeros_(self.W_skip)

    def extra_repr(self) -> str:
        """Widths and site, for `print(sae)`."""
        c = self.config
        where = f"{c.where}{f' -> {c.where_to}' if c.is_transcoder else ''}"
        of = ", ".join(c.model_names or ()) or c.model_name
        return f"d_in={c.d_in}, d_sae={c.d_sae}, d_out={c.d_out}, site={where} of {of}"

    @torch.no_grad()
    def lay_out_by_latent(self) -> None:
        """Store W_enc in memory latent by latent, as W_dec is; loading may leave another order.

        Sparse steps read the weights of single latents. W_enc becomes a new Parameter: call this
        before creating an optimiser.
        """
        if not self.encoder_rows().is_contiguous():
            by_latent = self.encoder_rows().contiguous().T
            self.W_enc = nn.Parameter(by_latent, requires_grad=self.W_enc.requires_grad)

    def pre_activations(
        self, x: Float[Tensor, "*batch d_in"], at: Place = EVERYWHERE
    ) -> Float[Tensor, "..."]:
        """x W_enc + b_enc, or (x - b_dec) W_enc + b_enc, in raw units (of the target): [*batch,
        d_sae], or a number for each entry of `at`.

        Raises:
            ValueError: the last dimension of x is not d_in.
        """
        return at.project(self.encoder_input(x), self.W_enc, self.latent_scale * self.b_enc)

    def pre_activations_of(
        self, x: Float[Tensor, "*batch d_in"], chosen: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, "*batch n"]:
        """`pre_activations` of some latents alone, marked in main memory."""
        of, b = indices_of(chosen, x.device), self.latent_scale * self.b_enc
        return EVERYWHERE.project(self.encoder_input(x), self.encoder_rows()[of].T, b[of])

    def encoder_input(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The encoder's input: x, or x - b_dec, in raw units (of the target).

        Raises:
            ValueError: the last dimension of x is not d_in.
        """
        if x.shape[-1] != self.config.d_in:
            raise Refused(
                f"this SAE reads activations of width {self.config.d_in}, got {tuple(x.shape)}: "
                f"check that they come from {self.config.where} of the model it was trained on"
            )
        x = self._normalised(x.to(self.W_enc.dtype))
        if not self.config.subtract_b_dec:
            return x
        return x - self.read_unit * (self.latent_scale * self.b_dec)

    def _normalised(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """x in the unit of latents, after the per-token normalisation."""
        factor = self.latent_scale / self.read_scale
        if self.config.token_norm == "none":
            is_one = isinstance(factor, float) and factor == 1
            return x if is_one else (x * factor).to(x.dtype)
        mean, spread = self._token_statistics(x)
        return (x - mean) / (spread + EPSILON[self.config.token_norm])

    def _token_statistics(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch _"], Float[Tensor, "*batch _"]]:
        """Each token's mean and spread, which `token_norm` removes and later restores."""
        if self.config.token_norm == "layer_norm":
            return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        rms = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return torch.zeros_like(rms), rms

    def floor(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"] | None:
        """The level, raw units: pre-activations up to it have no value and no gradient.

        None (the base): any pre-activation may have one, so sparse steps are not possible.
        """
        return None

    @property
    def can_be_sparse(self) -> bool:
        """Whether `entries` can be found: the variant has a floor, and weights are float32."""
        return self.floor() is not None and self.dtype == torch.float32

    def entries(
        self, x: Float[Tensor, "n d_in"], schedule: Schedule, workspace: Workspace
    ) -> Entries:
        """The (token, latent) pairs at which a latent can have a value or a gradient."""
        floor = self.floor(schedule)
        assert floor is not None
        return screen(*self._screened(x), floor, workspace)

    def _screened(self, x: Float[Tensor, "n d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """From what entries are found: inputs [n, d_in], rows [d_sae, d_in] and biases [d_sae]."""
        rows = self.encoder_rows().contiguous()
        return self.encoder_input(x), rows, self.latent_scale * self.b_enc

    @torch.no_grad()
    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        """Fraction of all (token, latent) pairs that would be entries."""
        floor = self.floor(schedule)
        if floor is None:
            return torch.ones((), device=pre_acts.device)
        return EVERYWHERE.share(pre_acts > floor)

    def window_share(
        self, pre_acts: Tensor, schedule: Schedule = Schedule(), at: Place = EVERYWHERE
    ) -> Tensor:
        """Fraction of pre-activations inside the STE window: only these move thresholds.

        0 (the base): the variant has no trained thresholds.
        """
        return torch.zeros(())

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents from pre-activations; read per-latent parameters with `at.of(...)`."""
        raise NotImplementedError(f"{type(self).__name__} does not define activate()")

    def latents_of(
        self,
        x: Float[Tensor, "*batch d_in"],
        pre_acts: Float[Tensor, "..."],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "..."]:
        """Latents from pre-activations, for a variant whose choice depends on the token itself."""
        return self.activate(pre_acts, schedule, at)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of raw activations x, which are cast to the SAE's dtype."""
        return self.latents_of(x, self.pre_activations(x))

    def decode(
        self,
        latents: Float[Tensor, "*batch d_sae"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Raw activations from latents, in the SAE's dtype.

        Args:
            x: the encoder's input; needed, and used, only if `config.decodes_with_input`.

        Raises:
            ValueError: x is needed and not given.
        """
        return self._combine(latents.to(self.W_enc.dtype), x, EVERYWHERE)

    def _combine(self, latents: Tensor, x: Tensor | None, at: Place) -> Tensor:
        return self._completed(at.combine(latents, self.decoder_rows()), x)

    def _completed(self, recon: Tensor, x: Tensor | None) -> Tensor:
        """Add what does not come from latents: the bias, a skip connection, the token's norm."""
        if self.config.has_column_scales:
            recon = recon * (self.write_scale / self.latent_scale)
        recon = (recon + self.write_scale * self.b_dec).to(self.b_dec.dtype)
        if not self.config.decodes_with_input:
            return recon
        if x is None:
            why = "a skip connection" if self.config.skip_connection else self.config.token_norm
            raise Refused(f"this SAE has {why}: pass the input too, decode(latents, x)")
        x = x.to(self.W_enc.dtype)
        if self.config.skip_connection:
            return recon + self._skipped(x)
        mean, spread = self._token_statistics(x)
        return recon * spread + mean

    def _skipped(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The linear part of the reconstruction."""
        return self._normalised(x) @ self.W_skip

    def _reconstructions(self, latents: Tensor, x: Tensor, at: Place) -> Sequence[Tensor]:
        """Reconstructions that enter the loss: `ForwardParts.nested`, if any, then the full one."""
        return [self._combine(latents, x, at)]

    def row_factor(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        """Factor on decoder rows: latent i adds latents[..., i] * row_factor(x) * W_dec[i].

        It is 1 unless the SAE has a `token_norm`.
        """
        if self.config.token_norm == "none":
            return torch.ones_like(x[..., :1])
        return self._token_statistics(x.to(self.W_enc.dtype))[1]

    def forward(
        self,
        x: Float[Tensor, "*batch d_in"],
        target: Float[Tensor, "*batch d_out"] | None = None,
        *,
        schedule: Schedule = Schedule(),
        return_loss: bool = False,
        workspace: Workspace | None = None,
    ) -> SAEOutput:
        """Reconstruct x, or predict `target` from it (transcoders); one pass for training and use.

        Args:
            workspace: buffers of a sparse step; x must then be [n, d_in]. None: a dense step.

        Raises:
            ValueError: the last dimension of x is not d_in, a transcoder's loss lacks a target, x
                holds no tokens to average the loss over, or its device has no sparse steps.
        """
        if return_loss and target is None and self.config.is_transcoder:
            raise Refused(f"a transcoder's loss needs target: x at {self.config.where_to}")
        if return_loss:
            if self.config.token_norm != "none":
                raise Refused(
                    f"an SAE with token_norm={self.config.token_norm!r} can be used but not "
                    "trained; train one with token_norm='none'"
                )
            if self.config.skip_connection and not self.config.is_transcoder:
                raise Refused(
                    "an SAE with skip_connection could copy its input; train a transcoder"
                )
            if x.numel() == 0:
                raise Refused(f"x {[*x.shape]} holds no tokens, but the loss is their mean")
        if workspace is not None and x.device.type not in sparse.DEVICES:
            raise Refused(
                f"a sparse pass runs on {' and '.join(sorted(sparse.DEVICES))}, and x is on "
                f"{x.device}; leave workspace out there"
            )
        schedule = schedule._replace(training=return_loss and self.training)
        target = x if target is None else target
        if schedule.training and self.config.site_dropout:
            x = self.with_sites_hidden(x)
        at = EVERYWHERE if workspace is None else self.entries(x, schedule, workspace)
        pre_acts = self.pre_activations(x, at)
        latents = self.latents_of(x, pre_acts, schedule, at)
        if not return_loss:
            recon = self._combine(latents, x, at)
            return SAEOutput(recon=recon, latents=latents, pre_acts=pre_acts, at=at)
        *nested, recon = self._reconstructions(latents, x, at)
        error = (target.float() - recon.float()) / self.write_scale
        mse = error.square().sum(dim=-1).mean()
        parts = ForwardParts(x, pre_acts, latents, recon, error, at, nested)
        losses = {"mse": mse, **self.sparsity_losses(parts, schedule)}
        loss = torch.stack(list(losses.values())).sum()
        return SAEOutput(loss, losses, recon, latents, pre_acts, at)

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        """Penalties by name: means over the batch, times their coefficients. Empty in the base."""
        return {}

    @torch.no_grad()
    def before_step_(self) -> None:
        """Call between backward and the optimiser's step: remove the decoder gradient's component
        along each row, which the renormalisation would undo but Adam's moments would remember,
        unless norms are free; and tie rows (`config.dedicated`)."""
        is_changed = self.config.unit_norm_decoder or self.config.dedicated
        for p in self.decoder_parts() if is_changed else ():
            for grad, rows in blocks(p.grad, p) if p.grad is not None else ():
                if self.config.dedicated:
                    dedicated.tie_(grad, rows, len(self.config.writes))
                if self.config.unit_norm_decoder:
                    normals = self.normals(rows)
                    grad.addcmul_((grad * normals).sum(dim=-1, keepdim=True), normals, value=-1)

    @torch.no_grad()
    def after_step_(self) -> None:
        """Call after the optimiser's step, always: decoder rows get norm 1, unless free."""
        for p in self.decoder_parts() if self.config.unit_norm_decoder else ():
            for (rows,) in blocks(p):
                rows /= self.row_norms(rows)[:, None]

    @torch.no_grad()
    def settle_(self, x: Float[Tensor, "n d_in"]) -> None:
        """Set, from these activations, what training sets from batches, such as BatchTopK's
        threshold; call it after changing weights by other means. The base has nothing to set."""

    @torch.no_grad()
    def folded(self) -> "SAE":
        """The same function with activation_scale 1 and no b_dec subtraction (GS appendix B).

        Latents, pre-activations and reconstructions are unchanged, except for SAEs with free norms:
        their rows get unit norm, and latents and pre-activations are multiplied by the old norms.
        Do not train a folded SAE further: coefficients and learning rates are meant for x/c.
        """
        config = copy.deepcopy(self.config)
        config.activation_scale = 1.0
        config.target_scale = 1.0 if self.config.is_transcoder else None
        config.scales_folded = self.config.has_several_sites and bool(config.site_scales)
        config.subtract_b_dec = False
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self._fold_(state, config)
        with torch.device("meta"):  # no weights are drawn, to be overwritten
            folded = type(self)(config)
        if not config.unit_norm_decoder:
            state = fold_decoder_norms(state, folded.row_norms, folded.decoder_names)
        folded.load_state_dict(state, assign=True)
        folded.lay_out_by_latent()
        return folded.train(self.training)

    def _fold_(self, state: dict[str, Tensor], config: SAEConfig) -> None:
        """Rewrite `state` and `config` in place; variants extend it for what they add."""
        if self.config.subtract_b_dec:
            state["b_enc"] -= state["b_dec"] @ state["W_enc"]
        if self.config.is_transcoder or self.config.has_column_scales:
            for name in {"W_enc", "W_skip"} & {*state}:
                state[name].T.mul_(self.latent_scale / self.read_scale)
        if self.config.has_column_scales:
            state["W_dec"] *= self.write_scale / self.latent_scale
        state["b_enc"] *= self.latent_scale
        state["b_dec"] *= self.write_scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SAE":
        """Move or cast as nn.Module does, but leave `float32_parameters` in float32.

        A bfloat16 threshold rounds away the optimiser's steps and never trains; transformers'
        _keep_in_fp32_modules guards loading only, not `.to(torch.bfloat16)`.
        """
        kept = [getattr(self, name) for name in self.float32_parameters]
        kept_ids = {id(t) for p in kept for t in (p, p.grad) if t is not None}

        def cast(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in kept_ids and moved.dtype != torch.float32:
                return tensor.to(moved.device)
            return moved

        return super()._apply(cast, recurse)


def fold_decoder_norms(
    state: dict[str, Tensor],
    norms_of: Callable[[Tensor], Tensor] = lambda rows: rows.norm(dim=-1),
    decoder: Sequence[str] = ("W_dec",),
) -> dict[str, Tensor]:
    """Weights with decoder rows of norm 1, latents scaled up: the same reconstructions.

    Args:
        decoder: names of the weights that hold the rows of equal parts of the latents.
    """
    norms = torch.cat([norms_of(state[name]) for name in decoder])
    # Folded rows differ from norm 1 by rounding: left alone, so folding twice changes nothing.
    norms = torch.where((norms - 1).abs() < 1e-6, 1.0, norms).clamp(min=1e-12)
    names = ("W_enc", "b_enc", "b_mag", "threshold")
    scaled = {name: state[name] * norms for name in names if name in state and state[name].ndim}
    parts = zip(decoder, norms.chunk(len(decoder)), strict=True)
    rows = {name: state[name] / of_rows[:, None] for name, of_rows in parts}
    return {**state, **scaled, **rows}


IMPORT_HINT = "import the module of a variant of your own first (a command: --import MODULE)"


def register_variants(module: str) -> None:
    """Import a module, whose variants `AutoModel` then knows.

    Args:
        module: its dotted name, for a module that lies in this folder or is installed; or its file,
            with .py.

    Raises:
        ValueError: there is no such module, importing it fails, or a config has no SAE class.
    """
    folder, name = os.getcwd(), module
    if module.endswith(".py"):
        folder, name = str(Path(module).resolve().parent), Path(module).stem
    if folder not in sys.path:
        sys.path.insert(0, folder)  # which the installed command does not search
    try:
        importlib.import_module(name)
    except Exception as error:  # a user's code may raise anything
        why = f"{type(error).__name__}: {error}"
        raise Refused(
            f"--import {module}: {why}; give a file with .py, or the dotted name of a module that "
            "lies in this folder or is installed"
        ) from error
    refuse_configs_alone()


def refuse_configs_alone() -> None:
    """Refuse a variant's config that has no SAE class.

    Raises:
        ValueError: a config has no SAE class.
    """
    types = {config.model_type for config in _classes()}
    for config_class in variants():
        if config_class.model_type not in types:
            raise Refused(f"no SAE has config_class = {config_class.__name__}; define one")


def refuse_unknown_variant(model_type: str | None, where: str | Path) -> None:
    """Refuse a model_type that no variant has.

    Raises:
        ValueError: no imported module defines this model_type.
    """
    types = sorted(config.model_type for config in variants())
    if model_type not in types:
        raise Refused(
            f"{where} is not an SAE: its config.json describes a {model_type!r} "
            f"model, and SAEs are {', '.join(types)}; {IMPORT_HINT}"
        )


def class_of(model_type: str | None) -> type[SAE] | None:
    """The variant of this model_type; None where no imported module defines it."""
    configs = {config.model_type: config for config in variants()}
    return _classes().get(configs[model_type]) if model_type in configs else None


def _classes() -> dict[type[SAEConfig], type[SAE]]:
    classes: dict[type[SAEConfig], type[SAE]] = {}
    waiting: list[type[SAE]] = [SAE]
    while waiting:
        base = waiting.pop(0)
        if base is not SAE:
            classes.setdefault(base.config_class, base)  # a class before those derived from it
        waiting[:0] = base.__subclasses__()
    return classes


def l1_penalty(
    sae: SAE, parts: ForwardParts, f: Float[Tensor, "*batch d_sae"]
) -> Float[Tensor, ""]:
    """l1, or ri_l1 where norms are free, of latents or gates in their unit."""
    if not sae.config.unit_norm_decoder:
        f = f * parts.at.of(sae.decoder_norms())
    return parts.per_token(f)


def aux_k_losses(
    sae: SAE, parts: ForwardParts, schedule: Schedule, coefficient: Number, k: int
) -> dict[str, Tensor]:
    """coefficient |error - recon from the k largest dead latents|^2 / |error - mean error|^2.

    Gao et al. 2024 (arXiv:2406.04093), appendix A.2: the fraction of the error's variance that dead
    latents do not explain. Its gradients reach dead latents only. Empty where none is dead.
    """
    dead = schedule.dead
    n_dead = 0 if dead is None else int(dead.sum())  # in main memory: nothing waits for it
    if dead is None or n_dead == 0 or coefficient == 0:
        return {}
    if isinstance(parts.pre_acts, DTensor):  # spread: to pick would move them about
        mesh = parts.pre_acts.device_mesh
        is_dead = DTensor.from_local(upload(dead, parts.x.device), mesh, [Replicate()])
        pre_acts, rows = torch.where(is_dead, parts.pre_acts, -torch.inf), sae.decoder_rows()
    elif parts.at is EVERYWHERE:
        pre_acts, rows = parts.pre_acts[..., indices_of(dead, parts.x.device)], sae.rows_of(dead)
    else:  # dead latents need not be among the entries
        pre_acts, rows = sae.pre_activations_of(parts.x, dead), sae.rows_of(dead)
    latents = largest(pre_acts.float() / sae.latent_scale, min(k, n_dead)).relu()
    goal = parts.error.detach()  # the bias would cancel: it stands on both sides
    left = (goal - latents @ rows.float()).square().sum()
    # With several processes the spread is the mean of their sums: ratios to it then average over
    # processes to the ratio that one process would compute.
    tokens, summed = goal.reshape(-1, goal.shape[-1]), schedule.summed
    n = summed(tokens.new_full((), len(tokens)))
    mean = summed(tokens.sum(dim=0)) / n
    spread = summed((tokens - mean).square().sum()) * (len(tokens) / n)
    return {"aux": coefficient * (left / spread.clamp(min=1e-12))}
