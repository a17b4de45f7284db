"""A run's folder; an SAE whose latents are tokens: i fires on token i alone, always as much."""

import shutil

import numpy as np
import pytest
import torch

from hfsae.explanations.corpus import CorpusActivations, read
from hfsae.runs import run

from ..conftest import every_lm_is
from ..planted_tokens import Planted, plant
from ..tiny import letters_recipe

N_TOKENS, CTX, N_ROWS = 64, 33, 300
D_SAE = 48


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


def read_planted(planted, order=range(N_TOKENS), size=32, **changes) -> CorpusActivations:
    arguments = {"n_directions": 5, "keep_all": False, "seed": 0} | changes
    return read(planted.lm, planted.sae, planted.batches(size), np.array(order), **arguments)


@pytest.fixture(scope="package")
def trained(tmp_path_factory, tiny_lm, tiny_tokenizer):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "sae"
    with pytest.MonkeyPatch.context() as patch:
        every_lm_is(tiny_lm, tiny_tokenizer, patch)
        patch.setattr("hfsae.cards.figures.draw", lambda folder: None)
        run(letters_recipe(folder, collect_tokens=0))
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "sae")
    return tmp_path / "sae"


def verb(folder, *options: str) -> list[str]:
    return ["explain", str(folder), "--n_tokens", "2500", *options]


@pytest.fixture
def no_waits(monkeypatch) -> None:
    """The client of servers retries at once."""
    import openai

    async def sleep(self, **options):
        pass

    monkeypatch.setattr(openai.AsyncOpenAI, "_sleep_for_retry", sleep)
