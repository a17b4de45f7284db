"""The decoder of a trained SAE once more, by least squares.

A decoder row learns only where its latent fires, so in a short run the decoder is behind the
encoder. Latents f stay as they are here, and rows W and bias b become a ridge regression of the
target t on them:

    min  sum |t - f W - b|^2  +  ridge n sum_i var(f_i) |W_i - V_i|^2

V are the trained rows. They count as if they fitted ridge * n activations of their own, so that
rows of latents that fire seldom do not follow single tokens. Rows then get norm 1 again, and
latents the norms that rows had, which changes no reconstruction. Where latents are selected by
rank (TopK, BatchTopK), they are ranked from then on by the length of what they write.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import SAE
from ..models.base import fold_decoder_norms
from ..ops import Workspace, sparse

_AT_ONCE = 2**13  # activations
_CONSTANT = 1e-6  # share of a latent's mean square: one that varies less does not tell a row


@torch.no_grad()
def refit_(
    sae: SAE, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"], ridge: float
) -> None:
    """Fit decoder rows and bias of a folded SAE to activations, raw units, on any device."""
    n, device = len(x), sae.device
    d_sae, d_out = sae.config.d_sae, sae.config.d_out
    # Sums over activations, of latents f and errors e = t - f V - b: f^T f, f^T e, f, e.
    gram, cross = (torch.zeros(d_sae, d, device=device) for d in (d_sae, d_out))
    latents, errors = (torch.zeros(d, device=device) for d in (d_sae, d_out))
    is_sparse = sae.can_be_sparse and device.type in sparse.DEVICES
    workspace = Workspace() if is_sparse else None
    for part, wanted in zip(x.split(_AT_ONCE), target.split(_AT_ONCE), strict=True):
        part, wanted = part.to(device).float(), wanted.to(device).float()
        out = sae(part, workspace=workspace)
        error = wanted - out.recon
        at, values = out.at.support(out.latents)  # products are of pairs: zeros cost most
        gram.add_(at.gram(values))
        cross.add_(at.sums_by_latent(values, error))
        latents.add_(at.totals_by_latent(values))
        errors.add_(error.sum(dim=0))
    # The change of rows. Latents are centred, which takes the bias out, and divided by their
    # spread, which makes the matrix's diagonal 1 + ridge.
    squares = gram.diagonal().clone()
    gram.addr_(latents, latents, alpha=-1 / n)
    cross.addr_(latents, errors, alpha=-1 / n)
    variances = gram.diagonal().clone()
    tells = variances > _CONSTANT * squares
    weights = torch.where(tells, variances.clamp(min=0).rsqrt(), 0.0)
    gram.mul_(weights[:, None]).mul_(weights)
    gram.diagonal().fill_(1 + ridge)
    solved = torch.cholesky_solve(cross * weights[:, None], torch.linalg.cholesky(gram))
    change = solved * weights[:, None]
    state = sae.state_dict()
    state["b_dec"] = state["b_dec"] + (errors - latents @ change) / n
    (decoder,) = sae.decoder_names
    state[decoder] = state[decoder] + change
    sae.load_state_dict(fold_decoder_norms(state, sae.row_norms, sae.decoder_names))
    sae.settle_(x[:_AT_ONCE].to(device).float())
