r"""WriteSAE (arXiv:2605.12770): latents of a matrix-valued state, each an outer product v w^T.

    hfsae train activations --activations FILES --import scripts/citing/variants/rank1_topk.py \
        --sae.model_type rank1_topk_sae --sae.matrix 64,128

Activations are matrices [d_k, d_v], flattened: states or writes of a recurrent block, from files.

    z_i = v_i^T S w_i + b_i,    recon = sum_i latents_i v_i w_i^T + b_dec

After each step rows become the nearest outer products, by rounds of power iteration from where they
were; the encoder's have factors of their own.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hfsae import Refused, TopKSAE, TopKSAEConfig

_ROUNDS = 3  # a step moves a row little


class Rank1TopKSAEConfig(TopKSAEConfig):
    """TopK's fields, and the matrix's shape."""

    model_type = "rank1_topk_sae"

    matrix: list | tuple = ()
    """[d_k, d_v], whose product is d_in"""

    def check(self) -> None:
        super().check()
        if len(self.matrix) != 2 or self.matrix[0] * self.matrix[1] != self.d_in:
            raise Refused(
                f"matrix must be two numbers whose product is d_in ({self.d_in}), "
                f"got {list(self.matrix)}"
            )
        if self.is_transcoder or self.sites is not None:
            raise Refused("a rank1_topk_sae reads and reconstructs one site")


class Rank1TopKSAE(TopKSAE):
    """latents = relu(the k largest of z),  z_i = v_i^T S w_i + b_i;  loss = |S - recon|^2 + aux/32.

    WriteSAE (arXiv:2605.12770), over TopK (arXiv:2406.04093). S is x as a matrix.
    """

    config_class = Rank1TopKSAEConfig
    config: Rank1TopKSAEConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            rows = self._nearest(self.W_dec)
            init.copy_(self.W_dec, rows / rows.norm(dim=-1, keepdim=True))
            init.copy_(self.W_enc, self.W_dec.T)

    @torch.no_grad()
    def after_step_(self) -> None:
        self.W_enc.copy_(self._nearest(self.encoder_rows()).T)
        self.W_dec.copy_(self._nearest(self.decoder_rows()))
        super().after_step_()

    def _nearest(self, rows: Tensor) -> Tensor:
        matrices = rows.unflatten(-1, tuple(self.config.matrix))
        largest = matrices.norm(dim=1).argmax(dim=-1)  # its longest column is a start
        v = nn.functional.normalize(matrices[torch.arange(len(rows)), :, largest], dim=-1)
        w = v
        for _ in range(_ROUNDS):
            w = torch.einsum("nkv,nk->nv", matrices, v)
            v = nn.functional.normalize(torch.einsum("nkv,nv->nk", matrices, w), dim=-1)
        w = torch.einsum("nkv,nk->nv", matrices, v)
        return torch.einsum("nk,nv->nkv", v, w).flatten(1)
