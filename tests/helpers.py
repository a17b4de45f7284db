"""For several test files: small SAEs of every variant, a folder in use, a command's refusal, code
in a process or a script of its own."""

import doctest
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

import hfsae
from hfsae.cli import main
from hfsae.features import FeatureStore
from hfsae.io.checksums import unsealed
from hfsae.io.file_names import META
from hfsae.io.files import locked, read_json
from hfsae.models import SAE, SAEConfig

ROOT = Path(__file__).parent.parent
D_IN, D_SAE, SCALE = 12, 40, 7.0
CITING_FOLDER = ROOT / "scripts" / "citing" / "variants"
CITING = {
    "elastic_net": {},
    "rank1_topk": {"matrix": (3, 4)},
    "soft_topk": {"alpha": 0.02},
    "sparsemax": {},
    "tree": {"prefixes": (0.25, 1), "shares": (0.6, 0.4)},
}
"""by the name of its file there, the fields that a small SAE of one site needs"""

# Options that change what is learned, or how: each goes through the suite as a variant would.
OPTIONS = [
    ("relu_sae", {"penalty": "ri_l1"}),
    ("gated_sae", {"penalty": "ri_l1"}),
    ("jumprelu_sae", {"kernel": "gaussian", "bandwidth": 0.05}),
    ("jumprelu_sae", {"ste_to_inputs": True, "bandwidth": 0.05}),
    ("jumprelu_sae", {"ste": "l0"}),
    ("jumprelu_sae", {"ste": "reconstruction"}),
    ("jumprelu_sae", {"activation": "shifted"}),
    ("jumprelu_sae", {"penalty": "l1"}),
    ("jumprelu_sae", {"penalty": "tanh", "ste_to_inputs": True, "bandwidth": 0.05}),
    ("jumprelu_sae", {"penalty": "tanh", "pre_act_coefficient": 0.01, "bandwidth": 0.05}),
    ("jumprelu_sae", {"l0_loss": "quadratic", "target_l0": 5, "l0_coefficient": 0.1}),
    ("jumprelu_sae", {"l0_loss": "frequency"}),
]


def variants() -> list[type[SAEConfig]]:
    """Those of one site."""
    named = (c for c in hfsae.models.variants() if c.__module__.startswith("hfsae."))
    return [c for c in named if not c.is_causal]


def cases() -> dict[str, Callable[..., SAEConfig]]:
    """All variants, and those with options; by name."""
    classes = {config.model_type: config for config in variants()}
    named = {
        f"{kind}-{'-'.join(map(str, fields.values()))}": partial(classes[kind], **fields)
        for kind, fields in OPTIONS
    }
    return classes | named


def smallest(config_class: Callable[..., SAEConfig]) -> dict[str, int]:
    """The fields that have to be given at this size."""
    sizes = {"d_in": D_IN, "d_sae": D_SAE, "k": 8}
    known = getattr(config_class, "func", config_class).__dataclass_fields__
    return {k: v for k, v in sizes.items() if k in known}


def make(config_class: Callable[..., SAEConfig], **fields) -> SAE:
    """A small SAE whose every parameter matters: no zero bias, some latents on, some off."""
    defaults = {"activation_scale": SCALE, "site": "layers.1"}
    config = config_class(**{**smallest(config_class), **defaults, **fields})
    torch.manual_seed(0)
    sae = AutoModel.from_config(config)
    with torch.no_grad():
        for name in ("b_enc", "b_dec", "b_mag", "r_mag", "W_skip", "log_scale"):
            if hasattr(sae, name):
                getattr(sae, name).uniform_(-0.1, 0.1)
        if hasattr(sae, "threshold"):
            sae.threshold.uniform_(0.05, 0.15)
    return sae


def activations(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1))
    return SCALE * x / D_IN**0.5


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[threading.Event]:
    """The folder's lock, held by another thread, to which it counts as another process; the event
    ends it."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(folder):
            is_held.set()
            is_over.wait(60)

    with ThreadPoolExecutor(1) as other:
        holding = other.submit(hold)
        assert is_held.wait(60)
        try:
            yield is_over
        finally:
            is_over.set()
            holding.result()


@contextmanager
def at_each_pass(lm: PreTrainedModel, is_last: Callable[[], bool | None]) -> Iterator[None]:
    """Ctrl-C when the language model begins a pass of which `is_last` is true."""

    def stop(*_: object) -> None:
        if is_last():
            raise KeyboardInterrupt

    handle = lm.base_model.layers[0].register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The sentence for bad input: exit code 2, one line, no traceback."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("hfsae: error: ")
    return lines[0].removeprefix("hfsae: error: ")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in the repository's folder."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def script(name: str) -> ModuleType:
    """`scripts/NAME.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_examples(function: Callable) -> None:
    """The examples in a function's docstring give what stands under them."""
    (test,) = doctest.DocTestFinder(recurse=False).find(function)
    assert test.examples and not doctest.DocTestRunner().run(test).failed


def unseal(folder: Path) -> None:
    """Take the seal off a feature store, as in those of earlier versions: what is damaged then is
    found by what is read."""
    path = folder / META
    path.write_text(json.dumps(unsealed(read_json(path))))


def save_store(folder: Path, token: str = "a", **meta: Any) -> None:
    """A feature store of one latent that fires on one token."""
    import pyarrow as pa
    import pyarrow.dataset

    latents: dict[str, list] = {
        "latent": [0],
        "density": [0.01],
        "n_firings": [1],
        "histogram": [[1]],
    }
    latents |= {"max_activation": [1.0], "mean_activation": [1.0]}
    for one in ("promoted", "suppressed"):
        latents |= {f"{one}_tokens": [["a"]], f"{one}_logits": [[1.0]]}
    latents |= {"neighbours": [[0]], "neighbour_cosines": [[1.0]]}
    examples: dict[str, list] = {
        name: [0] for name in ("latent", "rank", "document", "row", "position", "firing")
    }
    examples |= {"kind": ["top"], "activation": [1.0], "tokens": [[token]]}
    examples |= {"token_ids": [[0]], "activations": [[1.0]]}
    meta = {"histogram_edges": [0.0, 1.0], "arguments": {"quantiles": 1}, **meta}
    dataset = pyarrow.dataset.dataset(pa.table(examples))
    FeatureStore(pa.table(latents), dataset, meta).save(folder)
