"""An SAE whose latents are tokens: latent i fires on token i alone, always as much."""

import numpy as np
import pytest
import torch

from hfsae.explain.reading import Reading, read

from ..planted_tokens import Planted, plant

N_TOKENS, CTX, N_ROWS = 64, 33, 300


@pytest.fixture(scope="package")
def planted() -> Planted:
    """Each row is a document of random tokens behind a special one, token 0. Some rows repeat
    sixteen tokens of another row, and some are whole copies."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(1, N_TOKENS - 2, (N_ROWS, CTX), generator=generator)
    rows[1:41:2, 8:24] = rows[0:40:2, 9:25]
    rows[41:61:2] = rows[40:60:2]
    rows[:, 0] = 0
    return plant(torch.diag(1.0 + torch.arange(N_TOKENS)), torch.zeros(CTX, N_TOKENS), 0.5, rows)


def read_planted(planted, order=range(N_TOKENS), size=32, **changes) -> Reading:
    arguments = {"n_directions": 5, "keep_all": False, "seed": 0} | changes
    return read(planted.lm, planted.sae, planted.batches(size), np.array(order), **arguments)
