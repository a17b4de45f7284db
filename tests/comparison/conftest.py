"""A tiny comparison, trained once; and the scripts' package, as `PYTHONPATH=scripts` has it."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfsae.comparison import Comparison, compare

from ..conftest import every_lm_is
from ..tiny import tiny_fields

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

ARMS = {
    "jumprelu": {"title": "JumpReLU", "sweep": {"target_l0": [3, 6]}},
    "topk": {
        "sae": {"model_type": "topk_sae", "target_l0": None},
        "sweep": {"k": [3, 6]},
        "training": {"warm_start_steps": 0, "learning_rate": 2e-3},
    },
}


def tiny_comparison(folder, kind=Comparison, **fields) -> Any:
    given = tiny_fields(folder, collect_tokens=0, **fields)
    given["sae"] = {k: v for k, v in given["sae"].items() if k in ("site", "d_sae", "target_l0")}
    return kind(**given, arms=ARMS, seeds=[0, 1], at_l0=[4.0, 5.0])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_lm, tiny_tokenizer) -> tuple[Path, list[str]]:
    """A whole comparison's folder, and the names of the language models that it loaded."""
    folder = tmp_path_factory.mktemp("trained") / "c"
    with pytest.MonkeyPatch.context() as monkeypatch:
        loads = every_lm_is(tiny_lm, tiny_tokenizer, monkeypatch)
        compare(tiny_comparison(folder), command="hfsae compare x.yaml")
    return folder, loads


@pytest.fixture
def copied(trained, tmp_path) -> Callable[[str], Path]:
    """copied("c"): that comparison again, in a folder of the test's own."""
    return lambda name: shutil.copytree(trained[0], tmp_path / name)
