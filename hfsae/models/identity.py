"""A hash of an SAE's decoder, kept with results, which shows to which SAE they belong.

An SAE in memory has no file whose hash could be compared, and may be in another dtype, or not
folded, where its latents are the same.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from .fingerprint import state_hash

DECODER = "decoder_sha256"
"""The hash's key in features/meta.json."""
_MOST = 2**16  # entries; those of the largest decoder are hashed in milliseconds
_OF = "_of_decoder"  # attribute of a tensor


def decoder_hash(W_dec: Float[Tensor, "d_sae d_out"]) -> str | None:
    """Hash of up to 65,536 evenly spaced entries of a decoder, rounded to bfloat16: the same for an
    SAE loaded in float32 and in bfloat16, folded or not. None in float16, which rounds otherwise.
    """
    if W_dec.dtype == torch.float16:
        return None
    entries = W_dec.detach().reshape(-1)
    entries = entries[:: -(-len(entries) // _MOST)].to(torch.bfloat16)
    return state_hash({"W_dec": entries}) if len(entries) else None


def marked(values: Tensor, decoder_sha256: str | None) -> Tensor:
    """The same tensor, marked as belonging to the SAE with this decoder. Results of operations on
    it lose the mark."""
    setattr(values, _OF, decoder_sha256)
    return values


def refuse_values_of_others(values: object, W_dec: Tensor, name: str) -> None:
    """Refuse a tensor that is marked as another SAE's; one without a mark is accepted.

    Raises:
        ValueError: it belongs to another SAE than the one with this decoder.
    """
    theirs = getattr(values, _OF, None)
    ours = None if theirs is None else decoder_hash(W_dec)
    if ours is not None and theirs != ours:
        raise Refused(
            f"{name} is another SAE's: its decoder differs from this one's; pass this SAE's, such "
            "as FeatureStore.load(folder).max_activations of its own folder"
        )
