"""An SAE and a model that is not the one it was trained on."""

import copy
import warnings

import pytest
import torch

from hfsae import JumpReLUSAE, JumpReLUSAEConfig, collect, splice
from hfsae.lm import cache_name
from hfsae.lm.contract import check, differences, terms, tokenizer_hash


@pytest.fixture
def sae(tiny_lm, tiny_tokenizer) -> JumpReLUSAE:
    """As if trained on tiny_lm, called google/tiny."""
    config = JumpReLUSAEConfig(
        d_in=16, d_sae=32, site="layers.1", model_name="google/tiny", model_revision="a" * 40
    )
    for term, value in terms(tiny_lm, tiny_tokenizer, "row").items():
        setattr(config, term, value)
    return JumpReLUSAE(config).eval()


@pytest.fixture
def lm(make_tiny_lm):
    made = make_tiny_lm("gemma2")
    made.name_or_path, made.config._commit_hash = "google/tiny", "a" * 40
    return made


def run(lm, sae, ids=((2, 70, 71), (0, 2, 70))) -> None:
    with torch.no_grad(), splice(lm, sae):
        lm(torch.tensor(ids))


def test_the_model_it_was_trained_on_is_no_difference(lm, sae, tiny_tokenizer):
    assert differences(sae.config, lm, tiny_tokenizer) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lm, sae)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda lm, sae: setattr(lm, "name_or_path", "google/tiny-it"),
            "SAE at layers.1: the model is google/tiny-it, and was google/tiny in training",
        ),
        (
            lambda lm, sae: setattr(lm.config, "_commit_hash", "b" * 40),
            f"its revision is {'b' * 40}, and was {'a' * 40} in training: its weights may differ",
        ),
        (
            lambda lm, sae: setattr(sae.config, "model_attention", "sdpa"),
            "its attention implementation is eager, and was sdpa in training",
        ),
        (
            lambda lm, sae: lm.to(torch.bfloat16),
            "its dtype is bfloat16, and was float32 in training",
        ),
    ],
)
def test_each_difference_is_a_readable_warning(lm, sae, change, sentence):
    change(lm, sae)
    with pytest.warns(UserWarning) as caught:
        check(sae.config, lm)
    assert len(caught) == 1 and sentence in str(caught[0].message)
    with pytest.warns(UserWarning, match="and was .* in training"):
        run(lm, sae)


def test_another_tokenizer_is_an_error(lm, sae, tiny_tokenizer):
    sae.config.tokenizer_hash = "0123456789abcdef"
    with pytest.raises(
        ValueError, match=r"not for this model: the tokenizer's hash is .* text has"
    ):
        collect(lm, sae, [], tokenizer=tiny_tokenizer)
    sae.config.tokenizer_hash = tokenizer_hash(tiny_tokenizer)
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["a-token-more"])
    with pytest.raises(ValueError, match="the tokenizer's hash is"):
        collect(lm, sae, [], tokenizer=other)
    with pytest.raises(ValueError, match="no token is left to collect from"):
        collect(lm, sae, [], tokenizer=tiny_tokenizer)


def test_text_without_bos_is_a_warning_and_generation_none(lm, sae):
    with pytest.warns(UserWarning, match=r"does not begin with BOS \(id 2\).*tokenizer\.bos_token"):
        run(lm, sae, ((2, 70, 71), (72, 70, 71)))
    with warnings.catch_warnings(), torch.no_grad(), splice(lm, sae):
        warnings.simplefilter("error")
        lm.generate(torch.tensor([[2, 70, 71]]), max_new_tokens=3, do_sample=False)
    sae.config.bos = "none"
    run(lm, sae, ((70, 71, 72),))


def test_text_that_goes_on_from_a_cache_needs_no_bos_of_its_own(lm, sae):
    with torch.no_grad():
        cache = lm(torch.tensor([[2, 70]]), use_cache=True)[cache_name(lm)]
        with warnings.catch_warnings(), splice(lm, sae):
            warnings.simplefilter("error")
            lm(input_ids=torch.tensor([[71, 72]]), **{cache_name(lm): cache})


def test_a_site_or_width_of_another_model_is_an_error(lm, sae, make_tiny_lm):
    sae.config.site = "layers.9"
    with pytest.raises(ValueError, match=r"'layers\.9' is past the end"):
        run(lm, sae)
    sae.config.site = "layers.1"
    with pytest.raises(ValueError, match="reads activations of width 16"):
        run(make_tiny_lm("gemma2", hidden_size=24), sae)


def test_what_nobody_recorded_is_no_difference(lm, tiny_tokenizer):
    assert differences(JumpReLUSAEConfig(d_in=16, d_sae=32), lm, tiny_tokenizer) == []
