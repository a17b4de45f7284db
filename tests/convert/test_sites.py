"""Hook names and sites, against the arithmetic of a transformer block."""

import pytest
import torch

from hfsae import capture
from hfsae.convert.sites import family, hub_id, to_hook, to_site
from hfsae.lm import find_module

NAMES = {
    "gemma2": "google/gemma-2-2b",
    "gemma3": "google/gemma-3-1b-pt",
    "llama": "meta-llama/Llama-3.2-1B",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "qwen2": "Qwen/Qwen2.5-0.5B",
    "qwen3": "Qwen/Qwen3-0.6B",
    "gpt2": "openai-community/gpt2",
    "gpt_neox": "EleutherAI/pythia-70m",
}


@pytest.mark.parametrize("name", NAMES)
def test_hooks_are_where_transformer_lens_has_them(name, make_tiny_lm):
    """What a block adds to the residual stream is what its hooks say: before + attn + mlp."""
    lm, hooks = make_tiny_lm(name), family(NAMES[name])
    sites = {hook: to_site(hook.format(1), NAMES[name]) for hook in hooks}
    with torch.no_grad(), capture(lm, list(sites.values())) as acts:
        lm(torch.tensor([[2, 70, 71, 72]]))
    at = {hook.rpartition("hook_")[2]: acts[site] for hook, site in sites.items()}
    assert torch.allclose(
        at["resid_post"], at["resid_pre"] + at["attn_out"] + at["mlp_out"], atol=1e-4
    )
    if name != "gpt_neox":  # there the two run side by side
        assert torch.allclose(at["resid_mid"], at["resid_pre"] + at["attn_out"], atol=1e-4)
    heads = lm.config.num_attention_heads * getattr(lm.config, "head_dim", 8)
    assert at["z"].shape[-1] == heads
    mlp = find_module(lm, sites["blocks.{}.mlp.hook_in"].removesuffix(":in"))
    with torch.no_grad():
        inner = mlp(at["in"])
    if name in ("gemma2", "gemma3"):
        inner = find_module(lm, sites["blocks.{}.hook_mlp_out"])(inner)
    assert torch.allclose(inner, at["mlp_out"], atol=1e-5)
    assert at["post"].shape[-1] == getattr(lm.config, "intermediate_size", 64)
    assert at["embed"].shape == at["resid_pre"].shape


@pytest.mark.parametrize("model_name", NAMES.values())
def test_every_hook_has_a_way_back(model_name):
    for pattern in family(model_name):
        hook = pattern.format(11)
        site = to_site(hook, model_name)
        assert to_hook(site, model_name) == hook
        assert to_hook(f"model.{site}", model_name) == hook


@pytest.mark.parametrize(
    "hook, model_name",
    [
        ("blocks.3.ln2.hook_normalized", "gemma-2-2b"),  # before the gain: no module's end
        ("blocks.3.hook_resid_mid", "pythia-70m"),
        ("blocks.3.hook_resid_post", "somebody/model"),
        (None, "gpt2"),
        ("blocks.3.hook_resid_post", None),
    ],
)
def test_a_hook_without_a_site_has_none(hook, model_name):
    assert to_site(hook, model_name) is None


@pytest.mark.parametrize(
    "short, full",
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-2b-it", "google/gemma-2-2b-it"),
        ("gemma-2b", "google/gemma-2b"),
        ("qwen2.5-0.5b", "Qwen/qwen2.5-0.5b"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("tiny-stories-1M", "tiny-stories-1M"),
        (None, None),
    ],
)
def test_short_names_become_hub_ids(short, full):
    assert hub_id(short) == full


def test_gemma_1_is_no_gemma_2():
    assert to_site("blocks.3.hook_mlp_out", "gemma-2b") == "layers.3.mlp"
    assert to_site("blocks.3.hook_mlp_out", "gemma-2-2b") == "layers.3.post_feedforward_layernorm"
