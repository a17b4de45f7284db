"""Activations written in a forward pass: what the rest of the model then sees, and what remains
afterwards."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.lm import (
    capture,
    patch,
    running_as,
    splice,
)

from ..tiny import n_hooks, stack, tokens
from .toys import ToySAE, parts


@pytest.mark.parametrize("side", ["left", "right"])
def test_identity_patches_leave_logits_bit_equal(any_lm: PreTrainedModel, side: str):
    names, layers = parts(any_lm), stack(any_lm)
    block = f"{layers}.1"
    sites = [block, f"{block}:in", f"{layers}.3", f"{block}.{names.attention}", f"{block}.mlp"]
    sites += [f"{block}.{names.attention}:in", f"{block}.{names.out}:in", f"{block}.mlp:in"]
    clean = any_lm(**tokens(side)).logits
    with patch(any_lm, {site: torch.clone for site in sites}):
        assert torch.equal(any_lm(**tokens(side)).logits, clean)


@pytest.mark.parametrize("site", ["{}.1", "{}.2:in", "{}.3", "{}.3:in"])
def test_a_block_patched_with_another_prompt_gives_the_logits_of_that_prompt(
    any_lm: PreTrainedModel, site: str
):
    site = site.format(stack(any_lm))
    one, other = tokens(seed=0), tokens(seed=1)
    with capture(any_lm, [site]) as activations:
        expected = any_lm(**other).logits
    with patch(any_lm, {site: lambda activation: activations[site]}):
        assert torch.equal(any_lm(**one).logits, expected)
    assert not torch.allclose(any_lm(**one).logits, expected)


def test_tuple_outputs_and_keyword_inputs_are_patched(any_lm: PreTrainedModel):
    block, names = f"{stack(any_lm)}.1", parts(any_lm)
    logits = []
    for site in (f"{block}.{names.attention}", f"{block}.{names.out}"):  # one value, two places
        with patch(any_lm, {site: lambda x: 3 * x}):
            logits.append(any_lm(**tokens()).logits)
    for site in (f"{block}.{names.attention}:in", f"{block}.{names.norm}"):
        with patch(any_lm, {site: lambda x: 3 * x}):
            logits.append(any_lm(**tokens()).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[2], logits[3])
    assert not torch.allclose(logits[0], any_lm(**tokens()).logits)


def test_the_later_context_sees_what_the_earlier_one_wrote(tiny_lm: PreTrainedModel):
    with (
        capture(tiny_lm, ["layers.1"]) as before,
        patch(tiny_lm, {"layers.1": lambda x: x + 1}),
        capture(tiny_lm, ["layers.1"]) as after,
    ):
        tiny_lm(**tokens())
    assert torch.equal(after["layers.1"], before["layers.1"] + 1)


def test_a_replacement_is_cast_to_the_models_dtype(make_tiny_lm: Callable):
    lm = make_tiny_lm("llama").to(torch.bfloat16)
    clean = lm(**tokens()).logits
    with patch(lm, {"layers.1": lambda x: x.double()}):
        assert torch.equal(lm(**tokens()).logits, clean)


def test_a_replacement_of_another_shape_is_refused(tiny_lm: PreTrainedModel):
    with (
        patch(tiny_lm, {"layers.1": lambda x: x[0]}),
        pytest.raises(ValueError, match=r"'layers.1' has shape \(12, 16\).*\(3, 12, 16\)"),
    ):
        tiny_lm(**tokens())


def test_an_activation_that_is_no_tensor_is_refused(tiny_lm: PreTrainedModel):
    layer = tiny_lm.base_model.layers[1]
    hook = layer.register_forward_hook(lambda module, args, output: {"hidden": output})
    with (
        capture(tiny_lm, ["layers.1"]),
        pytest.raises(ValueError, match=r"'layers.1' carries a dict, not a tensor"),
    ):
        tiny_lm(**tokens())
    hook.remove()


def boom(x: Tensor) -> Tensor:
    raise RuntimeError("boom")


def test_hooks_are_gone_after_use_and_after_an_exception(tiny_lm: PreTrainedModel):
    before = n_hooks(tiny_lm)
    contexts = [
        lambda: capture(tiny_lm, ["layers.1", "layers.2:in"]),
        lambda: patch(tiny_lm, {"layers.1": torch.clone, "layers.2:in": torch.clone}),
        lambda: splice(tiny_lm, ToySAE("layers.1", "layers.2"), spare_tokens=[2]),
    ]
    for context in contexts:
        with context():
            assert n_hooks(tiny_lm) > before
            tiny_lm(**tokens())
        assert n_hooks(tiny_lm) == before
        with pytest.raises(RuntimeError, match="boom"), context():
            raise RuntimeError("boom")
        assert n_hooks(tiny_lm) == before
    with pytest.raises(RuntimeError, match="boom"), patch(tiny_lm, {"layers.1": boom}):
        tiny_lm(**tokens())
    assert n_hooks(tiny_lm) == before


def test_a_block_that_broke_off_leaves_the_threads_context_as_it_was(tiny_lm: PreTrainedModel):
    with capture(tiny_lm, ["layers.1"]):
        tiny_lm(**tokens())
    before = dict(copy_context())
    with pytest.raises(RuntimeError, match="boom"), patch(tiny_lm, {"layers.1": boom}):
        tiny_lm(**tokens())
    assert dict(copy_context()) == before


def test_a_forward_method_that_a_module_had_of_its_own_is_back_after_a_replacement(
    make_tiny_lm: Callable,
):
    def breaks(*args: object, **kwargs: object) -> Tensor:
        raise RuntimeError("boom")

    lm = make_tiny_lm("gemma2")
    block = lm.base_model.layers[1]
    own = block.forward = partial(type(block).forward, block)  # as accelerate's hooks set one
    with running_as({block: own}):
        lm(**tokens())
    assert vars(block)["forward"] is own
    with pytest.raises(RuntimeError, match="boom"), running_as({block: breaks}):
        lm(**tokens())
    assert vars(block)["forward"] is own


def test_hooks_are_gone_when_a_second_site_is_unknown(tiny_lm: PreTrainedModel):
    before = n_hooks(tiny_lm)
    with pytest.raises(ValueError), capture(tiny_lm, ["layers.1", "layers.9"]):
        pass
    with pytest.raises(ValueError), patch(tiny_lm, {"layers.1": torch.clone, "nope": torch.clone}):
        pass
    with pytest.raises(ValueError), splice(tiny_lm, ToySAE("layers.1", "nope")):
        pass
    assert n_hooks(tiny_lm) == before


def test_replacements_nest_in_one_thread():
    """A plain lock would wait for itself here."""
    module, x = torch.nn.Identity(), torch.ones(1)
    with running_as({module: lambda x: 2 * x}, eager=False):
        with running_as({module: lambda x: 3 * x}, eager=False):
            assert module(x) == 3
        assert module(x) == 2
    assert module(x) == 1


def test_threads_capture_and_patch_their_own_forward_passes_only(tiny_lm: PreTrainedModel):
    """Eight threads on one model, each with another text and another patch."""
    expected, found, ready = {}, {}, threading.Barrier(8)

    def run(i: int) -> Tensor:
        with patch(tiny_lm, {"layers.1": lambda x: x + i}), capture(tiny_lm, ["layers.2"]) as acts:
            for _ in range(5):
                tiny_lm(**tokens(seed=i))
        return acts["layers.2"]

    def session(i: int) -> None:
        ready.wait()
        found[i] = run(i)

    for i in range(8):
        expected[i] = run(i)
    threads = [threading.Thread(target=session, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(8))


def test_a_hook_that_is_called_while_another_thread_removes_it_does_nothing(
    tiny_lm: PreTrainedModel,
):
    """torch then calls it without the keyword arguments that it was registered for."""
    with splice(tiny_lm, ToySAE("layers.1:in")):
        decoder, layer = tiny_lm.base_model, tiny_lm.base_model.layers[1]
        for module in (decoder, layer):
            [hook, *_] = module._forward_pre_hooks.values()
            assert hook(module, (torch.zeros(1, 1, 16),)) is None
        tiny_lm(**tokens())
