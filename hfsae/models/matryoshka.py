"""Matryoshka SAEs: the first few latents reconstruct alone, the next add to them, and so on."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ..io.errors import Refused
from ..ops import Place, nested_sums
from .base import SAE, ForwardParts, Schedule
from .batch_topk import BatchTopKSAE, BatchTopKSAEConfig
from .config import Number, SAEConfig
from .jumprelu import JumpReLUSAE, JumpReLUSAEConfig


class MatryoshkaConfig(SAEConfig):
    """The fields that nesting adds to those of the nested SAE."""

    prefixes: list | tuple = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1)
    """where the nested dictionaries end, rising: numbers of latents, the last d_sae, or shares of
    d_sae, the last 1. By default each adds twice as many latents as the one before"""

    def check(self) -> None:
        super().check()
        p = self.prefixes
        are_numbers = all(isinstance(each, Number) and not isinstance(each, bool) for each in p)
        rises = are_numbers and all(a < b for a, b in pairwise((0, *p)))
        if not p or not rises or p[-1] not in (1, self.d_sae):
            raise Refused(
                f"prefixes must rise from above 0 to d_sae ({self.d_sae}) as numbers of latents, "
                f"or to 1 as shares, got {list(p)}"
            )

    @property
    def ends(self) -> list[int]:
        """The prefixes as numbers of latents, each once."""
        counts = (max(1, round(p / self.prefixes[-1] * self.d_sae)) for p in self.prefixes)
        return list(dict.fromkeys(counts))


class Matryoshka(SAE):
    """An SAE whose loss adds |x - recon from the first m latents|^2, for some m < d_sae.

    Their sum is the term `nested`; `mse` stays the error of all latents together. The encoder, the
    activation function and inference are those of the nested variant, which stands before this
    class among the bases.
    """

    config: MatryoshkaConfig
    has_one_reconstruction = False

    def _reconstructions(self, latents: Tensor, x: Tensor, at: Place) -> Sequence[Tensor]:
        sums = nested_sums(latents, self.decoder_rows(), at, self.config.ends)
        return [self._completed(each, x) for each in sums.unbind()]

    def sparsity_losses(self, parts: ForwardParts, schedule: Schedule) -> dict[str, Tensor]:
        losses = super().sparsity_losses(parts, schedule)
        for recon in parts.nested:
            error = parts.error + (parts.recon - recon).float() / self.write_scale
            losses["nested"] = losses.get("nested", 0) + error.square().sum(dim=-1).mean()
        return losses


class MatryoshkaBatchTopKSAEConfig(MatryoshkaConfig, BatchTopKSAEConfig):
    """BatchTopK's fields, and where the nested dictionaries end."""

    model_type = "matryoshka_batch_topk_sae"


class MatryoshkaBatchTopKSAE(Matryoshka, BatchTopKSAE):
    """latents = z H(z - threshold) as BatchTopK;  loss = sum over m of |x - recon_m|^2 + aux / 32.

    recon_m is made of the first m latents, for each of the `prefixes` m of the dictionary.

    Bussmann et al. 2025 (arXiv:2503.17547), over BatchTopK (arXiv:2412.06410). The first latents
    must reconstruct without the others, so they stay general, and are not split up by the details
    that later latents add. Prefer it where latents are to be read as features or used for probing
    and steering: less splitting and absorption than a BatchTopK SAE of the same k has, for a
    slightly higher error.
    """

    config_class = MatryoshkaBatchTopKSAEConfig
    config: MatryoshkaBatchTopKSAEConfig


class MatryoshkaJumpReLUSAEConfig(MatryoshkaConfig, JumpReLUSAEConfig):
    """JumpReLU's fields, and where the nested dictionaries end."""

    model_type = "matryoshka_jumprelu_sae"


class MatryoshkaJumpReLUSAE(Matryoshka, JumpReLUSAE):
    """latents = z H(z - threshold) as JumpReLU;  loss = sum over m of |x - recon_m|^2 + lambda L0.

    recon_m is made of the first m latents, for each of the `prefixes` m of the dictionary.

    The form of Gemma Scope 2 (2025): nested losses (arXiv:2503.17547) over JumpReLU
    (arXiv:2407.14435). There a quadratic penalty leads L0 to its target, here the controller of
    `target_l0` does. Prefer it to Matryoshka BatchTopK where latents should have thresholds of
    their own. The mse has one term for each prefix: a fixed `l0_coefficient` must be as many times
    larger than a JumpReLU SAE's.
    """

    config_class = MatryoshkaJumpReLUSAEConfig
    config: MatryoshkaJumpReLUSAEConfig
