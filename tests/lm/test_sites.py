"""Sites in a language model by name, in every decoder family."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from hfsae.lm import (
    Site,
    blocks_below,
    capture,
    find_module,
    site_width,
    special_ids,
    splice,
)

from ..tiny import stack, tokens
from .toys import IdentitySAE, ToySAE


def test_a_site_is_a_module_path_with_out_as_the_default_port():
    assert Site.parse("layers.12") == Site("layers.12", "out") == Site.parse("layers.12:out")
    assert Site.parse("layers.12.self_attn.o_proj:in") == Site("layers.12.self_attn.o_proj", "in")
    assert str(Site.parse("layers.12:out")) == "layers.12"
    assert str(Site.parse("layers.12:in")) == "layers.12:in"


@pytest.mark.parametrize("text", ["", ":in", "layers.1:", "layers.1:input", "layers.1:in:out"])
def test_a_malformed_site_is_refused_with_the_grammar(text: str):
    with pytest.raises(ValueError, match=r"does not have the form '<module path>\[:in\|:out\]'"):
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
