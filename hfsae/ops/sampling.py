"""Next-token distributions: how far two are apart, and noise that turns an argmax into a draw."""

import torch
from jaxtyping import Float
from torch import Tensor


def kl_of_logs(
    p: Float[Tensor, "*batch n"], q: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q), nats, of distributions given by their logarithms."""
    return (p.exp() * (p - q)).sum(dim=-1)


def gumbel(uniform: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Gumbel noise from numbers in [0, 1): the argmax of log p + noise is a draw from p."""
    tiny = torch.finfo(uniform.dtype).tiny  # rand() gives 0 at times, whose logarithm is -inf
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()
