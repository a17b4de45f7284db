"""The least that an SAE must have, so that those of other libraries, and others' own classes, work
too. What a config may lack, such as `target_site` and the terms of `contract`, is not named here.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class NamesSite(Protocol):
    """An SAE's config."""

    @property
    def site(self) -> str | None:
        """The site that the SAE reads, as in `sites`."""


@runtime_checkable
class HasConfig(Protocol):
    """An SAE of which only its place matters."""

    @property
    def config(self) -> NamesSite:
        """It names the SAE's site."""
        ...


@runtime_checkable
class Encoder(HasConfig, Protocol):
    """An SAE of which only its latents matter."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Latents [*batch, d_sae] of raw activations [*batch, d_in]."""
        ...


@runtime_checkable
class Autoencoder(Encoder, Protocol):
    """An SAE that reconstructs."""

    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor:
        """Raw activations [*batch, d_out] of latents, and of the input that they are of."""
        ...
