"""Blocks around models that are compiled."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import CompileConfig, PreTrainedModel

from hfsae.lm import (
    capture,
    patch,
    splice,
)

from ..tiny import tokens
from .toys import ToySAE


@pytest.fixture
def graphs() -> Iterator[list[torch.fx.GraphModule]]:
    """What `count` was given to compile."""
    torch.compiler.reset()
    _graphs.clear()
    yield _graphs
    torch.compiler.reset()


_graphs: list[torch.fx.GraphModule] = []


def count(graph: torch.fx.GraphModule, inputs: list) -> Callable:
    """A backend for torch.compile that runs graphs as they are."""
    _graphs.append(graph)
    return graph.forward


@pytest.mark.parametrize("way", ["wrapped", "in place", "a block"])
def test_a_compiled_model_does_in_a_block_what_the_plain_one_does_and_stays_compiled(
    make_tiny_lm: Callable, graphs: list, way: str
):
    lm, plain = (make_tiny_lm("llama", num_hidden_layers=1) for _ in range(2))
    with patch(plain, {"layers.0": lambda x: 2 * x}), capture(plain, ["layers.0"]) as expected:
        logits = plain(**tokens()).logits
    run = torch.compile(lm, backend=count) if way == "wrapped" else lm
    if way != "wrapped":
        (lm if way == "in place" else lm.base_model.layers[0]).compile(backend=count)
    clean = run(**tokens()).logits
    n_graphs = len(graphs)
    assert n_graphs > 0
    with patch(run, {"layers.0": lambda x: 2 * x}), capture(run, ["layers.0"]) as activations:
        assert torch.equal(run(**tokens()).logits, logits)
    assert torch.equal(activations["layers.0"], expected["layers.0"])
    assert torch.equal(run(**tokens()).logits, clean)
    assert len(graphs) == n_graphs


def test_generation_that_compiles_itself_is_spliced_in_each_of_its_steps(
    make_tiny_lm: Callable, graphs: list
):
    """As transformers does by itself on a GPU with a static cache."""
    lm, sae = make_tiny_lm("llama", num_hidden_layers=1), ToySAE("layers.0")
    config = CompileConfig(backend=count, mode=None)
    config._compile_all_devices = True
    options = {"max_new_tokens": 4, "eos_token_id": None, "do_sample": False}
    compiled = {"cache_implementation": "static", "compile_config": config}
    with splice(lm, sae, spare_tokens=[0, 2]):
        expected = lm.generate(**tokens("left"), **options)
    clean = lm.generate(**tokens("left"), **options, **compiled)
    assert graphs and not torch.equal(clean, expected)
    with splice(lm, sae, spare_tokens=[0, 2]):
        assert torch.equal(lm.generate(**tokens("left"), **options, **compiled), expected)
    assert torch.equal(lm.generate(**tokens("left"), **options, **compiled), clean)


def test_what_is_compiled_in_a_block_runs_without_it_afterwards(
    make_tiny_lm: Callable, graphs: list
):
    lm = make_tiny_lm("llama", num_hidden_layers=1)
    clean = lm(**tokens()).logits
    with patch(lm, {"layers.0": lambda x: 2 * x}):
        lm.base_model.layers[0].compile(backend=count)
        assert not torch.equal(lm(**tokens()).logits, clean)
    assert not graphs
    torch.testing.assert_close(lm(**tokens()).logits, clean)
    assert graphs


def test_code_is_compiled_again_after_the_last_block_of_all_threads(
    tiny_lm: PreTrainedModel, graphs: list
):
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with capture(tiny_lm, ["layers.0"]):
            tiny_lm(**tokens())
            entered.set()
            left.wait(30)

    compiled, thread = torch.compile(torch.neg, backend=count), threading.Thread(target=other)
    with capture(tiny_lm, ["layers.0"]):
        tiny_lm(**tokens())
        thread.start()
        entered.wait(30)
    compiled(torch.ones(2))
    with pytest.raises(RuntimeError, match="boom"), capture(tiny_lm, ["layers.0"]):
        left.set()
        thread.join()
        compiled(torch.ones(2))
        raise RuntimeError("boom")
    with pytest.raises(ValueError, match="not in Gemma2ForCausalLM"), capture(tiny_lm, ["nope"]):
        pass
    assert not graphs
    compiled(torch.ones(2))
    assert len(graphs) == 1


def test_a_block_that_compiled_code_enters_is_refused(
    tiny_lm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
):
    def refuse(stance: str) -> None:
        raise RuntimeError("attempted to set_stance in a torch.compile region")

    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "set_stance", refuse)
        with pytest.raises(ValueError, match=r"inside code from torch\.compile.*outside"):
            capture(tiny_lm, ["layers.0"]).__enter__()
    with capture(tiny_lm, ["layers.0"]):
        tiny_lm(**tokens())
