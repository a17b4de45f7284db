"""The logit lens against the LM: write the direction to its last block, read the logits."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from hfsae.features import logit_lens
from hfsae.features.logit_lens import lens_tokens, residual_directions
from hfsae.lm import patch

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
GATED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
GEMMA = {**GATED, "final_logit_softcapping": None}
FAMILIES = {
    "gemma2": (Gemma2Config(**GEMMA), "layers.1"),
    "gemma3": (Gemma3TextConfig(**GEMMA), "layers.1"),
    "llama": (LlamaConfig(**GATED), "layers.1"),
    "mistral": (MistralConfig(**GATED), "layers.1"),
    "qwen3": (Qwen3Config(**GATED), "layers.1"),
    "gpt2": (GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50), "h.1"),
    "gpt_neox": (GPTNeoXConfig(**SIZES, intermediate_size=24), "layers.1"),
    "opt": (OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16), "decoder.layers.1"),
    "cohere": (CohereConfig(**GATED), "layers.1"),
}


def tiny(config):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in lm.named_parameters():
        if parameter.ndim == 1 and ("norm" in name or "ln_" in name):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return lm


def logits_after(lm, site, direction):
    """Logits with 1e3 times the direction as the last block's output."""
    with patch(lm, {site: lambda x: 1e3 * direction.expand_as(x)}):
        return lm(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_lens_logits_are_the_lms_own_up_to_a_factor(family):
    config, site = FAMILIES[family]
    lm = tiny(config)
    directions = torch.randn(6, 16)
    promoted, logits, suppressed, _ = lens_tokens(lm, directions, k=50, n_vocab=50)
    for i, direction in enumerate(directions):
        # half the difference: biases of norm and head drop out, the norm being odd but for them
        difference = logits_after(lm, site, direction) - logits_after(lm, site, -direction)
        expected = difference / 2
        assert promoted[i, :5].tolist() == expected.topk(5).indices.tolist()
        assert suppressed[i, :5].tolist() == (-expected).topk(5).indices.tolist()
        found = torch.empty(50).scatter_(0, promoted[i], logits[i])
        factor = found @ expected / (expected @ expected)
        torch.testing.assert_close(found, factor * expected, rtol=1e-3, atol=1e-4 * found.max())
        assert factor > 0


def test_lens_logits_carry_the_gain_and_no_factor():
    lm = tiny(FAMILIES["gemma2"][0])
    direction = torch.randn(1, 16)
    _, promoted_logits, *_ = lens_tokens(lm, direction, k=3, n_vocab=50)
    logits = lm.lm_head.weight @ (direction[0] * (1 + lm.model.norm.weight))
    torch.testing.assert_close(promoted_logits[0], logits.topk(3).values)


def test_an_embedding_taken_in_pieces_gives_the_same_tokens(monkeypatch):
    lm, directions = tiny(FAMILIES["llama"][0]), torch.randn(4, 16)
    whole = lens_tokens(lm, directions, k=9, n_vocab=50)
    monkeypatch.setattr(logit_lens, "LENS_EMBEDDING", 7 * 16)  # less than k tokens a piece
    pieces = lens_tokens(lm, directions, k=9, n_vocab=50)
    assert torch.equal(pieces[0], whole[0]) and torch.equal(pieces[2], whole[2])
    torch.testing.assert_close(pieces, whole)


def test_tokens_past_the_vocabulary_are_left_out():
    promoted, *_ = lens_tokens(tiny(FAMILIES["llama"][0]), torch.randn(4, 16), k=100, n_vocab=20)
    assert promoted.shape == (4, 20) and promoted.max() == 19


@pytest.mark.parametrize(
    ("family", "site"), [("llama", "layers.0.self_attn.o_proj:in"), ("gpt2", "h.0.attn.c_proj:in")]
)
def test_directions_before_a_linear_map_go_through_it(family, site):
    lm, W_dec = tiny(FAMILIES[family][0]), torch.randn(5, 16)
    linear = lm.base_model.get_submodule(site.removesuffix(":in"))
    expected = linear(W_dec) - linear(torch.zeros(16))
    torch.testing.assert_close(residual_directions(lm, W_dec, site), expected)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
@pytest.mark.parametrize(
    ("place", "norm"),
    [
        ("self_attn", "post_attention_layernorm"),
        ("self_attn.o_proj", "post_attention_layernorm"),
        ("self_attn.o_proj:in", "post_attention_layernorm"),
        ("mlp", "post_feedforward_layernorm"),
        ("mlp.down_proj", "post_feedforward_layernorm"),
    ],
)
def test_directions_go_through_the_norm_of_a_sublayers_output(family, place, norm):
    lm, W_dec = tiny(FAMILIES[family][0]), torch.randn(5, 16)
    block = lm.base_model.layers[1]
    written = block.self_attn.o_proj(W_dec) if place.endswith(":in") else W_dec
    found = residual_directions(lm, W_dec, f"layers.1.{place}")
    expected = block.get_submodule(norm)(1e4 * written)  # the norm's own, of any length
    torch.testing.assert_close(torch.cosine_similarity(found, expected), torch.ones(5))


def test_a_sublayer_that_adds_the_residual_itself_writes_to_the_stream():
    lm = tiny(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=50))
    W_dec = torch.randn(5, 16)
    assert torch.equal(residual_directions(lm, W_dec, "h.0.self_attention"), W_dec)


def test_directions_of_gemmas_residual_stream_are_left_as_they_are():
    lm, W_dec = tiny(FAMILIES["gemma2"][0]), torch.randn(5, 16)
    assert torch.equal(residual_directions(lm, W_dec, "layers.0"), W_dec)
    assert torch.equal(residual_directions(lm, W_dec, "embed_tokens"), W_dec)


def test_directions_after_a_module_are_left_as_they_are():
    lm, W_dec = tiny(FAMILIES["llama"][0]), torch.randn(5, 16)
    assert torch.equal(residual_directions(lm, W_dec, "layers.0.self_attn.o_proj"), W_dec)


def test_a_site_of_another_width_has_no_lens():
    lm = tiny(FAMILIES["llama"][0])
    assert residual_directions(lm, torch.randn(5, 24), "layers.0.mlp.act_fn") is None
