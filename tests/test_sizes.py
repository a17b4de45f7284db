"""Tokens of the stages after training, where a recipe leaves them to the training's length."""

from typing import Any

import pytest

from hfsae import Refused
from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.evaluation import EvaluationArguments
from hfsae.features import FeatureStore
from hfsae.runs import Recipe, load_plain, run
from hfsae.training import TrainingArguments

from .tiny import tiny_recipe


def test_what_a_recipe_leaves_to_the_training_follows_its_length_and_given_numbers_stand():
    def sizes(n_tokens, **fields: Any):
        training = TrainingArguments(n_tokens=n_tokens, batch_size=64)
        open_names: dict[str, Any] = {"explain_tokens": "auto"}
        return Recipe(training=training, **open_names | fields).sizes

    assert sizes(20_000) == (250, 1900, 640, 0, 0)
    assert sizes(4_000_000_000) == (100_000, 1_000_000, 50_000, 0, 0)
    assert sizes(20_000, collect_tokens=150_000, explain_tokens=7) == (250, 150_000, 7, 0, 0)
    assert sizes(20_000, evaluation=EvaluationArguments(n_tokens=None)) == (None, 1900, 640, 0, 0)
    assert sizes(20_000, collect_tokens=0) == (250, 0, 0, 0, 0), "names stand beside examples"
    assert sizes(20_000, collect_tokens=0, explain_tokens=50) == (250, 0, 50, 0, 0)
    assert sizes(20_000, preset_seconds=9) == (250, 1900, 640, 0, 9)
    assert sizes(20_000, collect_tokens=0, preset_seconds=9).presets == 0, "nothing to look among"


def test_a_run_writes_down_the_numbers_that_it_chose_and_the_same_recipe_finds_it_complete(
    tmp_path, loads
):
    open_sizes = {"collect_tokens": "auto", "explain_tokens": "auto"}
    open_sizes |= {"evaluation": EvaluationArguments(bootstrap_samples=20)}
    run(tiny_recipe(tmp_path / "out", **open_sizes))
    plain = load_plain(tmp_path / "out")
    assert (plain["evaluation"]["n_tokens"], plain["collect_tokens"]) == (8, 61)
    assert FeatureStore.load(tmp_path / "out").meta["n_tokens"] < 200
    run(tiny_recipe(tmp_path / "out", **open_sizes))
    assert len(loads) == 1


def test_results_that_a_folder_has_stand_where_a_recipe_gives_no_other_number(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out"))  # 300 tokens of evaluation, 500 of examples
    before = load_plain(tmp_path / "out")
    evaluation = EvaluationArguments(bootstrap_samples=20)
    run(tiny_recipe(tmp_path / "out", collect_tokens="auto", evaluation=evaluation))
    assert len(loads) == 1 and load_plain(tmp_path / "out") == before
    run(tiny_recipe(tmp_path / "out", collect_tokens=700, evaluation=evaluation))
    assert len(loads) == 2 and load_plain(tmp_path / "out")["evaluation"]["n_tokens"] == 300


def test_a_stage_that_was_left_out_is_made_when_a_recipe_leaves_it_to_the_training(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out", collect_tokens=0))
    run(tiny_recipe(tmp_path / "out", collect_tokens="auto"))
    assert load_plain(tmp_path / "out")["collect_tokens"] == 61
    assert (tmp_path / "out" / "features" / "meta.json").is_file()


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("training.n_tokens", "1e30", "must be at most 10,000,000,000,000, got 1,000,000,000,"),
        ("training.output_dir", "", "training.output_dir is ''; name a folder, such as runs/mine"),
        ("training.output_dir", "  ", "name a folder, such as runs/mine"),
        ("training.dead_after_tokens", "1e30", "must be at most"),
        ("collect_tokens", "1e20", "must be at most"),
        ("collect_tokens", "some", "must be a whole number or 'auto', got 'some'"),
        ("evaluation.n_tokens", "1e20", "must be at most"),
        ("text.context_size", "1e9", "must be at most 16,777,216"),
        ("harvest.rows", "1e9", "must be at most"),
        ("shuffle.passes", "1e9", "must be at most"),
        ("shuffle.bucket_tokens", "1e18", "must be at most"),
        ("collect.top", "1e12", "must be at most"),
        ("seed", "-1", "must be a whole number from 0 to"),
        ("shuffle.seed", "1e30", "must be a whole number from 0 to"),
    ],
)
def test_what_nobody_means_is_refused_before_anything_is_planned(field, value, sentence):
    with pytest.raises(Refused, match=sentence):
        parse_recipe(recipe_parser("train"), ["quickstart", f"--{field}", value])
