"""A recipe from text to folder on a tiny language model: stages, reuse, refusals."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModel

import hfsae
from hfsae import cards
from hfsae import runs as recipes
from hfsae.activations import (
    ActivationCache,
    HarvestArguments,
    ShuffleArguments,
    TextArguments,
    tokens,
)
from hfsae.evaluation import EvaluationArguments
from hfsae.features import FeatureStore, collecting, read_labels
from hfsae.hub import published
from hfsae.io.checksums import STAMPED
from hfsae.io.file_names import COLLECTING
from hfsae.lm.contract import sketch
from hfsae.runs import make_configs, run
from hfsae.training import Trainer

from .helpers import at_each_pass, held_elsewhere, refused
from .tiny import TEXTS, D, tiny_recipe

NO_EVALUATION = EvaluationArguments(n_tokens=0)


@pytest.mark.renders
def test_a_run_leaves_a_folder_that_could_be_pushed(tmp_path, loads, tiny_lm):
    (folder,) = run(tiny_recipe(tmp_path / "out"), command="hfsae train x.yaml")
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert not any(name.startswith("checkpoints") for name in files)
    modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1  # safetensors alone would let nobody else read the weights
    assert files >= {
        "config.json",
        "model.safetensors",
        "README.md",
        "evaluation.json",
        "training.json",
        "recipe.yaml",
        "log.jsonl",
        "features/latents.parquet",
        "features/examples.parquet",
        "figures/density.png",
        "figures/training.png",
    }
    sae = AutoModel.from_pretrained(folder)
    assert (sae.config.d_in, sae.config.d_sae, sae.config.site) == (16, 32, "layers.1")
    assert sae.config.model_name == "tiny/gemma" and sae.config.activation_scale == 1.0
    assert sae.config.model_weights == sketch(tiny_lm)
    record = json.loads((folder / "training.json").read_text())
    assert record["command"] == "hfsae train x.yaml" and record["n_tokens"] == 640
    assert record["harvested"]["kept"] >= 640
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert 0 < metrics["fvu"]["value"] < 1.5 and metrics["l0"]["n_tokens"] >= 250
    assert len(FeatureStore.load(folder)) == 32


def test_a_second_run_reuses_everything_without_loading_the_language_model(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(loads) == 1
    run(tiny_recipe(tmp_path / "out", training={"logging_steps": 7}))
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(loads) == 1 and before == after


def test_a_run_shorter_than_a_bucket_harvests_no_more_than_it_uses(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out", training={"n_tokens": 96, "warm_start_steps": 1}))
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    one_batch = 8 * 16  # rows of tokens: harvested whole
    assert 96 <= record["harvested"]["kept"] < 96 + one_batch


def test_a_changed_section_does_only_its_own_stage_again(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out"))
    weights = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    store = (tmp_path / "out" / "features" / "meta.json").stat().st_mtime_ns
    more = EvaluationArguments(n_tokens=600, bootstrap_samples=20)
    run(tiny_recipe(tmp_path / "out", evaluation=more))
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["n_tokens"] > 500
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == weights
    assert (tmp_path / "out" / "features" / "meta.json").stat().st_mtime_ns == store
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"{evaluation['metrics']['l0']['n_tokens']:,}" in readme


def test_what_a_folder_has_of_other_weights_is_made_anew(tmp_path, loads):
    (folder,) = run(tiny_recipe(tmp_path / "out"))
    stamped = [name for name in STAMPED if (folder / name).exists()]
    assert len(stamped) == 4
    made = {name: (folder / name).read_bytes() for name in stamped}
    hashed = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest().encode()
    assert all(hashed in content for content in made.values())
    for name in ("evaluation.json", "features/meta.json"):
        (folder / name).write_bytes(made[name].replace(hashed, b"0" * 64))
    run(tiny_recipe(tmp_path / "out"))
    assert {name: (folder / name).read_bytes() for name in stamped} == made
    (folder / "README.md").unlink()
    (folder / "training.json").write_bytes(made["training.json"].replace(hashed, b"0" * 64))
    with pytest.raises(ValueError, match=r"training\.json was made with other weights"):
        run(tiny_recipe(tmp_path / "out"))


def test_what_was_changed_in_a_folder_is_told_and_made_anew(tmp_path, loads, caplog):
    (folder,) = run(tiny_recipe(tmp_path / "out"))
    names = ("evaluation.json", "features/meta.json", "features/examples.parquet")
    made = {name: (folder / name).read_bytes() for name in names}
    record = json.loads(made[names[0]])
    record["metrics"]["l0"]["value"] = 1.0
    (folder / names[0]).write_text(json.dumps(record))
    pq.write_table(pq.read_table(folder / names[2]).slice(1), folder / names[2])
    run(tiny_recipe(tmp_path / "out"))
    assert {name: (folder / name).read_bytes() for name in names} == made
    assert "evaluation.json is made again" in caplog.text
    assert "features/meta.json is made again" in caplog.text


def test_a_damaged_result_is_refused_before_another_one_is_made_again(tmp_path, loads):
    (folder,) = run(tiny_recipe(tmp_path / "out"))
    (folder / "evaluation.json").write_text("[1]")
    before = (folder / "features/meta.json").read_bytes()
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged \(not a JSON object\)"):
        run(tiny_recipe(tmp_path / "out", collect_tokens=400))
    assert (folder / "features/meta.json").read_bytes() == before


def test_a_run_interrupted_while_it_reports_goes_on_with_what_is_missing(
    tmp_path, loads, monkeypatch
):
    whole, parts = tiny_recipe(tmp_path / "whole"), tiny_recipe(tmp_path / "parts")
    run(whole)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recipes.inputs, "collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    assert not (tmp_path / "parts" / "README.md").exists()
    run(parts)
    for name in ("model.safetensors", "evaluation.json", "features/meta.json"):
        ours, theirs = ((tmp_path / f / name).read_bytes() for f in ("whole", "parts"))
        assert ours == theirs, name


def test_a_run_that_is_stopped_while_it_collects_goes_on_there(
    tmp_path, loads, tiny_lm, monkeypatch
):
    (whole,) = run(tiny_recipe(tmp_path / "whole"))
    monkeypatch.setattr(collecting, "_EVERY_SECONDS", 0.0)
    kept, passes = tmp_path / "stopped" / COLLECTING, []

    def note() -> None:
        """A pass of the language model after a batch was kept."""
        passes.extend([1] if kept.exists() else [])

    def is_fourth_batch() -> bool:
        note()
        return len(passes) == 3

    with at_each_pass(tiny_lm, is_fourth_batch), pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(tmp_path / "stopped"))
    assert kept.is_file()
    passes.clear()
    with at_each_pass(tiny_lm, note):
        (stopped,) = run(tiny_recipe(tmp_path / "stopped"))
    for name in ("meta.json", "latents.parquet", "examples.parquet"):
        assert (stopped / "features" / name).read_bytes() == (
            whole / "features" / name
        ).read_bytes()
    assert not kept.exists()
    assert len(passes) == 1 + 2 + 1, "a check, two of five batches of 120 tokens, and the lens"


def test_what_was_interrupted_half_way_to_other_settings_passes_for_neither(
    tmp_path, loads, monkeypatch
):
    first = {"folder": tmp_path / "out"}
    more = EvaluationArguments(n_tokens=600, bootstrap_samples=20)
    run(tiny_recipe(**first))
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with monkeypatch.context() as patched:
        # the evaluation is there by now
        patched.setattr(recipes.folder, "finish", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny_recipe(**first, evaluation=more))
    assert (tmp_path / "out" / "evaluation.json").read_bytes() != before
    run(tiny_recipe(**first))
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before


def test_a_record_tells_local_text_from_the_hubs(tmp_path, loads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hidden/mine").mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        Path(f"hidden/mine/{i}.txt").write_text(text)
    text = TextArguments(dataset="hidden/mine", context_size=16)
    fields = {"evaluation": NO_EVALUATION, "collect_tokens": 0, "text": text}
    (folder,) = run(
        tiny_recipe(tmp_path / "out", **fields), "hfsae train --text.dataset hidden/mine"
    )
    assert json.loads((folder / "training.json").read_text())["text"]["origin"] == "local files"
    shutil.rmtree("hidden")  # as on a machine that has it not
    seen = folder.joinpath("README.md").read_text() + cards.render_card(folder)
    assert seen.count("--text.dataset ./mine") == 2 and "hidden" not in seen
    assert b"hidden" not in published(folder / "training.json")
    lm = {"model_name": "/home/somebody/hidden/lm"}
    (folder / "probing.json").write_text(json.dumps({"lm": lm}))
    assert json.loads(published(folder / "probing.json")) == {"lm": {"model_name": "./lm"}}


def stopped_at_its_first_checkpoint(recipe) -> None:
    save = Trainer.save_checkpoint

    def save_and_stop(self):
        save(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "save_checkpoint", save_and_stop)
        run(recipe)


def test_a_text_that_changed_where_training_has_not_read_yet_is_noticed_at_the_resume(
    tmp_path, loads
):
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]

    def recipe(folder: str):
        text = {"dataset": str(path), "context_size": 16, "shuffle_documents": False}
        fields = {"evaluation": NO_EVALUATION, "collect_tokens": 0, "training": {"save_steps": 5}}
        return tiny_recipe(tmp_path / folder, text=TextArguments(**text), **fields)

    path.write_text("".join(lines))
    (whole,) = run(recipe("whole"))
    stopped_at_its_first_checkpoint(recipe("parts"))
    path.write_text("".join(lines).replace("document 198", "document 998"))
    with pytest.raises(ValueError, match=r"step-0+5\.pt belongs to another run: the text in ") as e:
        run(recipe("parts"))
    assert re.search(r"text\.dataset is 'SHA-256 \w+' there and 'SHA-256 \w+' here", str(e.value))
    assert "\n" not in str(e.value)
    path.write_text("".join(lines))
    (parts,) = run(recipe("parts"))
    for name in ("model.safetensors", "log.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_several_saes_share_a_stream_and_get_folders_of_their_own(tmp_path, loads):
    saes = {"a": {"target_l0": 3}, "deep/b": {"site": "layers.2", "d_sae": 24}}
    folders = run(tiny_recipe(tmp_path / "out", saes=saes, collect_tokens=0))
    assert [str(f.relative_to(tmp_path / "out")) for f in folders] == ["a", "deep/b"]
    configs = [AutoModel.from_pretrained(f).config for f in folders]
    assert [c.target_l0 for c in configs] == [3, 4]
    assert [c.site for c in configs] == ["layers.1", "layers.2"]
    limits = json.loads((folders[0] / "training.json").read_text())["harvested"]["norm_limits"]
    assert set(limits) == {"layers.1", "layers.2"}


def test_an_sae_trained_beside_others_equals_one_trained_alone(tmp_path, loads):
    own = {"learning_rate": 3e-3, "unit": "spread", "warm_start_steps": 0.5}
    saes = {"a": {}, "b": {"d_sae": 24, "training": own}}
    together = run(tiny_recipe(tmp_path / "together", saes=saes, collect_tokens=0))[1]
    (alone,) = run(
        tiny_recipe(tmp_path / "alone", sae={"d_sae": 24}, training=own, collect_tokens=0)
    )
    name = "model.safetensors"
    assert (together / name).read_bytes() == (alone / name).read_bytes()
    records = [json.loads((folder / "training.json").read_text()) for folder in (together, alone)]
    assert [record["training"]["learning_rate"] for record in records] == [3e-3, 3e-3]
    assert 0 <= records[0]["seconds"]["sae"] <= records[0]["seconds"]["train"]


@pytest.mark.parametrize(
    "own, sentence",
    [
        ({"batch_size": 8}, "saes.a.training.batch_size cannot differ between SAEs on one stream"),
        ({"learning_rat": 1}, "saes.a.training has no field 'learning_rat'"),
        ({"learning_rate": -1.0}, "training.learning_rate must be positive"),
        (3, "saes.a.training must hold fields of training, got 3"),
    ],
)
def test_what_an_sae_cannot_have_of_its_own_is_one_sentence(tmp_path, own, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_recipe(tmp_path, saes={"a": {"training": own}})


def test_a_run_whose_saes_have_other_settings_of_their_own_is_another_run(tmp_path, loads):
    def recipe(rate):
        saes = {"a": {"training": {"learning_rate": rate}}, "b": {}}
        fields = {"saes": saes, "collect_tokens": 0, "evaluation": NO_EVALUATION}
        return tiny_recipe(tmp_path / "out", **fields)

    run(recipe(1e-3))
    with pytest.raises(ValueError, match=r"saes\.a\.training\.learning_rate"):
        run(recipe(2e-3))


def test_activations_come_from_the_cache_where_another_run_left_them(tmp_path, loads, tiny_lm):
    def train(folder, **harvest):
        args = HarvestArguments(rows=8, max_norm_ratio=5.0, **harvest)
        nothing = EvaluationArguments(n_tokens=0)
        fields = {"harvest": args, "sae": {"d_sae": 24}, "evaluation": nothing}
        return run(tiny_recipe(tmp_path / folder, **fields, collect_tokens=0))[0]

    cache = str(tmp_path / "cache")
    other = {"sae": {"d_sae": 40}, "shuffle": ShuffleArguments(bucket_tokens=200, seed=3)}
    harvest = HarvestArguments(rows=8, max_norm_ratio=5.0, cache=cache)
    run(tiny_recipe(tmp_path / "other", **other, harvest=harvest, collect_tokens=0))
    shards = set((tmp_path / "cache").rglob("*.safetensors"))
    live, cached = train("live"), train("cached", cache=cache)
    for name in ("model.safetensors", "log.jsonl"):
        assert (live / name).read_bytes() == (cached / name).read_bytes()
    n_new = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))
    n_new -= sum(path.stat().st_size for path in shards)
    assert 0 <= n_new < sum(path.stat().st_size for path in shards) / 2, "most were found"


def test_a_run_s_own_cache_serves_its_examples_and_is_gone_at_the_end(
    tmp_path, loads, tiny_lm, monkeypatch
):
    read = list[bool]()
    get = ActivationCache.get
    monkeypatch.setattr(
        ActivationCache,
        "get",
        lambda self, *key: read.append((found := get(self, *key)) is not None) or found,
    )
    harvest = HarvestArguments(rows=8, max_norm_ratio=5.0, cache="run")
    text = TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.2)
    text = replace(text, validation_fraction=0.2)
    fields = {"harvest": harvest, "text": text, "training": {"calibration_tokens": 300}}
    (folder,) = run(tiny_recipe(tmp_path / "out", **fields))
    assert any(read), "the search for examples reads what the training harvested"
    assert not (folder / "checkpoints").exists() and not list(tmp_path.rglob("activations"))
    record = json.loads((folder / "training.json").read_text())
    assert record["harvest"]["cache"] == "run" and 0.25 <= record["threshold_factor"] <= 4


def test_thresholds_stay_where_no_document_is_on_the_validation_side(tmp_path, loads, caplog):
    def trained(fraction: float) -> Path:
        text = TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.2)
        text = replace(text, validation_fraction=fraction)
        fields = {"text": text, "training": {"calibration_tokens": 300}}
        return run(tiny_recipe(tmp_path / str(fraction), **fields))[0]

    folder = trained(1e-9)  # as of a text of few documents
    assert json.loads((folder / "training.json").read_text())["threshold_factor"] is None
    assert "thresholds stay as they were trained: none of the" in caplog.text
    with pytest.raises(ValueError, match=r"calibration_tokens is 300, and no document"):
        trained(0.0)


def test_a_transcoder_reads_one_place_and_predicts_another(tmp_path, loads):
    places = {"site": "layers.1.mlp:in", "target_site": "layers.1.mlp"}
    training = {"n_tokens": 6400, "learning_rate": 5e-3}
    (folder,) = run(tiny_recipe(tmp_path / "out", sae=places, training=training))
    assert AutoModel.from_pretrained(folder).config.target_scale == 1.0
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert metrics["fvu"]["value"] < 1.0


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"sae": {"site": "layers.9"}}, "layers.9.*has 4 layers"),
        ({"sae": {"site": None}}, "names no site"),
        ({"sae": {"site": ""}}, "names no site"),
        ({"sae": {"site": 12}}, r"sae\.site must be text, such as 'layers\.12', got 12"),
        ({"shuffle": ShuffleArguments(bucket_tokens=20)}, r"\(20\) is smaller than .*\(32\)"),
        ({"saes": {"checkpoints": {}, "b": {}}}, "cannot be called 'checkpoints'"),
        ({"saes": {"../b": {}}}, r"cannot be called '\.\./b'"),
        ({"saes": {"/b": {}}}, "cannot be called '/b'.*leave out"),
        ({"sae": {"d_in": 17}}, "sae.d_in is 17, but layers.1 of tiny/gemma is 16 wide"),
        ({"sae": {"bandwith": 1}}, "no field 'bandwith'; closest: 'bandwidth'"),
        ({"sae": {"model_type": "jumprelu"}}, "model_type 'jumprelu' is unknown.*jumprelu_sae"),
        ({"text": TextArguments(dataset="nowhere.jsonl")}, "nowhere.jsonl"),
        ({"text": TextArguments(dataset=[])}, "holds no text"),
        (
            {
                "text": TextArguments(dataset=["<eos>"] * 9, held_out_fraction=0.0),
                "evaluation": NO_EVALUATION,
            },
            "only special ones",
        ),
        ({"text": TextArguments(dataset=TEXTS, context_size=2)}, "no prediction to eval"),
        ({"text": TextArguments(dataset=[TEXTS[0] * 9])}, "a .txt file is one.*n_tokens 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, loads, fields, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        run(tiny_recipe(tmp_path / "out", **fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "out" / "model.safetensors").exists()
    again = tiny_recipe(tmp_path / "out", evaluation=NO_EVALUATION, collect_tokens=0)
    assert run(again) == [tmp_path / "out"], "and the folder is not lost to it"


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, loads):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        run(tiny_recipe(tmp_path / "file"))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, loads):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex, and no recipe.yaml"):
        run(tiny_recipe(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"] and not loads


def test_a_folder_that_another_run_works_in_is_left_alone(tmp_path, loads):
    recipe = tiny_recipe(tmp_path / "out")
    with held_elsewhere(tmp_path / "out"):
        with pytest.raises(ValueError, match=r"out is in use by process \d+ on host .*; wait"):
            run(recipe)
        names = sorted(p.name for p in (tmp_path / "out").iterdir())
        assert names == [".in-use", ".in-use.lock"] and not loads
        run(tiny_recipe(tmp_path / "other", collect_tokens=0, evaluation=NO_EVALUATION))


def half_written(folder: Path, name: str) -> Path:
    """What a process leaves that is killed while it writes a file through `replacing`."""
    path = folder / f".{name}.{'0123abcd' * 4}.tmp"
    path.write_text("half of i")
    return path


def test_a_kill_before_there_is_a_recipe_leaves_a_folder_for_any_run(tmp_path, loads):
    half_written(tmp_path, "recipe.yaml")
    (tmp_path / ".in-use").write_text("")
    recipes.refuse_another_training(tiny_recipe(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2, "who only looks changes nothing"
    run(tiny_recipe(tmp_path, collect_tokens=0, evaluation=NO_EVALUATION))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.renders
def test_what_kills_left_in_a_complete_folder_is_removed_by_the_next_call(tmp_path, loads):
    recipe = tiny_recipe(tmp_path, saes={"a": {}}, collect_tokens=0, evaluation=NO_EVALUATION)
    run(recipe)
    whole = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    half_written(tmp_path / "a", "README.md")
    half_written(tmp_path / "a" / "figures", "l0.png")
    (tmp_path / "a" / ".tmp-123").mkdir()
    (tmp_path / "a" / ".tmp-123" / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000020.pt").write_bytes(b"whole")
    (tmp_path / "checkpoints" / "step-00000021.tmp-123").write_bytes(b"ha")
    run(recipe)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == whole
    assert not (tmp_path / "checkpoints").exists() and len(loads) == 1


def test_an_output_folder_that_cannot_be_made_is_refused(loads):
    with pytest.raises(
        ValueError, match=r"folder /proc/x cannot be made or written to \(.*; give another"
    ):
        run(tiny_recipe(Path("/proc/x")))


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out"))
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"sae\.d_sae is 32 there and 64 here"):
        run(tiny_recipe(tmp_path / "out", sae={"d_sae": 64}))
    with pytest.raises(ValueError, match=r"training.learning_rate is 0.001 there and 0.5 here"):
        run(tiny_recipe(tmp_path / "out", training={"learning_rate": 0.5}))
    with pytest.raises(ValueError, match="no field 'd_saee'; closest: 'd_sae'"):
        run(tiny_recipe(tmp_path / "out", sae={"d_saee": 64}))
    several = {"learning_rate": 0.5, "batch_size": 64, "init_b_dec": "mean"}
    with pytest.raises(ValueError, match=r"\(sae\.d_sae is .*; training\.batch_size .*; 1 more\)"):
        run(tiny_recipe(tmp_path / "out", sae={"d_sae": 64}, training=several))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_a_field_that_a_folder_is_older_than_was_as_by_default(tmp_path, loads):
    run(tiny_recipe(tmp_path / "out"))
    path = tmp_path / "out" / "recipe.yaml"
    plain = yaml.safe_load(path.read_text())
    del plain["training"]["max_grad_norm"]
    path.write_text(yaml.safe_dump(plain))
    run(tiny_recipe(tmp_path / "out"))
    assert len(loads) == 1, "all of it was there"
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(ValueError, match=r"training.max_grad_norm is None there and 0.5 here"):
        run(tiny_recipe(tmp_path / "out", training={"max_grad_norm": 0.5}))


def test_a_masked_run_is_another_one_and_without_a_mask_nothing_is(tmp_path, loads):
    recipe = tiny_recipe(tmp_path, collect_tokens=0)
    run(recipe)
    bytes_of = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    assert "mask_share" not in (tmp_path / "recipe.yaml").read_text()
    masked = replace(recipe, text=replace(recipe.text, mask_share=0.3))
    with pytest.raises(ValueError, match=r"another recipe \(text.mask_share is None there and 0.3"):
        run(masked)
    other = replace(masked, training=replace(recipe.training, output_dir=str(tmp_path / "masked")))
    run(other)
    assert recipes.read_recipe(tmp_path / "masked" / "recipe.yaml").text.mask_share == 0.3
    results = (p / "evaluation.json" for p in (tmp_path, tmp_path / "masked"))
    before, after = (json.loads(path.read_text()) for path in results)
    assert before["n_tokens"] == after["n_tokens"]  # held-out text is the same, without a mask
    assert bytes_of == {p: p.read_bytes() for p in bytes_of}


def test_rows_that_start_at_concepts_get_their_names_and_the_card_says_how_far_they_went(
    tmp_path, loads, tiny_lm
):
    path = tmp_path / "concepts.safetensors"
    directions = {"calm": torch.ones(D), "the sea/ocean": torch.arange(float(D))}
    hfsae.save_steering_vector(path, directions, site="layers.1")
    training = {"init_decoder": str(path), "learning_rate": 0.05}
    fields = {"collect_tokens": 0, "training": training}
    run(tiny_recipe(tmp_path / "out", **fields))
    assert read_labels(tmp_path / "out") == {0: "calm", 1: "the sea/ocean"}
    cosines = json.loads((tmp_path / "out" / "training.json").read_text())["directions"]["cosines"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The first 2 decoder rows started at given directions, whose labels are the" in card
    assert max(cosines) - min(cosines) > 0.01
    assert f"{sum(cosines) / 2:.4g} in the median, {min(cosines):.4g} at least" in card
    assert str(tmp_path) not in card
    hfsae.save_steering_vector(path, {"calm": torch.ones(D + 1)}, site="layers.1")
    with pytest.raises(ValueError, match="of width 17, and the SAE writes 16"):
        run(tiny_recipe(tmp_path / "other", **fields))
    assert not (tmp_path / "other" / "model.safetensors").exists()


def test_the_saved_recipe_is_the_recipe(tmp_path, loads):
    recipe = tiny_recipe(tmp_path / "out")
    run(recipe)
    saved = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert saved == recipes.as_plain(recipe)


def test_configs_take_their_widths_from_the_model(tiny_lm, tmp_path):
    recipe = tiny_recipe(tmp_path, sae={"site": "layers.0.self_attn.o_proj:in"})
    (config,) = make_configs(recipe, tiny_lm).values()
    assert config.d_in == config.d_out == 24


def test_saes_of_several_variants_share_a_section(tiny_lm, tmp_path, caplog):
    caplog.set_level("INFO")
    saes = {
        "a": {"model_type": "topk_sae"},
        "b": {"model_type": "batch_topk_sae", "k": 3},
        "c": {"model_type": "relu_sae", "target_l0": None},
        "d": {"bandwidth": None},
    }
    a, b, c, d = make_configs(tiny_recipe(tmp_path, saes=saes), tiny_lm).values()
    assert (a.k, b.k, c.target_l0, d.target_l0) == (4, 3, None, 4)
    assert d.bandwidth == 0.001, "null unsets"
    assert "saes.a: a topk_sae takes target_l0 as its k, 4" in caplog.text
    assert "saes.b: fields left out, since a batch_topk_sae does not use them" in caplog.text
    with pytest.raises(ValueError, match="TopKSAEConfig has no field 'bandwith'"):
        make_configs(tiny_recipe(tmp_path, saes={"a": saes["a"] | {"bandwith": 1}}), tiny_lm)


def test_a_record_of_training_without_norm_limits_is_damaged(tmp_path, loads):
    (tmp_path / "training.json").write_text('{"seconds": "long"}')
    sae = AutoModel.from_config(
        make_configs(tiny_recipe(tmp_path), recipes.checks.empty_lm("tiny"))[""]
    )
    with pytest.raises(ValueError, match=r"training\.json is damaged \(it has no norm limits\)"):
        recipes.norm_limits(sae, tmp_path)


def test_a_shipped_recipe_is_found_beside_a_folder_of_its_name_and_a_file_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shipped = recipes.find_recipe("quickstart")
    Path("quickstart").mkdir()
    assert recipes.find_recipe("quickstart") == shipped
    with pytest.raises(ValueError, match="there is no recipe 'elsewhere'; give a YAML file's path"):
        recipes.find_recipe("elsewhere")
    Path("quickstart").rmdir()
    Path("quickstart").write_text("seed: 1")
    assert recipes.find_recipe("quickstart") == Path("quickstart")


@pytest.mark.parametrize("field", ["name", "dtype", "source"])
def test_a_language_model_that_is_null_is_one_sentence(tmp_path, capsys, field):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"sae: {{d_sae: 32, site: layers.1}}\nlm: {{{field}: null}}\n")
    assert f"lm.{field} is null" in refused(["train", str(path), "--dry_run"], capsys)


def test_a_line_of_text_that_is_no_json_ends_the_run_that_reads_it_and_no_other(
    tmp_path, loads, monkeypatch
):
    monkeypatch.setattr(tokens, "_DOCUMENTS_AT_ONCE", 2)
    path, lines = tmp_path / "a.jsonl", [json.dumps({"text": one}) for one in TEXTS * 20]
    text = TextArguments(str(path), context_size=16, shuffle_documents=False)
    text.held_out_fraction = 0.2
    recipe = tiny_recipe(tmp_path / "run", text=text, collect_tokens=0)
    path.write_text("\n".join([*lines[:14], lines[14][:20], *lines[15:]]))
    with pytest.raises(ValueError, match=r"line 15 of .* is not JSON"):
        run(recipe)
    path.write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # of which the run reads a part
    recipe.training.output_dir = str(tmp_path / "other")
    assert run(recipe)
