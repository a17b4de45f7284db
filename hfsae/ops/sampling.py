"""Next-token distributions: the KL of two, and noise that turns an argmax into a sample."""

import torch
from jaxtyping import Float
from torch import Tensor


def kl_of_logs(
    p: Float[Tensor, "*batch n"], q: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q), nats; p and q are logarithms of probabilities."""
    return (p.exp() * (p - q)).sum(dim=-1)


def gumbel(uniform: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Gumbel noise from numbers in [0, 1): the argmax of log p + noise is a sample from p."""
    tiny = torch.finfo(uniform.dtype).tiny  # rand() can give 0, and its logarithm is -inf
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
