"""Activations read in a forward pass, and passes that stop early."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hfsae.lm import (
    capture,
    find_module,
)

from ..tiny import stack, tokens
from .toys import parts


@pytest.mark.parametrize("side", ["left", "right"])
def test_captured_blocks_are_the_hidden_states(any_lm: PreTrainedModel, side: str):
    sites = [f"{stack(any_lm)}.{i}" for i in range(4)]
    with capture(any_lm, sites) as activations:
        hidden_states = any_lm(**tokens(side), output_hidden_states=True).hidden_states
    for i in range(3):
        assert torch.equal(activations[sites[i]], hidden_states[i + 1])


def test_the_last_block_is_captured_before_the_final_norm(any_lm: PreTrainedModel):
    site = f"{stack(any_lm)}.3"
    with capture(any_lm, [site]) as activations:
        last = any_lm(**tokens(), output_hidden_states=True).hidden_states[-1]
    assert not torch.allclose(activations[site], last)
    assert torch.equal(find_module(any_lm, parts(any_lm).final)(activations[site]), last)


def test_an_input_port_carries_what_the_module_is_given(any_lm: PreTrainedModel):
    site, given = f"{stack(any_lm)}.2.{parts(any_lm).out}", []
    module = find_module(any_lm, site)
    hook = module.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with capture(any_lm, [f"{site}:in", site]) as activations:
        any_lm(**tokens())
    hook.remove()
    assert torch.equal(activations[f"{site}:in"], given[0])
    assert torch.equal(module(given[0]), activations[site])


def test_inputs_by_keyword_and_outputs_in_tuples_are_found(any_lm: PreTrainedModel):
    block, names = f"{stack(any_lm)}.1", parts(any_lm)
    attention, norm, out = (f"{block}.{name}" for name in (names.attention, names.norm, names.out))
    with capture(any_lm, [f"{attention}:in", attention, norm, out]) as activations:
        any_lm(**tokens())
    assert torch.equal(activations[f"{attention}:in"], activations[norm])
    assert torch.equal(activations[attention], activations[out])
    assert activations[attention].shape == (3, 12, 16)


def test_capture_keeps_the_dtype_the_graph_and_the_keys_as_given(make_tiny_lm: Callable):
    lm = make_tiny_lm("qwen2").to(torch.bfloat16).requires_grad_(True)
    with capture(lm, ["layers.1:out"]) as activations:
        lm(**tokens())
    assert list(activations) == ["layers.1:out"]
    assert activations["layers.1:out"].dtype == torch.bfloat16
    assert activations["layers.1:out"].grad_fn is not None


def runs_of_layers(lm: PreTrainedModel, sites: list[str]) -> list[int]:
    runs, hooks = [0] * 4, []
    for i in range(4):

        def count(module: nn.Module, args: tuple, i: int = i) -> None:
            runs[i] += 1

        first = find_module(lm, f"{stack(lm)}.{i}.{parts(lm).norm}")
        hooks.append(first.register_forward_pre_hook(count))
    with capture(lm, sites, stop_early=True) as activations:
        lm(**tokens())
    for hook in hooks:
        hook.remove()
    assert set(activations) == set(sites)
    return runs


def test_stop_early_runs_only_the_layers_needed(any_lm: PreTrainedModel):
    layers = stack(any_lm)
    assert runs_of_layers(any_lm, [f"{layers}.1"]) == [1, 1, 0, 0]
    assert runs_of_layers(any_lm, [f"{layers}.2.mlp:in", f"{layers}.0"]) == [1, 1, 1, 0]
    assert runs_of_layers(any_lm, [f"{layers}.3"]) == [1, 1, 1, 1]
    assert runs_of_layers(any_lm, [f"{layers}.0:in"]) == [0, 0, 0, 0]


def test_stop_early_captures_the_same_activations(any_lm: PreTrainedModel):
    site = f"{stack(any_lm)}.2"
    with capture(any_lm, [site]) as whole:
        any_lm(**tokens("left"))
    with capture(any_lm, [site], stop_early=True) as stopped:
        any_lm(**tokens("left"))
    assert torch.equal(whole[site], stopped[site])


def test_stopping_leaves_the_model_as_it_was(tiny_lm: PreTrainedModel):
    before = tiny_lm(**tokens(), output_hidden_states=True)
    with capture(tiny_lm, ["layers.1"], stop_early=True):
        tiny_lm(**tokens(), output_hidden_states=True)
    after = tiny_lm(**tokens(), output_hidden_states=True)
    assert torch.equal(before.logits, after.logits)
    assert len(before.hidden_states) == len(after.hidden_states)


def test_a_stopped_forward_pass_is_freed_without_the_garbage_collector(tiny_lm: PreTrainedModel):
    gc.collect()
    gc.disable()
    try:
        with capture(tiny_lm, ["layers.1"], stop_early=True) as activations:
            tiny_lm(**tokens())
        activation = weakref.ref(activations.pop("layers.1"))
        assert activation() is None
    finally:
        gc.enable()


def test_an_inner_capture_does_not_swallow_the_stop_of_an_outer_one(tiny_lm: PreTrainedModel):
    reached = []
    with capture(tiny_lm, ["layers.0"], stop_early=True) as outer:
        with capture(tiny_lm, ["layers.2"], stop_early=True) as inner:
            tiny_lm(**tokens())
        reached.append("after the inner block")
    assert list(outer) == ["layers.0"] and not inner and not reached


def test_capture_under_generate_holds_the_last_step(any_lm: PreTrainedModel):
    site = f"{stack(any_lm)}.1"
    with capture(any_lm, [site]) as activations:
        ids = any_lm.generate(**tokens("left"), max_new_tokens=4, eos_token_id=None)
    assert activations[site].shape == (3, 1, 16)
    with capture(any_lm, [site]) as whole:
        any_lm(ids[:1, :-1])  # the row without padding
    torch.testing.assert_close(activations[site][0], whole[site][0, -1:], rtol=1e-4, atol=1e-4)
