"""A search of settings: draws, halving, edges and growth, on a tiny language model."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

import hfsae.runs
from hfsae import tuning
from hfsae.activations import ActivationArguments
from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.evaluation import EvaluationResult
from hfsae.io.files import read_json
from hfsae.runs import read_recipe, run
from hfsae.tuning import Tuning, edge, recipe_of, score_of, tune

from ..helpers import at_each_pass, refused
from ..tiny import tiny_fields, tiny_recipe

TUNINGS = Path(__file__).parents[2] / "scripts/tuning"

RATES = {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}


def tiny_tuning(folder, **fields) -> Tuning:
    own = {"ranges": RATES, "trials": 3, "rungs": 2, "growth": 0}
    training = fields.pop("training", {})
    return Tuning(**{**tiny_fields(folder, training=training), **own, **fields})


def trials_in(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_the_better_half_goes_on_and_a_second_call_trains_nothing(tmp_path, loads):
    folder = tmp_path / "tuned"
    report = tune(tiny_tuning(folder), "hfsae tune x.yaml") / "report.md"
    lines = trials_in(folder)
    assert [(line["rung"], line["n_tokens"]) for line in lines] == [(0, 320)] * 3 + [(1, 640)] * 2
    first = sorted((line for line in lines if line["rung"] == 0), key=lambda line: line["score"])
    assert {line["name"] for line in lines[3:]} == {line["name"] for line in first[:2]}
    best = min(lines[3:], key=lambda line: line["score"])
    recipe = read_recipe(folder / "best-all.yaml")
    assert recipe.training.learning_rate == best["values"]["training.learning_rate"]
    assert (recipe.training.n_tokens, recipe.evaluation.side) == (640, "test")
    assert recipe.training.output_dir == str(folder / "best-all"), "free for `hfsae train`"
    assert not (folder / "trials").exists(), "the log has all that counts"
    assert f"**{recipe.training.learning_rate}**" in report.read_text()
    assert len(loads) == 1
    before = report.read_text()
    assert tune(tiny_tuning(folder), "hfsae tune x.yaml").exists()
    assert report.read_text() == before and len(loads) == 1


def test_settings_are_searched_on_files_without_a_model(tmp_path):
    """On the validation side of the files, which no documents are on in the recipe itself."""
    document = torch.arange(1000) // 10
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)) ** 3
    save_file({"mid": x, "document": document}, tmp_path / "acts.safetensors")
    files = ActivationArguments(files=str(tmp_path / "acts.safetensors"), held_out_fraction=0.2)
    fields = {"activations": files, "sae": {"site": "mid", "d_sae": 16, "target_l0": 2}}
    folder = tune(tiny_tuning(tmp_path / "tuned", trials=2, **fields))
    assert [line["rung"] for line in trials_in(folder)] == [0, 0, 1]
    assert all(0 < line["measured"]["fvu"] < 2 for line in trials_in(folder))
    text = (folder / "report.md").read_text()
    assert "`mid` of activation files on 320, 640 activations" in text and "LM" not in text
    best = read_recipe(folder / "best-all.yaml")
    assert best.kind == "files" and best.activations.validation_fraction == 0
    trial = recipe_of(tiny_tuning(tmp_path / "x", **fields), "all-000", {}, 0)
    assert trial.activations.validation_fraction == 0.05


def test_draws_are_uniform_in_logarithms_seeded_and_alike_in_all_arms(tmp_path, loads, monkeypatch):
    monkeypatch.setattr(tuning, "train_and_score", of_rates([]))
    rate, batch = "training.learning_rate", "training.batch_size"
    drawn = {}
    for name, seed in (("a", 0), ("again", 0), ("other", 1)):
        ranges = {**RATES, batch: [4, 8, 16]}
        own = {"arms": {"one": {}, "two": {"ranges": {"sae.bandwidth": [0.1, 0.2]}}}}
        tune(tiny_tuning(tmp_path / name, ranges=ranges, trials=24, rungs=1, tune_seed=seed, **own))
        values = [(line["name"][:3], line["values"]) for line in trials_in(tmp_path / name)]
        drawn[name] = {arm: [v for of, v in values if of == arm] for arm in ("one", "two")}
    one, two = drawn["a"].values()
    places = [math.log(v[rate] / 1e-4) / math.log(100) for v in one]
    assert all(-0.01 <= place <= 1.01 for place in places)
    assert abs(sum(places) / len(places) - 0.5) < 0.12
    assert {v[batch] for v in one} == {4, 8, 16}
    assert drawn["again"] == drawn["a"] and drawn["other"]["one"] != one
    by_number = [{k: v[k] for k in (rate, batch)} for v in two]
    assert sorted(map(str, by_number)) == sorted(map(str, one))


def of_rates(rates: list[float]):
    """The score is the distance to a rate of 1, and rates are noted; nothing is trained."""

    def train(recipe, command, loaded):
        lines = {}
        for name in recipe.saes:
            rates.append(recipe.training_of(name).learning_rate)
            score = abs(math.log(rates[-1] / 1.0))
            measured = {"fvu": score, "l0": 4.0, "dead_share": 0.0, "seconds": 1.0}
            lines[name] = {"score": score, "measured": measured, "failure": ""}
        return lines

    return train


def test_a_range_knows_its_edges():
    own = {"low": 1e-3, "high": 1e-1}
    assert [edge(own, v) for v in (1.1e-3, 1e-2, 9e-2)] == ["low", "", "high"]
    assert edge([1, 2], 2) == ""


@pytest.mark.parametrize(
    "ranges",
    [
        {"training.learning_rate": given}
        for given in (3, {"low": 2, "high": 1}, {"low": 1e-3, "high": "x"}, {"low": 0, "high": 1})
    ],
)
def test_a_range_that_is_none_is_one_sentence(ranges, tmp_path):
    with pytest.raises(ValueError, match=r"ranges\.training\.learning_rate is .* or a list of"):
        tiny_tuning(tmp_path, ranges=ranges)


def test_without_ranges_the_rate_is_searched_threefold_either_way(tmp_path):
    arms = {"own": {"training": {"learning_rate": 6e-4}}, "plain": {}}
    own = tiny_tuning(tmp_path, ranges={}, arms=arms)
    rate = own.training.learning_rate
    for arm, middle in (("own", 6e-4), ("plain", rate)):
        found = own.ranges_of(arm)["training.learning_rate"]
        assert found == pytest.approx({"low": middle / 3, "high": 3 * middle})


def test_a_stopped_search_goes_on_where_it_was(tmp_path, loads, tiny_lm, monkeypatch):
    log = tmp_path / "a/trials.jsonl"

    def is_at_the_third() -> bool:
        return log.exists() and len(trials_in(tmp_path / "a")) == 2

    with at_each_pass(tiny_lm, is_at_the_third), pytest.raises(KeyboardInterrupt):
        tune(tiny_tuning(tmp_path / "a", together=1))
    first = trials_in(tmp_path / "a")
    assert len(first) == 2
    trained, train = [], tuning.train_and_score

    def noting(recipe, command, loaded):
        trained.extend(recipe.saes)
        return train(recipe, command, loaded)

    monkeypatch.setattr(tuning, "train_and_score", noting)
    tune(tiny_tuning(tmp_path / "a", together=1))
    every = trials_in(tmp_path / "a")
    assert every[:2] == first and len(trained) == 3, "they were not trained again"
    assert [line["rung"] for line in every] == [0, 0, 0, 1, 1]


def test_trials_on_one_stream_score_as_alone(tmp_path, loads):
    ranges = {**RATES, "training.batch_size": [16, 32], "sae.target_l0": [3, 4]}
    fields = {"ranges": ranges, "trials": 4, "rungs": 1, "tune_seed": 1}
    lines = []
    for together in (1, 4):
        tune(tiny_tuning(tmp_path / str(together), together=together, **fields))
        lines.append({line["name"]: line for line in trials_in(tmp_path / str(together))})
        for line in lines[-1].values():
            assert line["measured"].pop("seconds") >= 0
    assert {line["values"]["training.batch_size"] for line in lines[0].values()} == {16, 32}
    assert lines[0] == lines[1]


def test_trials_are_scored_on_validation_documents_alone(tmp_path, loads):
    tune(tiny_tuning(tmp_path / "a", trials=2, rungs=1))
    for line in trials_in(tmp_path / "a"):
        fvu, l0 = (line["measured"][name] for name in ("fvu", "l0"))
        assert line["score"] == pytest.approx(fvu * (l0 / 4) ** 0.3)
    (folder,) = run(tiny_recipe(tmp_path / "b", collect_tokens=0))
    result = EvaluationResult.from_dict(read_json(folder / "evaluation.json"))
    with pytest.raises(ValueError, match="chosen on validation documents, not on test ones"):
        score_of(result, 4)


def test_a_trial_that_fails_is_the_last_and_all_that_fail_are_an_error(tmp_path, loads):
    """A rate of 1e18 makes weights that are not finite."""
    wide, seed = {"training.learning_rate": {"low": 1e-4, "high": 1e20}}, 2733
    report = tune(tiny_tuning(tmp_path / "a", ranges=wide, tune_seed=seed)) / "report.md"
    drawn = [line["values"]["training.learning_rate"] for line in trials_in(tmp_path / "a")[:3]]
    assert [rate > 1e18 for rate in drawn] == [False, True, False]
    (failed,) = [line for line in trials_in(tmp_path / "a") if line["score"] is None]
    assert "no longer finite" in failed["failure"]
    assert failed["values"]["training.learning_rate"] == drawn[1]
    assert "none" in report.read_text(), "it is no neighbour of the best"
    rates = {"training.learning_rate": [1e18, 1e19]}
    with pytest.raises(ValueError, match=r"all 3 trials failed; the first: .*no longer finite"):
        tune(tiny_tuning(tmp_path / "b", ranges=rates))


def test_a_trial_that_diverges_in_training_leaves_those_beside_it_their_scores(tmp_path, loads):
    """After a checkpoint of all of them: those that train again need a folder of their own."""
    rates, saves = {"training.learning_rate": [1e-3, 1e18]}, {"save_steps": 1}
    fields = {"trials": 4, "rungs": 1, "tune_seed": 3, "training": saves}
    tune(tiny_tuning(tmp_path / "a", ranges=rates, **fields))
    lines = trials_in(tmp_path / "a")
    failed = {line["values"]["training.learning_rate"]: line["failure"] for line in lines}
    assert failed[1e-3] == "" and "no longer finite" in failed[1e18]
    assert all((line["score"] is None) == bool(line["failure"]) for line in lines)


def test_a_failure_that_is_no_divergence_ends_the_search_and_is_not_kept(
    tmp_path, loads, monkeypatch
):
    def unreachable(*args):
        raise ValueError("the Hub cannot be reached")

    with monkeypatch.context() as broken:
        broken.setattr(hfsae.runs, "load_inputs", unreachable)
        with pytest.raises(ValueError, match="the Hub cannot be reached"):
            tune(tiny_tuning(tmp_path / "a", trials=2, rungs=1))
    assert tune(tiny_tuning(tmp_path / "a", trials=2, rungs=1)).exists()
    assert all(line["failure"] == "" for line in trials_in(tmp_path / "a"))


def test_a_folder_of_something_else_stays_as_it_is(tmp_path, loads):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds something else \(config\.json, and no trials"):
        tune(tiny_tuning(tmp_path / "a"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["config.json"]


def test_a_range_grows_where_the_best_lies_at_its_edge_and_arms_draw_alike(
    tmp_path, loads, monkeypatch
):
    rates: list[float] = []
    monkeypatch.setattr(tuning, "train_and_score", of_rates(rates))
    arms = {
        "wide": {"ranges": {"training.learning_rate": {"low": 0.1, "high": 8.0}}},
        "narrow": {"ranges": {"training.learning_rate": {"low": 1e-4, "high": 1e-2}}},
    }
    own = tiny_tuning(
        tmp_path / "a", ranges={}, arms=arms, rungs=1, growth=1, trials=20, tune_seed=2
    )
    report = (tune(own) / "report.md").read_text()
    arm_of = [line["name"].partition("-")[0] for line in trials_in(tmp_path / "a")]
    assert arm_of == ["wide"] * 20 + ["narrow"] * 20 + ["wide"] * 20 + ["narrow"] * 20
    assert max(rates[20:40]) <= 1e-2 < max(rates[60:]) <= 1e-1
    wide, narrow = re.split(r"## narrow", report)
    assert "0.0001 to 0.1" in narrow and "at the high edge" in narrow
    assert "0.1 to 8" in wide and "edge" not in wide


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"ranges": {"training.nothing": [1]}}, "ranges.training.nothing is not a field of"),
        ({"ranges": {"lm.name": ["a"]}}, "ranges.lm.name is not a field of sae, training, shuffle"),
        ({"trials": 1}, "trials is 1; it must be 2 or more"),
        ({"rungs": 9}, "rungs=9 leaves the first one less than a batch"),
        ({"arms": {"a": {"sweep": {}}}}, "arm a has no 'sweep'"),
        ({"arms": {"a": {"sae": 5}}}, "sae of arm a must hold fields, got 5"),
        ({"arms": {"../a": {}}}, "an arm cannot be called '../a'"),
        ({"saes": {"a": {}}}, "a tuning has arms instead of saes"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(tmp_path, fields, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tiny_tuning(tmp_path, **fields)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, loads):
    tune(tiny_tuning(tmp_path / "a", rungs=1, trials=2))
    with pytest.raises(ValueError, match="holds trials of another recipe"):
        tune(tiny_tuning(tmp_path / "a", rungs=1, trials=2, seed=1))


def test_the_command_takes_the_name_of_a_recipe(capsys):
    argv = ["tune", "quickstart", "--ranges", "{training.learning_rat: [1, 2]}"]
    assert "ranges.training.learning_rat is not a field of" in refused(argv, capsys)


@pytest.mark.parametrize("path", sorted(TUNINGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_tunings_that_come_along_draw_saes_that_there_are(path):
    own, _ = parse_recipe(recipe_parser("tune", Tuning), [str(path)], Tuning)
    for arm in own.arm_names:
        for end in (0, -1):
            values = {
                name: r[end] if isinstance(r, list) else [*r.values()][end]
                for name, r in own.ranges_of(arm).items()
            }
            for fields in recipe_of(own, f"{arm}-000", values, 0).sae_fields().values():
                assert AutoConfig.for_model(d_in=576, **fields).d_sae == own.sae["d_sae"]


def test_without_optuna_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"searches with Optuna; install it: pip install"):
        tune(tiny_tuning(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
