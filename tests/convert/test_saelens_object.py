"""SAE.to_saelens(). What its numbers are is checked by scripts/interop/check_to_saelens.py, in an
environment that has SAELens; here a stand-in shows what is passed to it."""

import sys
from types import ModuleType

import pytest
import torch

from hfsae import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig


class StandIn(torch.nn.Module):
    @classmethod
    def from_dict(cls, config):
        made = cls()
        made.config, made.calls = config, []
        return made

    def process_state_dict_for_loading(self, state):
        self.calls.append("process")

    def load_state_dict(self, state):
        self.calls.append(sorted(state))


def test_without_saelens_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8))
    with pytest.raises(ImportError, match="`pip install sae-lens`") as caught:
        sae.to_saelens()
    assert "\n" not in str(caught.value)


def test_what_saelens_has_not_is_refused_before_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    sae = TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2, selection="groupmax"))
    with pytest.raises(ValueError, match="SAELens' topk can only take the k largest of all"):
        sae.to_saelens()


def test_saelens_gets_its_own_config_and_tensors(monkeypatch):
    module = ModuleType("sae_lens")
    module.SAE = StandIn
    monkeypatch.setitem(sys.modules, "sae_lens", module)
    made = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8)).to_saelens()
    assert made.config["architecture"] == "jumprelu"
    assert (made.config["d_in"], made.config["d_sae"]) == (4, 8)
    assert made.calls == ["process", ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]]
    assert not made.training
