"""The recipes of trials."""

from hfsae.tuning import Tuning, recipe_of

from ..tiny import tiny_fields


def test_a_trial_is_scored_and_neither_collects_nor_names(tmp_path):
    fields = tiny_fields(tmp_path, explain_tokens=500)
    tuning = Tuning(**fields, ranges={"training.learning_rate": [1e-3]}, rungs=1)
    recipe = recipe_of(tuning, "all-000", {"training.learning_rate": 2e-3}, 0)
    assert recipe.training.learning_rate == 2e-3 and recipe.evaluation.side == "validation"
    assert recipe.collect_tokens == recipe.explain_tokens == 0
