"""The script that draws a language model's weights anew."""

import torch

from ..helpers import script


def test_matrices_are_drawn_anew_with_their_spread_and_gains_stay(make_tiny_lm):
    lm, kept = make_tiny_lm("llama"), make_tiny_lm("llama")
    before = {name: p.clone() for name, p in lm.named_parameters()}
    script("redrawn_lm").redraw_(lm, 0, keep_embeddings=False)
    script("redrawn_lm").redraw_(kept, 0, keep_embeddings=True)
    for name, parameter in lm.named_parameters():
        old = before[name]
        assert torch.equal(parameter, old) == (old.ndim < 2), name
        if old.ndim > 1 and old.std() > 0:
            assert abs(parameter.std() / old.std() - 1) < 0.2
    embedding = kept.get_input_embeddings().weight
    assert torch.equal(embedding, before["model.embed_tokens.weight"])
