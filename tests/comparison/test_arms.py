"""Arms of a comparison: what each is made of, and which cannot be."""

from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from hfsae.comparison import Comparison, arm_runs
from hfsae.training import TrainingArguments

ARMS = {
    "jumprelu": {
        "sae": {"model_type": "jumprelu_sae"},
        "sweep": {"target_l0": [4, 8]},
        "training": {"learning_rate": 3e-3},
    },
    "topk": {"sae": {"model_type": "topk_sae"}, "sweep": {"k": [4, 8]}},
}


def comparison(**fields) -> Comparison:
    given = {"sae": {"site": "layers.1", "d_sae": 32}, "arms": ARMS, "seeds": [3, 5]}
    return Comparison(**{**given, "training": TrainingArguments(output_dir="runs/c"), **fields})


def test_each_arm_and_seed_is_a_training_recipe():
    runs = {(r.arm, r.seed): r for r in arm_runs(comparison())}
    assert list(runs) == [("jumprelu", 3), ("topk", 3), ("jumprelu", 5), ("topk", 5)]
    one = runs["jumprelu", 5]
    assert one.recipe.seed == one.recipe.shuffle.seed == 5
    assert one.recipe.training.learning_rate == 3e-3
    assert runs["topk", 5].recipe.training.learning_rate == TrainingArguments().learning_rate
    assert one.recipe.sae_fields()["target_l0_8"] == {
        "site": "layers.1",
        "d_sae": 32,
        "model_type": "jumprelu_sae",
        "target_l0": 8,
    }
    assert str(one.folders["target_l0_4"]) == "runs/c/jumprelu/seed_5/target_l0_4"


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"arms": {}}, "needs arms and seeds"),
        ({"seeds": []}, "needs arms and seeds"),
        ({"seeds": [1, 1]}, "repeats a seed"),
        ({"reference": "relu"}, "'relu' is not an arm; arms: jumprelu, topk"),
        ({"only": ["topk", "relu"]}, "only 'relu' is not an arm; arms: jumprelu, topk"),
        ({"saes": {"a": {}}}, "arms instead of saes"),
        ({"arms": {"a": {"sweep": {"k": []}}}}, "arm a needs `sweep`"),
        ({"arms": {"a": {"sweep": {"k": [1], "d_sae": [2]}}}}, "arm a needs `sweep`"),
        ({"arms": {"a": {"sae": {}}}}, "arm a needs `sweep`"),
        ({"arms": {"a": {"sweeps": {"k": [1]}}}}, "arm a has no 'sweeps'"),
        ({"arms": {"a": {"sae": 5, "sweep": {"k": [1]}}}}, "sae of arm a must hold fields, got 5"),
        ({"arms": {"a": {"sweep": {"penalty": ["l1"]}}}}, "penalty over 'l1', not a number"),
        ({"arms": {"a": {"sweep": {"k": [None, 4]}}}}, "k over None, not a number"),
        ({"arms": {"a": {"sweep": {"k": [4, 8, 4]}}}}, "two of which are equal to six digits"),
        ({"arms": {"a": {"sweep": {"k": [4]}, "made_by": 3}}}, "made_by 3; give a library and"),
        ({"arms": {"a": {"sweep": {"k": [4]}, "made_by": "sparsify"}}}, "made_by 'sparsify'; give"),
        (
            {"arms": {"a": {"sweep": {"k": [1]}, "training": {"n_tokens": 5}}}},
            "arm a cannot set training.n_tokens",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        comparison(**fields)


def test_some_arms_alone_are_the_same_runs():
    every = {(r.arm, r.seed): r for r in arm_runs(comparison())}
    some = comparison(only=["topk"], reference="jumprelu", seeds=[5])
    (one,) = arm_runs(some)
    assert one.folders == every["topk", 5].folders
    assert one.recipe.sae_fields() == every["topk", 5].recipe.sae_fields()
    assert some.reference_arm == "topk"


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "scripts" / "comparisons").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_comparisons_that_come_along_are_of_saes_that_there_are(path):
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    training = TrainingArguments(**given.pop("training"))
    of_a_recipe = {key: given[key] for key in ("sae", "arms", "seeds", "at_l0")}
    runs = list(arm_runs(Comparison(**of_a_recipe, training=training)))
    assert len(runs) == len(given["arms"]) * len(given["seeds"])
    for run in runs:
        for fields in run.recipe.sae_fields().values():
            assert AutoConfig.for_model(d_in=576, **fields).d_sae == given["sae"]["d_sae"]


def test_a_whole_number_where_an_optimiser_wants_a_float_is_one(tmp_path):
    """The paper's beta1 is 0, which YAML reads as a whole number: torch refused it in mid-run."""
    given = {"topk": {"sweep": {"k": [3]}, "training": {"adam_beta1": 0, "learning_rate": 1}}}
    (run,) = arm_runs(Comparison(arms=given, seeds=[0]))
    beta1 = run.recipe.training.adam_beta1
    assert beta1 == 0 and type(beta1) is float and type(run.recipe.training.learning_rate) is float
