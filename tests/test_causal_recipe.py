"""Cross-layer transcoders in recipes: places in few words, and what does not fit."""

import pytest

from hfsae.runs import make_configs

from .tiny import tiny_recipe

ARROWS = ["layers.{0..2}.mlp:in -> layers.{}.mlp"]
CLT = {"model_type": "batch_topk_clt", "site": None, "d_sae": 48, "sites": ARROWS}


def test_arrows_name_sites_and_target_sites(tmp_path, tiny_lm):
    recipe = tiny_recipe(tmp_path, sae=CLT)
    assert recipe.sae["sites"] == [f"layers.{i}.mlp:in" for i in range(3)]
    assert recipe.sae["target_sites"] == [f"layers.{i}.mlp" for i in range(3)]
    assert {*recipe.sites} == {*recipe.sae["sites"], *recipe.sae["target_sites"]}
    config = make_configs(recipe, tiny_lm)[""]
    assert config.d_in == config.d_out == 48 and config.is_transcoder
    assert dict(config.writes) == dict.fromkeys(recipe.sae["target_sites"], 16)
    own = {**CLT, "sites": ["layers.{0,1}"]}  # targets are the sites themselves
    assert not make_configs(tiny_recipe(tmp_path, sae=own), tiny_lm)[""].is_transcoder


@pytest.mark.parametrize(
    ("given", "sites"),
    [
        ("layers.0,layers.2", ["layers.0", "layers.2"]),
        ("layers.{0,2}.mlp, layers.1", ["layers.0.mlp", "layers.2.mlp", "layers.1"]),
        ("layers.{0..1}", ["layers.0", "layers.1"]),
    ],
)
def test_sites_in_one_text_stand_between_commas_outside_braces(tmp_path, given, sites):
    sae = {"model_type": "batch_topk_sae", "site": None, "sites": given}
    assert tiny_recipe(tmp_path, sae=sae).sae["sites"] == sites


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "batch_topk_sae"}, r"set sae\.model_type to batch_topk_clt or jumprelu_c"),
        ({"target_sites": ["layers.0"]}, r"sae\.sites has an arrow .* leave out one"),
        ({"sites": [*ARROWS, "layers.3.mlp:in"]}, "with an arrow and places without; write all"),
        (
            {"sites": ["layers.{0,1}.self_attn.o_proj:in -> layers.{}"]},
            r"sae\.target_sites are \[16, 16\] wide, and sae\.sites \[24, 24\]|sites of one width",
        ),
        ({"d_sae": 49}, r"d_sae \(49\) is not divisible by 3 sources"),
        ({"sites": ["layers.{1..2} -> layers.{}", "layers.0 -> layers.0"]}, "lies before"),
    ],
)
def test_recipes_whose_places_do_not_fit_are_refused(tmp_path, tiny_lm, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_configs(tiny_recipe(tmp_path, sae=CLT | fields), tiny_lm)
