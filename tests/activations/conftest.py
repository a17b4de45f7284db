"""Tiny encoders, each loaded once."""

from collections.abc import Callable

import pytest

from hfsae.lm import LoadedEncoder, load_encoder

from ..tiny_encoders import save_encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Callable[[str], LoadedEncoder]:
    """encoder("vit"): shared, leave it as it is."""
    loaded: dict[str, LoadedEncoder] = {}

    def make(family: str) -> LoadedEncoder:
        if family not in loaded:
            folder = tmp_path_factory.mktemp("encoder") / family
            loaded[family] = load_encoder(save_encoder(family, folder))
        return loaded[family]

    return make
