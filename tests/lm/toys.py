"""What splice asks of an SAE, without one."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ToySAE(nn.Module):
    """latents = relu(x W_enc), decode = latents W_dec; all that splice asks of an SAE."""

    def __init__(self, site: str | None, target_site: str | None = None, d_in: int = 16):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W_enc = nn.Parameter(torch.randn(d_in, 40, generator=generator) / 4)
        self.W_dec = nn.Parameter(torch.randn(40, 16, generator=generator) / 4)
        self.config = SimpleNamespace(site=site, target_site=target_site)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        return latents @ self.W_dec


class IdentitySAE(ToySAE):
    def encode(self, x: Tensor) -> Tensor:
        return x.clone()

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        return latents.clone()


def double_first(latents: Tensor) -> Tensor:
    return torch.cat([2 * latents[..., :1], latents[..., 1:]], dim=-1)


def parts(lm: PreTrainedModel) -> SimpleNamespace:
    """The family's names for what every decoder block has."""
    if lm.config.model_type == "gpt2":
        return SimpleNamespace(attention="attn", out="attn.c_proj", norm="ln_1", final="ln_f")
    if lm.config.model_type == "gpt_neox":
        names = {"attention": "attention", "out": "attention.dense"}
        return SimpleNamespace(**names, norm="input_layernorm", final="final_layer_norm")
    names = {"attention": "self_attn", "out": "self_attn.o_proj"}
    return SimpleNamespace(**names, norm="input_layernorm", final="norm")
