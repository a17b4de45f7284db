"""Effects of latents on logits, against a forward pass of the whole text for each."""

import pytest
import torch
from comparisons.causal_control import causal_control
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hfsae import splice
from hfsae.models import SAE

from ..tiny import make_sae, tokens

IDS = tokens(rows=2, ctx=7)["input_ids"]
PLACES = (IDS > 2)[:, :-1].nonzero().tolist()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(make_tiny_lm, request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_tiny_lm(request.param)


def sae_for(lm: PreTrainedModel, variant: str) -> SAE:
    return make_sae("h.1" if lm.config.model_type == "gpt2" else "layers.1", variant)


def run(lm: PreTrainedModel, sae: SAE, row: int, column: int, factors: Tensor) -> Tensor:
    """Logits [n, vocab] at a token whose latents alone are multiplied by factors [n, d_sae]; the
    whole text in one pass."""

    def edit(latents: Tensor) -> Tensor:
        new = latents.clone()
        new[:, column] *= factors
        return new

    ids = IDS[row : row + 1].expand(len(factors), -1)
    with torch.no_grad(), splice(lm, sae, error_term=True, edit=edit):
        return lm(ids, use_cache=False).logits[:, column].float()


def m(logits: Tensor, row: int, column: int) -> Tensor:
    return logits[:, IDS[row, column + 1]] - logits.mean(dim=-1)


def effects(lm: PreTrainedModel, sae: SAE, row: int, column: int) -> Tensor:
    """Of each latent, by central differences."""
    one = torch.eye(sae.config.d_sae)
    up, down = (m(run(lm, sae, row, column, 1 + h * one), row, column) for h in (0.01, -0.01))
    return (up - down) / 0.02


@pytest.mark.parametrize("variant", ["relu", "jumprelu", "layer_norm"])
def test_interventions_are_those_of_a_whole_pass_without_a_cache(lm: PreTrainedModel, variant: str):
    sae = sae_for(lm, variant)
    found = causal_control(lm, sae, IDS, n_tokens=1000, counts=(1, 10**6))
    expected = []
    for row, column in PLACES:
        one = torch.ones(sae.config.d_sae)
        best = int(effects(lm, sae, row, column).abs().argmax())
        without = one.index_fill(0, torch.tensor([best]), 0)
        edits = torch.stack([one, without, 2 * one - without, one - without, 0 * one])
        logits = run(lm, sae, row, column, edits)
        clean, ablated, doubled, alone, empty = m(logits, row, column)
        others = torch.arange(logits.shape[1]) != IDS[row, column + 1]
        p, q = F.log_softmax(logits[:2, others], dim=1)
        off_target = F.kl_div(q, p, log_target=True, reduction="sum")
        expected.append(
            [ablated - clean, doubled - clean, off_target, alone - empty, clean - empty]
        )
    got = [*found.change[:, 0], found.off_target[0, 0], found.alone[0, 0], found.whole]
    got = torch.stack(got, dim=1)
    torch.testing.assert_close(
        got[got[:, 0].argsort()],
        torch.tensor(sorted(expected)),
        atol=2e-5,
        rtol=2e-3,
    )
    torch.testing.assert_close(found.without[0, 0], -found.change[0, 0])
    for all_of_them in (found.alone[:, 1], found.without[:, 1]):
        torch.testing.assert_close(all_of_them, found.whole.expand(2, -1), atol=2e-5, rtol=1e-4)


def test_controls_are_as_large_as_what_they_control(lm: PreTrainedModel):
    found = causal_control(lm, sae_for(lm, "relu"), IDS, n_tokens=1000)
    latent, matched, direction = found.norm
    torch.testing.assert_close(direction, latent)
    assert (matched > 0).all() and not torch.equal(matched, latent)
    assert (found.change[:, 1:] != 0).all()


def test_tokens_are_the_same_for_every_sae_and_those_of_few_latents_count_for_nothing(
    lm: PreTrainedModel,
):
    sae = sae_for(lm, "topk")
    one = type(sae)(sae.config.__class__(**{**sae.config.to_dict(), "k": 1}))
    few = causal_control(lm, one, IDS, n_tokens=3)
    assert few.change.shape == (2, 3, 3) and few.alone.shape == (2, 6, 3)
    assert few.change.isnan().all() and few.whole.isnan().all()
    again = [causal_control(lm, sae, IDS, n_tokens=3, seed=s) for s in (1, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


def test_a_text_without_a_token_to_intervene_at_is_told(lm: PreTrainedModel):
    with pytest.raises(ValueError, match="no token to intervene at: all 2 tokens"):
        causal_control(lm, sae_for(lm, "relu"), IDS[:1, :2], spare_tokens=IDS[0, :2].tolist())
