"""What every sparse autoencoder has in common: a config, four parameters, one forward pass.

    pre_acts = x W_enc + b_enc          [*batch, d_sae]
    latents  = activate(pre_acts)       [*batch, d_sae], sparse; the variant's non-linearity
    recon    = latents W_dec + b_dec    [*batch, d_out]
    loss     = |x - recon|^2 / c^2 + the variant's sparsity terms, averaged over the batch

**Sparse steps.** Each of these is written once and computed in one of two places
(`hfsae.ops.sparse`): everywhere, or, given a `workspace`, only at the entries where a latent can
have a value or a gradient. Loss and gradients are the same to float32 rounding; what it costs is
mostly the encoder's product in bfloat16, by which `entries` finds them.

**Units.** An SAE takes and returns raw activations, always. Training wants activations of unit
mean squared norm (so that one learning rate, bandwidth and coefficient serve every layer), hence
`config.activation_scale`, c: the root of the mean squared norm. Biases and thresholds are *stored*
in units of x/c and multiplied by c where they are used; weights have no unit. So scale is a number
in the config, not a mode, and there is nothing to remember after loading. `folded()` multiplies it
into the stored biases and thresholds for good: same pre-activations, latents and reconstruction.

**Transcoders** are SAEs whose `target_site` differs from `site`: they read x at one place and
predict `target` at another, whose scale is `config.target_scale`. Latents have the unit of what
they write: latent i adds `latents[i] * W_dec[i]`, and rows of W_dec have unit norm. With
`skip_connection` the prediction also has a linear part, x W_skip.

**Per-token normalisation** (`token_norm`) is there for SAEs from elsewhere that were trained so. It
is undone after decoding, which therefore needs x: `decode(latents, x)`, as with a skip connection.
"""

import copy
import difflib
import filecmp
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from ..loading import one_at_a_time
from ..ops import EVERYWHERE, Entries, Place, Summed, Workspace, alone, blocks, screen
from ..records import opened_tensors, read_json, reading
from .probe import NAME as PROBE
from .probe import Verification, verify

Number = int | float


TokenNorm = Literal["none", "layer_norm", "unit_rms"]


class Schedule(NamedTuple):
    """What a trainer tells the loss: multipliers (1 is what the config says), and who is dead."""

    sparsity: float = 1.0
    """times every sparsity coefficient: warm-up, and the hand of the L0 controller"""
    bandwidth: float = 1.0
    """times the bandwidth of straight-through estimators"""
    dead: Bool[Tensor, " d_sae"] | None = None
    """latents that have not fired for long"""
    summed: Summed = alone
    """sums a tensor over the processes that have a part of the batch each"""
    training: bool = False
    """whether latents are chosen as in training, with the batch in view; set by `forward`"""


class SAEConfig(PreTrainedConfig):
    """Architecture, loss coefficients, and the place in a language model where the SAE belongs.

    Keyword arguments only; unknown ones are an error, with the nearest field named.
    """

    # jaxtyping's import hook would type-check the dataclass __init__, which transformers replaces.
    __no_type_check__ = True
    has_no_defaults_at_init = True
    model_type = "sae"

    d_in: int
    d_sae: int
    d_out: int = 0
    """width of the reconstruction; 0: that of the input"""
    activation_scale: Number | None = None
    """c, raw units: root of the mean squared norm at `site`. None: not estimated, taken as 1"""
    target_scale: Number | None = None
    """the same at `target_site`; activation_scale unless this is a transcoder"""
    subtract_b_dec: bool = False
    """encode x - b_dec instead of x (Gemma Scope trains so); `folded()` moves it into b_enc"""
    skip_connection: bool = False
    """also predict linearly from the input: + x W_skip. For transcoders: an SAE could copy x"""
    token_norm: str = "none"
    """what each token goes through first: "layer_norm" ((x - mean) / std), "unit_rms" (to norm
    sqrt(d_in)); undone after decoding. For SAEs from elsewhere; ours are trained without"""
    target_l0: Number | None = None
    """the trainer steers the sparsity coefficients so that L0 ends here, unless the loss does that
    itself (JumpReLU's l0_loss="quadratic"); None: they are fixed"""
    site: str | None = None
    """place in the language model, as in `hfsae.capture`: 'layers.12', 'layers.12.mlp:in', ..."""
    target_site: str | None = None
    """place that is reconstructed; the same as `site` unless this is a transcoder"""
    model_name: str | None = None
    """Hub id of the language model"""
    model_revision: str | None = None
    """commit on the Hub"""
    model_dtype: str | None = None
    """of the language model in training, as 'bfloat16'"""
    model_attention: str | None = None
    """its attention implementation: 'eager', 'sdpa', ..."""
    tokenizer_hash: str | None = None
    """see `hfsae.contract`"""
    bos: str | None = None
    """where BOS stood in training: at the start of each "row" or "document", or "none" """

    def __post_init__(self, **kwargs: Any) -> None:
        self.d_out = self.d_out or self.d_in
        self._reject_unknown_keys(kwargs)
        self._reject_wrong_types()
        for dtype in (self.dtype, kwargs.get("torch_dtype")):
            self._reject_dtype(dtype)
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers does, but refuse the config of another kind of model.

        Raises:
            ValueError: it is that, or a field is missing, of the wrong type or out of range.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type and cls is not SAEConfig:
            raise ValueError(
                f"its config.json is of a {kind!r} model, and a {cls.__name__} is of "
                f"{cls.model_type!r}; transformers.AutoModel takes the right class by itself"
            )
        required = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
        if lacks := [name for name in required if name not in {**config_dict, **kwargs}]:
            raise ValueError(f"its config.json lacks {' and '.join(lacks)}")
        return super().from_dict(config_dict, **kwargs)

    def _reject_unknown_keys(self, kwargs: dict[str, Any]) -> None:
        """transformers would store an unknown key in silence; a typo must not train a default."""
        known = {field.name for field in fields(self)}
        for key in sorted(set(kwargs) - _TRANSFORMERS_KEYS):
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see its fields:"
            rest = "" if close else f" {', '.join(sorted(own_fields(type(self))))}"
            raise ValueError(f"{type(self).__name__} has no field {key!r}; {hint}{rest}")

    def _reject_wrong_types(self) -> None:
        own = own_fields(type(self))
        for name, hint in sorted((f.name, f.type) for f in fields(self) if f.name in own):
            value = getattr(self, name)
            is_bool_for_number = isinstance(value, bool) and hint is not bool
            if is_bool_for_number or not isinstance(value, cast(Any, hint)):
                wanted = getattr(hint, "__name__", str(hint))
                raise ValueError(f"{name} must be {wanted}, got {value!r}")

    def _reject_dtype(self, dtype: Any) -> None:
        """Weights would be cast to it in silence."""
        name = str(dtype).removeprefix("torch.")
        if dtype is not None and name not in _FLOATS:
            raise ValueError(f"dtype must be one of {', '.join(_FLOATS)}, got {name!r}")

    def check(self) -> None:
        """Raise ValueError for values that cannot be; variants extend it."""
        for name in ("d_in", "d_sae", "d_out", "activation_scale", "target_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        if self.is_transcoder and self.subtract_b_dec:
            raise ValueError(
                "subtract_b_dec=True: a transcoder's b_dec lies in another space than x"
            )
        self._check_token_norm()
        if self.target_l0 is not None and not 0 < self.target_l0 < self.d_sae:
            raise ValueError(
                f"target_l0 must lie between 0 and d_sae ({self.d_sae}), got {self.target_l0}"
            )
        if self.d_out != self.d_in and not self.is_transcoder:
            raise ValueError(
                f"d_out ({self.d_out}) differs from d_in ({self.d_in}), so this is a transcoder: "
                "name the target_site that it reconstructs"
            )

    def _check_token_norm(self) -> None:
        self._check_choice("token_norm", TokenNorm)
        if self.token_norm == "none":
            return
        if self.is_transcoder or self.skip_connection or self.activation_scale not in (None, 1):
            raise ValueError(
                f"token_norm={self.token_norm!r} already sets each token's norm: it goes with no "
                "activation_scale but 1, and neither with transcoders nor with skip_connection"
            )

    def _check_choice(self, name: str, choices: Any) -> None:
        """Raise ValueError for a field whose value is none of a Literal's."""
        if getattr(self, name) not in get_args(choices):
            known = ", ".join(map(repr, get_args(choices)))
            raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    @property
    def unit_norm_decoder(self) -> bool:
        """Whether training keeps W_dec's rows at norm 1."""
        return True

    @property
    def steers_itself(self) -> bool:
        """Whether the loss itself leads to target_l0, so that the trainer leaves it alone."""
        return False

    @property
    def decodes_with_input(self) -> bool:
        """Whether a reconstruction takes the input besides the latents."""
        return self.skip_connection or self.token_norm != "none"

    @property
    def is_transcoder(self) -> bool:
        return self.target_site is not None and self.target_site != self.site

    @property
    def places(self) -> tuple[str, str]:
        """The site that is read, and the one that is reconstructed.

        Raises:
            ValueError: no site is named.
        """
        if self.site is None:
            raise ValueError("this SAE names no site; set config.site, for example to 'layers.12'")
        return self.site, self.target_site or self.site


_FLOATS = ("float32", "bfloat16", "float16", "float64")
_INITIAL_FREE_NORM = 0.1
_EPSILON = {"layer_norm": 1e-5, "unit_rms": 0.0}  # added to the spread that x is divided by

# Keys that transformers itself writes to a config.json or passes while loading one.
_TRANSFORMERS_KEYS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "output_attentions",
    "tags",
    "torch_dtype",
}


def variants(base: type[SAEConfig] = SAEConfig) -> list[type[SAEConfig]]:
    """The config classes with a model_type of their own that are `base`, or derive from it."""
    derived = {v: None for config in base.__subclasses__() for v in variants(config)}
    is_variant = base is not SAEConfig and "model_type" in vars(base)
    return [base] * is_variant + list(derived)


FIELDS_OF_TRANSFORMERS = {field.name for field in fields(PreTrainedConfig)} | {
    key for key in _TRANSFORMERS_KEYS if key != "model_type"
}


def own_fields(config_class: type[SAEConfig]) -> set[str]:
    """Fields of an SAE's config that are not any model's."""
    return {field.name for field in fields(config_class)} - FIELDS_OF_TRANSFORMERS


@dataclass
class SAEOutput(ModelOutput):
    """What a forward pass returns; raw units. `loss` and `losses` only with `return_loss=True`."""

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
    """where latents and pre_acts stand; at `Entries` both are [n], one number an entry"""


class Parts(NamedTuple):
    """What a forward pass made, for a variant's penalties to look at."""

    x: Float[Tensor, "*batch d_in"]
    pre_acts: Float[Tensor, "*batch d_sae"]
    latents: Float[Tensor, "*batch d_sae"]
    recon: Float[Tensor, "*batch d_out"]
    error: Float[Tensor, "*batch d_out"]
    """target - recon in units of x/c, float32; the others in raw units"""
    at: Place
    """where pre_acts and latents stand"""
    nested: Sequence[Float[Tensor, "*batch d_out"]] = ()
    """reconstructions from the first few latents, then from more; where a variant makes any"""

    @property
    def n_tokens(self) -> float:
        return self.error.numel() / self.error.shape[-1]

    def per_token(self, values: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
        """Sum over latents, mean over tokens."""
        return values.sum() / self.n_tokens


class SAE(PreTrainedModel):
    """Base of all variants. A variant defines `activate` and, if it has any, `sparsity_losses`.

    Parameters: W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out] with unit-norm rows, b_dec
    [d_out]. Initialised as Gemma Scope (arXiv:2408.05147, 3.2): W_dec He-uniform, rows scaled to
    unit norm (free norms start at 0.1, Conerly et al. 2024); W_enc its transpose (drawn by itself
    for a transcoder, appendix C); biases zero.
    """

    config_class = SAEConfig
    config: SAEConfig
    base_model_prefix = ""
    main_input_name = "x"
    float32_parameters: tuple[str, ...] = ()
    """names of parameters that stay float32 whatever dtype the model is moved to"""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.make_parameters()
        self.post_init()

    def make_parameters(self) -> None:
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
        norm = 1.0 if self.config.unit_norm_decoder else _INITIAL_FREE_NORM
        init.copy_(self.W_dec, norm * nn.functional.normalize(self.W_dec, dim=-1))
        if self.config.is_transcoder or self.config.d_in != self.config.d_out:
            init.kaiming_uniform_(self.W_enc, mode="fan_out")  # of x @ W_enc, whose fan-in is d_in
        else:
            init.copy_(self.W_enc, self.W_dec.T)
        init.zeros_(self.b_enc)
        init.zeros_(self.b_dec)
        if self.config.skip_connection:
            init.zeros_(self.W_skip)

    def extra_repr(self) -> str:
        """Widths and place, for `print(sae)`."""
        c = self.config
        where = f"{c.site}{f' -> {c.target_site}' if c.is_transcoder else ''}"
        return f"d_in={c.d_in}, d_sae={c.d_sae}, d_out={c.d_out}, site={where} of {c.model_name}"

    @torch.no_grad()
    def lay_out_by_latent(self) -> None:
        """Put W_enc in memory latent by latent, as W_dec is, where loading left it otherwise.

        Sparse steps read the weights of single latents. It is a new Parameter: call this before
        there is an optimiser.
        """
        if not self.W_enc.T.is_contiguous():
            by_latent = self.W_enc.T.contiguous().T
            self.W_enc = nn.Parameter(by_latent, requires_grad=self.W_enc.requires_grad)

    @property
    def scale(self) -> float:
        """c of what the SAE reconstructs, raw units: what stored biases are multiplied by."""
        target = self.config.target_scale if self.config.is_transcoder else None
        return float(target or self.config.activation_scale or 1.0)

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """x W_enc + b_enc, or (x - b_dec) W_enc + b_enc, in raw units (of the target).

        Raises:
            ValueError: the last dimension of x is not d_in.
        """
        return self._project(x, EVERYWHERE)

    def _project(self, x: Float[Tensor, "*batch d_in"], at: Place) -> Tensor:
        return at.project(self.encoder_input(x), self.W_enc, self.scale * self.b_enc)

    def encoder_input(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """What W_enc multiplies: x, or x - b_dec, in raw units (of the target).

        Raises:
            ValueError: the last dimension of x is not d_in.
        """
        if x.shape[-1] != self.config.d_in:
            raise ValueError(
                f"this SAE reads activations of width {self.config.d_in}, got {tuple(x.shape)}: "
                f"is the site ({self.config.site}) of the model it was trained on?"
            )
        x = self._normalised(self._cast(x))
        if self.config.subtract_b_dec:
            x = x - self.scale * self.b_dec
        return x

    def _cast(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """x in the weights' dtype: a model's bfloat16 activations go into a float32 SAE."""
        return x.to(self.W_enc.dtype)

    def _normalised(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """x in the unit of what is reconstructed, after the per-token normalisation."""
        if self.config.is_transcoder:
            return x * (self.scale / float(self.config.activation_scale or 1.0))
        if self.config.token_norm == "none":
            return x
        mean, spread = self._token_statistics(x)
        return (x - mean) / (spread + _EPSILON[self.config.token_norm])

    def _token_statistics(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch _"], Float[Tensor, "*batch _"]]:
        """Each token's mean and spread, which `token_norm` takes out and puts back."""
        if self.config.token_norm == "layer_norm":
            return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        rms = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return torch.zeros_like(rms), rms

    def line(self, schedule: Schedule = Schedule()) -> Float[Tensor, " d_sae"] | None:
        """Pre-activations up to it, raw units, have neither a value nor a gradient.

        None (the base): they all may, so that there are no sparse steps.
        """
        return None

    @property
    def can_be_sparse(self) -> bool:
        """Whether `entries` can be found: the variant has a line, and weights are float32."""
        return self.line() is not None and self.dtype == torch.float32

    def entries(
        self, x: Float[Tensor, "n d_in"], schedule: Schedule, workspace: Workspace
    ) -> Entries:
        """Where a latent can have a value or a gradient."""
        line, b = self.line(schedule), self.scale * self.b_enc
        assert line is not None
        return screen(self.encoder_input(x), self.W_enc.T.contiguous(), b, line, workspace)

    @torch.no_grad()
    def density(
        self, pre_acts: Float[Tensor, "*batch d_sae"], schedule: Schedule
    ) -> Float[Tensor, ""]:
        """Share of all pairs of a token and a latent that would be entries."""
        line = self.line(schedule)
        return torch.ones(()) if line is None else EVERYWHERE.share(pre_acts > line)

    def activate(
        self,
        pre_acts: Float[Tensor, "*batch d_sae"],
        schedule: Schedule = Schedule(),
        at: Place = EVERYWHERE,
    ) -> Float[Tensor, "*batch d_sae"]:
        """The variant's non-linearity; parameters of a latent are taken `at.of(...)`."""
        raise NotImplementedError(f"{type(self).__name__} does not define activate()")

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of raw activations x, which may have another dtype than the SAE: it is cast."""
        return self.activate(self.pre_activations(x))

    def decode(
        self,
        latents: Float[Tensor, "*batch d_sae"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Raw activations from latents, in the SAE's dtype.

        Args:
            x: what was encoded; needed, and used, only if `config.decodes_with_input`.

        Raises:
            ValueError: x is needed and not given.
        """
        return self._combine(self._cast(latents), x, EVERYWHERE)

    def _combine(self, latents: Tensor, x: Tensor | None, at: Place) -> Tensor:
        return self._completed(at.combine(latents, self.W_dec), x)

    def _completed(self, recon: Tensor, x: Tensor | None) -> Tensor:
        """With what does not come from latents: the bias, a skip connection, the token's norm."""
        recon = recon + self.scale * self.b_dec
        if not self.config.decodes_with_input:
            return recon
        if x is None:
            why = "a skip connection" if self.config.skip_connection else self.config.token_norm
            raise ValueError(f"this SAE has {why}: pass the input too, decode(latents, x)")
        x = self._cast(x)
        if self.config.skip_connection:
            return recon + self._normalised(x) @ self.W_skip
        mean, spread = self._token_statistics(x)
        return recon * spread + mean

    def _reconstructions(self, latents: Tensor, x: Tensor, at: Place) -> Sequence[Tensor]:
        """What a loss is taken of: the reconstruction, last, and before it any `Parts.nested`."""
        return [self._combine(latents, x, at)]

    def row_factor(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        """Latent i adds latents[..., i] * row_factor(x) * W_dec[i]: 1, but for `token_norm`."""
        if self.config.token_norm == "none":
            return torch.ones_like(x[..., :1])
        return self._token_statistics(self._cast(x))[1]

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
            workspace: makes the step sparse, in these buffers; x is [n, d_in] then.

        Raises:
            ValueError: the last dimension of x is not d_in, a transcoder's loss lacks a target, or
                there is nothing to take the mean loss of.
        """
        if return_loss and target is None and self.config.is_transcoder:
            raise ValueError(f"a transcoder's loss needs target: x at {self.config.target_site}")
        if return_loss:
            self._check_trainable()
            if x.numel() == 0:
                raise ValueError(f"x {[*x.shape]} holds no tokens, but the loss is their mean")
        schedule = schedule._replace(training=return_loss and self.training)
        at = EVERYWHERE if workspace is None else self.entries(x, schedule, workspace)
        pre_acts = self._project(x, at)
        latents = self.activate(pre_acts, schedule, at)
        if not return_loss:
            recon = self._combine(latents, x, at)
            return SAEOutput(recon=recon, latents=latents, pre_acts=pre_acts, at=at)
        *nested, recon = self._reconstructions(latents, x, at)
        error = ((x if target is None else target).float() - recon.float()) / self.scale
        mse = error.square().sum(dim=-1).mean()
        parts = Parts(x, pre_acts, latents, recon, error, at, nested)
        losses = {"mse": mse, **self.sparsity_losses(parts, schedule)}
        loss = torch.stack(list(losses.values())).sum()
        return SAEOutput(loss, losses, recon, latents, pre_acts, at)

    def _check_trainable(self) -> None:
        if self.config.token_norm != "none":
            raise ValueError(f"token_norm={self.config.token_norm!r} is for use, not for training")
        if self.config.skip_connection and not self.config.is_transcoder:
            raise ValueError("an SAE with skip_connection could copy its input; train a transcoder")

    def sparsity_losses(self, parts: Parts, schedule: Schedule) -> dict[str, Tensor]:
        """Penalties by name, means over the batch, times their coefficients. None in the base."""
        return {}

    @torch.no_grad()
    def before_step_(self) -> None:
        """Call between backward and the optimiser's step: remove the decoder gradient's component
        along each row, which the renormalisation would undo but Adam's moments would remember.
        Free norms are left free."""
        if self.W_dec.grad is not None and self.config.unit_norm_decoder:
            for grad, rows in blocks(self.W_dec.grad, self.W_dec):
                grad.addcmul_((grad * rows).sum(dim=-1, keepdim=True), rows, value=-1)

    @torch.no_grad()
    def after_step_(self) -> None:
        """Call after the optimiser's step, and only with `before_step_` before it: bring the
        decoder's rows back to unit norm, unless norms are free."""
        if self.config.unit_norm_decoder:
            for (rows,) in blocks(self.W_dec):
                rows /= rows.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def folded(self) -> "SAE":
        """The same function with activation_scale 1 and no b_dec subtraction (GS appendix B).

        Latents, pre-activations and reconstructions are unchanged, but for free norms: rows become
        unit, latents and pre-activations are multiplied by what they were. Training may not go on
        from it, since coefficients and learning rates are meant for x/c.
        """
        config = copy.deepcopy(self.config)
        config.activation_scale = 1.0
        config.target_scale = 1.0 if self.config.is_transcoder else None
        config.subtract_b_dec = False
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self._fold_(state, config)
        if not config.unit_norm_decoder:
            state = fold_decoder_norms(state)
        folded = type(self)(config)
        folded.load_state_dict({k: v.contiguous() for k, v in state.items()})
        folded.to(self.device, self.dtype)  # pyright: ignore - transformers' wrapper hides the types
        return folded.train(self.training)

    def to_saelens(self) -> Any:
        """The same function as a `sae_lens.SAE`, float32, for the tools that take one.

        Raises:
            ValueError: SAELens has no such SAE, as is said.
            ImportError: the package sae-lens is not installed.
        """
        # Of a higher floor, which imports this file: a method that users look for on the SAE.
        from ..convert.saelens import to_sae_lens_object

        return to_sae_lens_object(self)

    def _fold_(self, state: dict[str, Tensor], config: SAEConfig) -> None:
        """Rewrite `state` and `config` in place; variants extend it for what they add."""
        if self.config.subtract_b_dec:
            state["b_enc"] -= state["b_dec"] @ state["W_enc"]
        if self.config.is_transcoder:
            ratio = self.scale / float(self.config.activation_scale or 1.0)
            state["W_enc"] *= ratio
            if self.config.skip_connection:
                state["W_skip"] *= ratio
        state["b_enc"] *= self.scale
        state["b_dec"] *= self.scale

    def _apply(self, fn: Any, recurse: bool = True) -> "SAE":
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

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> "SAE":
        """Load from a folder or the Hub, as transformers does, but refuse what does not fit.

        Raises:
            ValueError: a weight is missing, left over, of another shape, or not finite, where
                transformers would log a line and go on with fresh values; or it would read other
                files than model.safetensors and its shards.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        where = f"{pretrained_model_name_or_path}"
        place = {k: v for k, v in kwargs.items() if k in _HUB_OPTIONS and v is not None}
        _refuse_other_files(kwargs)
        kwargs["use_safetensors"] = True  # no pickle, not even a restricted one
        if files := _weight_files(where, place):
            _refuse_other_weights(cls, files, where, place, kwargs.get("config"))
        kwargs["ignore_mismatched_sizes"] = True  # reported below, in one sentence
        kwargs["output_loading_info"] = True
        with one_at_a_time:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        _refuse_misfits(model, info, where)
        model.lay_out_by_latent()
        model._source = {"name": where, **place}
        return loaded if wants_info else model

    def verify(self, probe: str | Path | None = None) -> Verification:
        """Whether the weights are those that were saved, and give here what they gave there.

        Args:
            probe: a probe.safetensors, or the folder of one; by default that of where this SAE was
                loaded from, folder or repository.

        Raises:
            ValueError: there is no probe, or it is damaged.
        """
        if probe is None:
            probe = self._find_probe()
        path = Path(probe)
        path = path / PROBE if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"there is no {path}; `hfsae train` and `hfsae.write_probe` make it")
        return verify(self, path)

    def _find_probe(self) -> Path:
        source = dict(getattr(self, "_source", {}))
        name = source.pop("name", None)
        if name is None:
            raise ValueError("this SAE was not loaded from anywhere; name its probe's folder")
        if Path(name).is_dir():
            return Path(name, source.get("subfolder", ""))
        try:
            return Path(cast(str, cached_file(name, PROBE, **source)))
        except OSError as error:
            raise ValueError(f"{name} holds no {PROBE} to verify against") from error

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # pyright: ignore
        """Send this SAE to the Hub in one commit; its address. Options are those of `hfsae.push`.

        What lies in the folder that it was loaded from (metrics, figures, features, probe) goes
        with it, as long as weights and config are the ones in that folder.
        """
        from ..hub import push  # above this floor: a method that every PreTrainedModel has

        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(temporary)
            source = getattr(self, "_source", {})
            home = Path(source.get("name", ""), source.get("subfolder", ""))
            return push(home if _is_same(home, Path(temporary)) else temporary, repo_id, **kwargs)


def fold_decoder_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Latents times their decoder rows' norms, rows of norm 1: the same reconstructions."""
    norms = state["W_dec"].norm(dim=-1)
    # Rows that have been folded are off by rounding: left alone, so that folding twice is folding.
    norms = torch.where((norms - 1).abs() < 1e-6, 1.0, norms).clamp(min=1e-12)
    names = ("W_enc", "b_enc", "b_mag", "threshold")
    scaled = {name: state[name] * norms for name in names if name in state}
    return {**state, **scaled, "W_dec": state["W_dec"] / norms[:, None]}


_OF_SAVING = ("transformers_version", "auto_map", "_name_or_path", "dtype", "architectures")
_HUB_OPTIONS = {
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "_commit_hash",
}


def _refuse_other_files(options: dict[str, Any]) -> None:
    """Options of transformers that lead to weights which are not looked at before."""
    for name in ("variant", "gguf_file"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name}={options[name]!r}: an SAE is read from {SAFE_WEIGHTS_NAME} alone; leave "
                f"{name} out"
            )
    if options.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False: an SAE is read from safetensors files alone")
    if path := (options.get("adapter_kwargs") or {}).get("_adapter_model_path"):  # by AutoModel
        raise ValueError(_IS_ADAPTER.format(path))


_ADAPTER = "adapter_config.json"
_IS_ADAPTER = f"{{}} holds {_ADAPTER}: a PEFT adapter is no SAE; remove that file if it is one"


def _weight_files(name: str, place: dict[str, Any]) -> list[str]:
    """The files that are about to be loaded, if they are known: of a repository, with its config.

    Raises:
        ValueError: an index of shards names files that are not beside it, or transformers would
            read others: those of an adapter or of a distributed checkpoint.
    """
    if Path(name).is_dir():
        folder = Path(name, place.get("subfolder", ""))

        def find(file: str) -> str | None:
            return str(folder / file) if (folder / file).is_file() else None

        if shards := sorted(path.name for path in folder.glob("shard-*-model-*.safetensors")):
            raise ValueError(
                f"{folder} holds {shards[0]}, of a distributed checkpoint, which would be read in "
                f"place of {SAFE_WEIGHTS_NAME}; move it elsewhere"
            )
    else:
        lenient = ("gated_repo", "missing_entries", "connection_errors")
        quiet: dict[str, Any] = {f"_raise_exceptions_for_{kind}": False for kind in lenient}

        def find(file: str) -> str | None:
            return cast("str | None", cached_file(name, file, **place, **quiet))

    if find(_ADAPTER):
        raise ValueError(_IS_ADAPTER.format(name))
    if file := find(SAFE_WEIGHTS_NAME):
        return [file]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    return [] if index is None else list(filter(None, map(find, _shards(Path(index)))))


def _shards(index: Path) -> list[str]:
    """File names of the shards that an index lists.

    Raises:
        ValueError: the index is damaged, or a name leads to another folder.
    """
    with reading(index):
        names = sorted(set(read_json(index)["weight_map"].values()))
        if foreign := [name for name in names if not _SHARD.fullmatch(name)]:
            raise ValueError(f"{index} lists {foreign[0]!r}, which is no file of a shard: refused")
    return names


def _refuse_other_weights(
    cls: type[SAE], files: list[str], where: str, place: dict[str, Any], config: Any
) -> None:
    """Before any memory is taken for shapes that only the config claims, and before a dtype that
    an SAE cannot have is cast in silence."""
    if config is None:
        config_class: Any = cls.config_class
        try:
            config = config_class.from_pretrained(where, **place)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    try:
        with torch.device("meta"):
            wanted = {name: list(t.shape) for name, t in cls(config).state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"{where}: its config asks for widths beyond any memory") from error
    found, dtypes = {}, {}
    try:
        for file in files:
            with opened_tensors(file) as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    piece = weights.get_slice(name)
                    found[name], dtypes[name] = piece.get_shape(), piece.get_dtype()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where}: {Path(file).name} is damaged: {error}") from error
    _refuse_other_names(cls, set(wanted) - set(found), set(found) - set(wanted), wanted, where)
    for name in sorted(wanted):
        if wanted[name] != found[name]:
            raise ValueError(
                f"{where}: {name} has shape {found[name]} in the file, but the config asks for "
                f"{wanted[name]}; config.json and weights are of different SAEs"
            )
        if dtypes[name] not in _DTYPES:
            raise ValueError(
                f"{where}: {name} is stored as {dtypes[name]}; weights of an SAE are "
                f"{', '.join(_DTYPES)}"
            )


_DTYPES = ("F32", "BF16", "F16", "F64")  # as safetensors names them
_SHARD = re.compile(r"[\w-]+(\.[\w-]+)*\.safetensors")


def _refuse_other_names(
    cls: type[SAE], missing: set[str], extra: set[str], wanted: Iterable[str], where: str
) -> None:
    if missing or extra:
        raise ValueError(
            f"{where} is not a {cls.__name__}: missing weights {_listed(missing)}, unexpected "
            f"weights {_listed(extra)}; a {cls.__name__} has {sorted(wanted)}"
        )


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:10]
    return f"{shown}" + (f" and {len(names) - len(shown):,} more" if len(names) > 10 else "")


def _is_same(home: Path, other: Path) -> bool:
    """Whether two folders hold the same SAE: weights, and what the config says of it."""
    names = (SAFE_WEIGHTS_NAME, "config.json")
    if not all((home / name).is_file() and (other / name).is_file() for name in names):
        return False
    ours, theirs = (
        {k: v for k, v in read_json(folder / "config.json").items() if k not in _OF_SAVING}
        for folder in (home, other)
    )
    weights = (folder / SAFE_WEIGHTS_NAME for folder in (home, other))
    return ours == theirs and filecmp.cmp(*weights, shallow=False)


def _refuse_misfits(model: SAE, info: dict[str, Any], where: str) -> None:
    if mismatched := info["mismatched_keys"]:
        key, found, wanted = sorted(mismatched)[0]
        raise ValueError(
            f"{where}: {key} has shape {list(found)} in the file, but the config asks for "
            f"{list(wanted)}; config.json and weights are of different SAEs"
        )
    _refuse_other_names(
        type(model),
        set(info["missing_keys"]),
        set(info["unexpected_keys"]),
        model.state_dict(),
        where,
    )
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(f"{where}: {key} holds {bad} values that are NaN or infinite")
