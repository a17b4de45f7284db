"""Runs any hfsae SAE with torch and transformers alone. Pushed beside the weights on request:

    transformers.AutoModel.from_pretrained(repo, trust_remote_code=True)

For use, not for training: encode, decode and forward are those of the hfsae package up to float32's
rounding, where their formulas, units and sources are written down. Works for all of its variants.
"""

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput


class HfsaeConfig(PreTrainedConfig):
    """Fields as in the package's SAEConfig and its variants."""

    has_no_defaults_at_init = True


@dataclass
class HfsaeOutput(ModelOutput):
    recon: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    pre_acts: torch.Tensor | None = None


class HfsaeModel(PreTrainedModel):
    """Raw activations in, raw reconstructions out; latents [*batch, d_sae]."""

    config_class = HfsaeConfig
    base_model_prefix = ""
    main_input_name = "x"
    _keep_in_fp32_modules_strict = {"threshold"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "site_scales", None) and not config.scales_folded:
            raise ValueError("its sites' scales are not in the weights; save sae.folded()")
        if config.model_type.endswith("_clt"):
            raise ValueError("a cross-layer transcoder runs with hfsae: pip install hfsae")
        d_in, d_sae, d_out = config.d_in, config.d_sae, config.d_out
        self.W_enc = nn.Parameter(torch.empty(d_in, d_sae))
        self.b_enc = nn.Parameter(torch.empty(d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_out))
        self.b_dec = nn.Parameter(torch.empty(d_out))
        if config.skip_connection:
            self.W_skip = nn.Parameter(torch.empty(d_in, d_out))
        if config.model_type.endswith(("jumprelu_sae", "batch_topk_sae")):
            shape = () if config.model_type.endswith("batch_topk_sae") else (d_sae,)
            self.threshold = nn.Parameter(torch.empty(shape, dtype=torch.float32))
        if config.model_type == "gated_sae":
            self.r_mag = nn.Parameter(torch.empty(d_sae))
            self.b_mag = nn.Parameter(torch.empty(d_sae))
        self.post_init()

    def _init_weights(self, module):
        """All weights come from the file."""

    def _apply(self, fn, recurse=True):
        """Thresholds stay float32 through `.to(torch.bfloat16)`, as in the package."""
        kept = getattr(self, "threshold", None)

        def cast(tensor):
            moved = fn(tensor)
            is_rounded = tensor is kept and moved.dtype != torch.float32
            return tensor.to(moved.device) if is_rounded else moved

        return super()._apply(cast, recurse)

    @property
    def is_transcoder(self):
        """Whether it predicts the activations of another site."""
        return self.config.target_site not in (None, self.config.site)

    @property
    def scale(self):
        """Raw units of one stored unit of biases and thresholds."""
        target = self.config.target_scale if self.is_transcoder else None
        return float(target or self.config.activation_scale or 1.0)

    def encode(self, x):
        """Latents of raw activations."""
        return self.activate(self.pre_activations(x))

    def decode(self, latents, x=None):
        """Raw reconstructions; a skip connection and token_norm need the input x as well."""
        recon = latents.to(self.W_dec.dtype) @ self.W_dec + self.scale * self.b_dec
        if self.config.skip_connection:
            skip = self._normalised(x) @ self.W_skip  # pyright: ignore
            return recon + skip
        if self.config.token_norm == "none":
            return recon
        mean, spread = self._token_statistics(x.to(self.W_dec.dtype))  # pyright: ignore
        return recon * spread + mean

    def forward(self, x):
        pre_acts = self.pre_activations(x)
        latents = self.activate(pre_acts)
        return HfsaeOutput(recon=self.decode(latents, x), latents=latents, pre_acts=pre_acts)

    def pre_activations(self, x):
        """Values before the non-linearity."""
        x = self._normalised(x)
        if self.config.subtract_b_dec:
            x = x - self.scale * self.b_dec
        return x @ self.W_enc + self.scale * self.b_enc

    def activate(self, pre_acts):
        """Latents: the variant's non-linearity."""
        variant = self.config.model_type.removeprefix("matryoshka_")
        if variant == "relu_sae":
            return pre_acts.relu()
        if variant in ("jumprelu_sae", "batch_topk_sae"):
            threshold = (self.scale * self.threshold).expand(self.config.d_sae)
            if getattr(self.config, "activation", "jump") == "shifted":
                return (pre_acts - threshold).relu().to(pre_acts.dtype)
            return pre_acts * (pre_acts > threshold)
        if variant == "gated_sae":
            magnitude = self.r_mag.exp() * (pre_acts - self.scale * self.b_enc)
            return (pre_acts > 0) * (magnitude + self.scale * self.b_mag).relu()
        if variant == "topk_sae":
            return self._largest(pre_acts)
        raise ValueError(f"this file does not know {variant}; pip install hfsae")

    def _largest(self, z):
        if self.config.selection == "approximate":
            return self._nearly_largest(z)
        groups = self.config.selection == "groupmax"
        z = z.unflatten(-1, (self.config.k, -1)) if groups else z
        values, indices = z.topk(1 if groups else self.config.k, dim=-1, sorted=False)
        latents = torch.zeros_like(z).scatter(-1, indices, values)
        latents = latents.flatten(-2) if groups else latents
        return latents.relu() if self.config.relu else latents

    def _nearly_largest(self, z):
        k, d_sae, recall = self.config.k, self.config.d_sae, float(self.config.recall)
        n = bisect_left(range(d_sae), recall, lo=k, key=lambda n: n / k * (1 - (1 - 1 / n) ** k))
        size = d_sae // n
        padded = nn.functional.pad(z, (0, -d_sae % size), value=-torch.inf)
        best = padded.unflatten(-1, (-1, size)).max(dim=-1)
        values, groups = best.values.topk(k, dim=-1, sorted=False)
        indices = groups * size + best.indices.gather(-1, groups)
        latents = torch.zeros_like(z).scatter(-1, indices, values)
        return latents.relu() if self.config.relu else latents

    def _normalised(self, x):
        x = x.to(self.W_enc.dtype)
        if self.is_transcoder:
            return x * (self.scale / float(self.config.activation_scale or 1.0))
        if self.config.token_norm == "none":
            return x
        mean, spread = self._token_statistics(x)
        return (x - mean) / (spread + {"layer_norm": 1e-5, "unit_rms": 0.0}[self.config.token_norm])

    def _token_statistics(self, x):
        if self.config.token_norm == "layer_norm":
            return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        rms = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return torch.zeros_like(rms), rms
