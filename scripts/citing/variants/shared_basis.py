r"""fmxcoders (arXiv:2605.09438): a crosscoder whose latents share a few profiles over sites.

    hfsae train crosscoder --import scripts/citing/variants/shared_basis.py \
        --sae.model_type shared_basis_sae

Latent i's rows at all sites [n_sites, d] are B V_i with one B [n_sites, rank] for all latents, in
the encoder and, another, in the decoder. After each step the weights become the nearest such ones.
The paper's ranks are not known; nor is whether it shares B so.
"""

import torch
from torch import Tensor

from hfsae import BatchTopKSAE, BatchTopKSAEConfig, Refused


class SharedBasisSAEConfig(BatchTopKSAEConfig):
    """BatchTopK's fields, and the rank."""

    model_type = "shared_basis_sae"

    rank: int = 1
    """columns of B, below the number of sites"""

    def check(self) -> None:
        super().check()
        self.require_positive("rank")
        if self.sites is None or self.rank >= len(self.sites):
            raise Refused(
                f"rank ({self.rank}) must be below the number of sites: give more than {self.rank}"
            )
        if self.widths and len({*self.widths}) > 1:
            raise Refused(f"sites share a basis only where widths are equal, got {self.widths}")


class SharedBasisSAE(BatchTopKSAE):
    """latents = z H(z - threshold) as BatchTopK;  rows of latent i at all sites = B V_i.

    After fmxcoders (arXiv:2605.09438), over BatchTopK (arXiv:2412.06410).
    """

    config_class = SharedBasisSAEConfig
    config: SharedBasisSAEConfig

    @torch.no_grad()
    def after_step_(self) -> None:
        self.W_enc.copy_(self._nearest(self.encoder_rows()).T)
        self.W_dec.copy_(self._nearest(self.decoder_rows()))
        super().after_step_()

    def _nearest(self, rows: Tensor) -> Tensor:
        assert self.config.sites is not None
        by_site = rows.unflatten(-1, (len(self.config.sites), -1))  # [d_sae, n_sites, d]
        _, vectors = torch.linalg.eigh(torch.einsum("nsd,ntd->st", by_site, by_site))
        kept = vectors[:, -self.config.rank :]
        return torch.einsum("st,ntd->nsd", kept @ kept.T, by_site).flatten(1)
