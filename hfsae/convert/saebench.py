"""SAEBench: an object instead of files, with the attributes that its evaluations read.

    SAEBenchSAE(sae), passed as ("name", object) to `sae_bench.evals.core.main.multiple_evals`

Weights have hfsae's layout, all scales folded. A Gated or BatchTopK SAE is passed as the equal
JumpReLU SAE. scripts/interop/run_saebench.py runs the core evaluation. sae_bench itself is not
imported.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from ..models import SAE, JumpReLUSAE, ReLUSAE, TopKSAE
from .build import to_jumprelu
from .sites import to_hook


@dataclass
class SAEBenchConfig:
    """The fields of `cfg` that SAEBench reads; it also writes fields of its own to it."""

    model_name: str
    """of a model that TransformerLens loads"""
    hook_name: str
    hook_layer: int
    d_in: int
    d_sae: int
    architecture: str
    dtype: str = "float32"
    """of the language model, and of the SAE but for thresholds"""
    normalize_activations: str = "none"
    prepend_bos: bool = True
    """whether rows of text start with the tokenizer's BOS"""

    def to_dict(self) -> dict[str, Any]:
        """The fields above, for SAEBench's results file."""
        return asdict(self)


class SAEBenchSAE:
    """An SAE with the names that SAEBench uses: `sae`'s latents and reconstructions, unchanged.

    Args:
        model_name: another name of the model, or a folder, for TransformerLens; default:
            `sae.config`'s.
        prepend_bos: whether rows of text start with BOS; None: as they did in training.

    Raises:
        ValueError: decoding needs more than latents, or SAEBench could not find the site.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    """weights and biases, all scales folded"""

    def __init__(
        self, sae: SAE, model_name: str | None = None, prepend_bos: bool | None = None
    ) -> None:
        config = sae.config
        if config.is_transcoder or config.decodes_with_input:
            raise Refused(
                "SAEBench puts decode(latents) where it read the input: it takes no transcoder, no "
                "skip connection and no token_norm"
            )
        hook, layer = to_hook(config.site, config.model_name), re.search(r"\d+", config.site or "")
        if hook is None or layer is None:
            raise Refused(
                f"no TransformerLens hook is known for site {config.site!r} of "
                f"{config.model_name!r}; SAEBench needs one in a layer"
            )
        is_known = isinstance(sae, ReLUSAE | TopKSAE)
        self.sae = (sae.folded() if is_known else to_jumprelu(sae)).eval()
        self.sae.requires_grad_(False)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            setattr(self, name, getattr(self.sae, name))
        architecture = "topk" if isinstance(self.sae, TopKSAE) else "standard"
        if isinstance(self.sae, JumpReLUSAE):
            architecture = "jumprelu"
        self.cfg = SAEBenchConfig(
            model_name=model_name or str(config.model_name),
            hook_name=hook,
            hook_layer=int(layer[0]),
            d_in=config.d_in,
            d_sae=config.d_sae,
            architecture=architecture,
            dtype=_name(self.dtype),
            prepend_bos=config.bos != "none" if prepend_bos is None else prepend_bos,
        )

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of raw activations x."""
        return self.sae.encode(x)

    def decode(self, latents: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Raw activations from latents."""
        return self.sae.decode(latents)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "SAEBenchSAE":
        """This object, moved or cast."""
        self.sae.to(device=device or self.device, dtype=dtype or self.dtype)
        self.cfg.dtype = _name(self.dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Of the SAE's weights."""
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the SAE's weights, thresholds apart."""
        return self.sae.W_dec.dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
