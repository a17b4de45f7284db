"""The example of a new variant in the models' docstring, and what a class says of its variant."""

import gc
import textwrap

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel

import hfsae
from hfsae.cards.card import misgivings
from hfsae.convert import WRITTEN, save_as
from hfsae.convert.saebench import SAEBenchSAE
from hfsae.io.errors import Refused
from hfsae.models.base import class_of

from ..helpers import variants


@pytest.fixture
def example():
    """The names that the docstring's code defines; gone after the test, as others look at all."""
    code = "".join(
        line
        for line in hfsae.models.__doc__.splitlines(keepends=True)
        if line.startswith("    ") or not line.strip()
    )
    names = {"__name__": "own_module"}
    exec(textwrap.dedent(code), names)
    yield names
    MODEL_MAPPING._extra_content.pop(names["SquaredSAEConfig"])
    CONFIG_MAPPING._extra_content.pop("squared_sae")
    names.clear()
    gc.collect()


def test_the_example_of_a_new_variant_is_one(example):
    sae = example["SquaredSAE"](example["SquaredSAEConfig"](d_in=4, d_sae=8))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = (x @ sae.W_enc).relu().square()
    assert torch.equal(sae.encode(x), expected) and (expected > 0).any()
    assert torch.equal(sae(x).recon, expected @ sae.W_dec)
    sae(x, return_loss=True).loss.backward()
    assert sae.W_enc.grad.abs().sum() > 0


def test_a_variant_that_is_defined_loads_as_any_other(example, tmp_path):
    sae = example["SquaredSAE"](example["SquaredSAEConfig"](d_in=4, d_sae=8))
    sae.save_pretrained(tmp_path)
    for again in (AutoModel.from_pretrained(tmp_path), hfsae.load(tmp_path)):
        assert type(again) is example["SquaredSAE"]
        assert torch.equal(again.W_enc, sae.W_enc)


@pytest.mark.parametrize("to", [name for name in WRITTEN if name != "hfsae"])
def test_other_formats_refuse_a_variant_that_they_do_not_know(example, tmp_path, to):
    fields = {"d_in": 4, "d_sae": 8, "site": "layers.1", "model_name": "google/gemma-2-2b"}
    why = "one transcoder at each layer" if to == "circuit_tracer" else "SquaredSAE"
    with pytest.raises(Refused, match=why):
        save_as(example["SquaredSAE"](example["SquaredSAEConfig"](**fields)), tmp_path / to, to)
    assert not (tmp_path / to).exists()


def test_saebench_is_given_no_variant_that_it_does_not_know(example):
    fields = {"d_in": 4, "d_sae": 8, "site": "layers.1", "model_name": "google/gemma-2-2b"}
    with pytest.raises(Refused, match="SquaredSAE cannot be written as a JumpReLU SAE"):
        SAEBenchSAE(example["SquaredSAE"](example["SquaredSAEConfig"](**fields)))


def test_a_cell_that_runs_again_replaces_its_variant(example):
    first = example["SquaredSAE"]
    exec("class SquaredSAEConfig(SAEConfig):\n    model_type = 'squared_sae'", example)
    exec("class SquaredSAE(SAE):\n    config_class = SquaredSAEConfig", example)
    again = AutoModel.from_config(example["SquaredSAEConfig"](d_in=4, d_sae=8))
    assert type(again) is example["SquaredSAE"] is not first
    MODEL_MAPPING._extra_content.pop(first.config_class)


def test_a_class_below_a_variant_does_not_take_its_place():
    class Mine(hfsae.JumpReLUSAE):
        pass

    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=8)
    assert type(AutoModel.from_config(config)) is hfsae.JumpReLUSAE


def test_a_card_says_that_nothing_moves_the_l0_of_a_variant(example, tmp_path):
    (tmp_path / "evaluation.json").write_text('{"metrics": {"l0": {"value": 90.0}}}')
    (tmp_path / "config.json").write_text('{"model_type": "squared_sae", "target_l0": 50}')
    (sentence,) = misgivings(tmp_path)
    assert "has no `sparsity_losses`, so nothing moves L0" in sentence


def test_the_class_says_what_a_card_shows(example):
    kind = class_of("squared_sae")
    assert kind is example["SquaredSAE"]
    assert kind.formula().startswith("latents = relu(z)^2,  z = x W_enc + b_enc;")
    assert kind.papers() == ["2406.04093"]
    assert class_of("another_sae") is class_of("sae") is class_of(None) is None


def test_every_variant_has_a_formula_and_a_paper():
    for config in variants():
        kind = class_of(config.model_type)
        assert kind.config_class is config
        assert kind.formula().startswith("latents = ") and kind.papers()
        assert set(config.options_on_card) <= set(config.__dataclass_fields__)
