"""Runs on activations in files: from `hfsae train --activations` to a card, without any model."""

import csv
import json
import re
import shutil
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

import hfsae
from hfsae.activations import (
    ActivationArguments,
    FileSource,
    ImageArguments,
    InputSource,
    ShuffleArguments,
)
from hfsae.cli import main
from hfsae.comparison import Comparison, compare
from hfsae.evaluation import EvaluationArguments
from hfsae.lm import load_encoder
from hfsae.runs import (
    LMArguments,
    harvest_to,
    inputs_of,
    load_inputs,
    load_trained,
    read_recipe,
    run,
)
from tests.helpers import ROOT, refused
from tests.tiny import TEXTS, tiny_recipe
from tests.tiny_encoders import block, save_encoder, save_pictures, whole_model
from tests.training.planted import PlantedStream

N, D, PER_DOCUMENT = 6000, 16, 20
SMALL = ["--sae.d_sae", "64", "--sae.target_l0", "3", "--training.n_tokens", "25600"]
SMALL += ["--training.batch_size", "128", "--shuffle.bucket_tokens", "2048"]
SMALL += ["--evaluation.n_tokens", "500"]


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    """6,000 rows of planted features, of 300 documents."""
    path = tmp_path_factory.mktemp("files") / "acts.safetensors"
    x = PlantedStream(d=D).part(1, N)["layers.1"]
    save_file({"layer8": x, "document": torch.arange(N) // PER_DOCUMENT}, path)
    return path


@pytest.fixture(scope="module")
def trained(acts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    argv = ["train", "--activations", str(acts), "--site", "layer8", *SMALL]
    assert main([*argv, "--training.output_dir", str(folder)]) == 0
    return folder


def test_one_command_trains_an_sae_on_a_file(trained):
    metrics = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert metrics["fvu"]["value"] < 0.2 and 2 < metrics["l0"]["value"] < 5
    sae = hfsae.load(trained)
    assert (sae.config.site, sae.config.d_in, sae.config.model_name) == ("layer8", D, None)


def test_nothing_that_it_writes_speaks_of_a_language_model_or_its_loss(trained):
    card = (trained / "README.md").read_text()
    for file in ("README.md", "evaluation.json", "recipe.yaml"):
        names = r"\w+\\?_tokens|\w*token_(mean|norm)\w*"  # of settings and definitions
        text = re.sub(names, "", (trained / file).read_text())
        assert not re.search(r"language model|loss.recovered|delta.loss|tokenizer|\btoken", text), (
            file
        )
    assert "activations that were read from files" in card and "300" not in card.split("---")[1]


def test_how_often_rows_are_read_is_told_before_and_after(trained, acts, tmp_path, capsys):
    argv = ["train", "--activations", str(acts), *SMALL, "--training.output_dir", str(tmp_path)]
    assert main([*argv, "--dry_run"]) == 0
    assert "from some 5,700 rows, each read 4.5 times" in capsys.readouterr().out
    n = json.loads((trained / "training.json").read_text())["activations"]["train_rows"]
    assert (
        f"- Few rows: {n:,} different ones were trained on, each some {round(25600 / n)} times"
        in (trained / "README.md").read_text()
    )


def test_the_card_and_show_count_rows(trained, capsys):
    assert main(["show", str(trained)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"held-out rows of \d+ documents", out) and "rows/s" in out
    assert re.search(r"document \d+, row \d+", out), "a top row is named by its document"


def test_a_site_may_be_left_out_where_there_is_one(acts, tmp_path):
    sae = hfsae.train(
        activations=acts, d_sae=32, target_l0=3, n_tokens=2560, output_dir=tmp_path / "out"
    )
    assert sae.config.site == "layer8"


def test_an_interrupted_run_goes_on_to_the_same_bits(acts, tmp_path, trained, monkeypatch):
    argv = ["train", "--activations", str(acts), "--site", "layer8", *SMALL]
    argv += ["--training.output_dir", str(tmp_path / "mine"), "--training.save_steps", "30"]
    with monkeypatch.context() as broken:
        stop = {"left": 70}
        next_batch = hfsae.activations.ShuffledActivations.next_batch

        def until(self):
            stop["left"] -= 1
            if stop["left"] < 0:
                raise KeyboardInterrupt
            return next_batch(self)

        broken.setattr(hfsae.activations.ShuffledActivations, "next_batch", until)
        assert main(argv) != 0
    assert main(argv) == 0
    mine, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "mine", trained))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_training_from_harvested_files_is_training_from_the_model(loads, tmp_path):
    recipe = tiny_recipe(tmp_path / "model", collect_tokens=0)
    (from_model,) = run(recipe)
    path = harvest_to(tiny_recipe(tmp_path / "files", collect_tokens=0), tmp_path / "acts")
    (from_files,) = run(read_recipe(path))
    a, b = (load_file(f / "model.safetensors") for f in (from_model, from_files))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    fvu = [
        json.loads((f / "evaluation.json").read_text())["metrics"]["fvu"]["value"]
        for f in (from_model, from_files)
    ]
    assert fvu[0] == pytest.approx(fvu[1], rel=1e-6)


def test_a_harvest_for_a_recipe_without_an_evaluation_is_trained_on_without_one(loads, tmp_path):
    base = tiny_recipe(tmp_path / "files", collect_tokens=200)
    recipe = replace(base, evaluation=replace(base.evaluation, n_tokens=0))
    (folder,) = run(read_recipe(harvest_to(recipe, tmp_path / "acts")))
    assert not any((tmp_path / "acts").glob("test-*"))
    assert (folder / "features").is_dir() and not (folder / "evaluation.json").exists()


def test_a_harvest_goes_on_where_it_was_stopped(loads, tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path / "files", collect_tokens=0)
    harvest_to(recipe, tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr("hfsae.runs.harvest_files._write_held_out", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            harvest_to(recipe, tmp_path / "parts")
    other = tiny_recipe(tmp_path / "files", collect_tokens=0, seed=1)
    with pytest.raises(ValueError, match=r"recipe \(seed is 0 there and 1 here\)"):
        harvest_to(other, tmp_path / "parts")
    path = tmp_path / "parts" / "harvest.json"
    progress = json.loads(path.read_text())
    del progress["recipe"]["probe_texts"]  # of a version that had no such field
    path.write_text(json.dumps(progress))
    later = tiny_recipe(tmp_path / "elsewhere", collect_tokens=0, explain_tokens=50)
    harvest_to(later, tmp_path / "parts")  # which reads the same
    names = sorted(p.name for p in (tmp_path / "whole").glob("*.safetensors"))
    assert len(names) > 2
    for name in names:
        whole, parts = (load_file(tmp_path / f / name) for f in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("changed", ["text", "model"])
def test_a_harvest_is_not_resumed_with_another_text_or_model(
    loads, tmp_path, monkeypatch, make_tiny_lm, changed
):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    base = tiny_recipe(tmp_path / "files", collect_tokens=0)
    recipe = replace(base, text=replace(base.text, dataset=str(text)))
    with monkeypatch.context() as broken:
        broken.setattr("hfsae.runs.harvest_files._write_held_out", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            harvest_to(recipe, tmp_path / "acts")
    before = {path.name: path.read_bytes() for path in (tmp_path / "acts").iterdir()}
    if changed == "text":
        text.write_text(text.read_text().replace("document", "page"))
        sentence = "the inputs differ from those of the harvest in .*acts"
    else:
        load_lm, other = hfsae.runs.inputs.load_lm, make_tiny_lm("gemma2", seed=3)
        monkeypatch.setattr(
            hfsae.runs.inputs, "load_lm", lambda *a, **k: load_lm(*a, **k)._replace(lm=other)
        )
        sentence = "the weights of the model differ from those of the harvest"
    with pytest.raises(ValueError, match=sentence):
        harvest_to(recipe, tmp_path / "acts")
    after = {path.name: path.read_bytes() for path in (tmp_path / "acts").iterdir()}
    assert before == after


def _swap(one, other):
    other.rename(other.with_suffix(".kept"))
    one.rename(other)
    other.with_suffix(".kept").rename(one)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda a, b: a.unlink(), "train-00000.safetensors is missing"),
        (_swap, "train-00000.safetensors is not the file that was written: its hash differs"),
        (lambda a, b: shutil.copy(a, a.with_name("train-00009.safetensors")), "is none of its"),
        (lambda a, b: shutil.copy(a, b), "train-00001.safetensors is not the file that was"),
    ],
    ids=["missing", "swapped", "doubled", "in the place of another"],
)
def test_shards_of_a_harvest_are_those_that_were_written(loads, tmp_path, capsys, change, sentence):
    path = harvest_to(tiny_recipe(tmp_path / "run", collect_tokens=0), tmp_path / "acts")
    assert len([*path.parent.glob("train-*")]) > 1
    change(path.parent / "train-00000.safetensors", path.parent / "train-00001.safetensors")
    capsys.readouterr()  # the bars of the harvest
    said = refused(["train", str(path)], capsys)
    assert sentence in said and "put back what was written" in said
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ValueError, match=sentence):
        FileSource(ActivationArguments(str(path.parent)), ["layers.1"])


@pytest.mark.parametrize("verb", ["evaluate", "collect", "train"])
def test_results_are_not_made_on_files_that_were_replaced(acts, tmp_path, capsys, verb):
    path = tmp_path / "acts.safetensors"
    tensors = load_file(acts)
    save_file(tensors, path)
    argv = ["train", "--activations", str(path), "--site", "layer8", *SMALL]
    argv += ["--training.output_dir", str(tmp_path / "run"), "--collect_tokens", "500"]
    assert main(argv) == 0
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    save_file({**tensors, "layer8": tensors["layer8"][shuffled]}, path)
    before = (tmp_path / "run" / "evaluation.json").read_bytes()
    capsys.readouterr()
    if verb == "train":
        (tmp_path / "run" / "features" / "meta.json").unlink()
    said = refused(argv if verb == "train" else [verb, str(tmp_path / "run")], capsys)
    assert "the activation files differ from those that" in said and "held out may have" in said
    assert (tmp_path / "run" / "evaluation.json").read_bytes() == before


def test_results_are_not_made_on_pictures_that_were_replaced(tmp_path, capsys):
    pytest.importorskip("PIL")
    folder = tmp_path / "pictures"
    save_pictures(folder, 40)
    images = ImageArguments(folder=str(folder), held_out_fraction=0.3)
    lm = LMArguments(name=save_encoder("vit", tmp_path / "model"), kind="auto", dtype="float32")
    sae = {"site": block(whole_model("vit"), 1), "d_sae": 32, "target_l0": 4}
    recipe = tiny_recipe(tmp_path / "run", lm=lm, sae=sae, collect_tokens=100, images=images)
    (made,) = run(recipe)
    before = (made / "evaluation.json").read_bytes()
    save_pictures(folder, 40, seed=1)
    for verb in ("evaluate", "collect"):
        capsys.readouterr()
        said = refused([verb, str(made)], capsys)
        assert f"the pictures differ from those that {made} was trained on" in said
    assert (made / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize("n_doubled", [0, 40])
def test_documents_that_are_held_out_and_trained_on_under_another_id_are_told(
    acts, tmp_path, caplog, n_doubled
):
    tensors = load_file(acts)
    again = {name: x[: n_doubled * PER_DOCUMENT] for name, x in tensors.items()}
    again["document"] = again["document"] + 10_000
    path = tmp_path / "acts.safetensors"
    save_file({name: torch.cat([x, again[name]]) for name, x in tensors.items()}, path)
    recipe = recipe_of(tmp_path, tmp_path / "run")
    whole = EvaluationArguments(n_tokens=None)
    recipe = replace(recipe, sae={**recipe.sae, "site": "layer8"}, evaluation=whole)
    inputs_of(recipe, load_inputs(recipe)).check()
    told = re.search(r"(\d+) of (\d+) held-out documents have all of their rows", caplog.text)
    assert bool(told) == bool(n_doubled)
    if told:
        rows = FileSource(recipe.activations, ["layer8"]).rows
        ids = np.asarray(rows.ids)[rows.document]
        sides = {i: rows.are_on("test")[ids == i][0] for i in np.unique(ids).tolist()}
        apart = [i for i in range(n_doubled) if sides[i] != sides[i + 10_000]]
        assert int(told[1]) == len(apart) > 0


def test_a_harvest_of_labelled_pictures_brings_the_labels_of_held_out_ones(tmp_path, caplog):
    pytest.importorskip("PIL")
    for kind in ("cloth", "wool"):
        save_pictures(tmp_path / "pictures" / kind, 40, seed=len(kind))
    lm = LMArguments(name=save_encoder("vit", tmp_path / "vit"), kind="auto", dtype="float32")
    images = ImageArguments(folder=str(tmp_path / "pictures"), labels="folders")
    images.held_out_fraction = 0.3
    sae = {"site": block(whole_model("vit"), 1), "d_sae": 32, "target_l0": 4}
    recipe = tiny_recipe(tmp_path / "run", lm=lm, images=images, sae=sae, collect_tokens=0)
    reading = read_recipe(harvest_to(recipe, tmp_path / "acts"))
    with open(tmp_path / "acts" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {
        side: {
            int(i)
            for path in (tmp_path / "acts").glob(f"{side}-*.safetensors")
            for i in load_file(path)["document"]
        }
        for side in ("train", "test")
    }
    assert [int(row["document"]) for row in rows] == sorted(sides["test"])
    assert not sides["test"] & sides["train"] and len(rows) > 8
    kinds = ["cloth"] * 40 + ["wool"] * 40
    assert [row["folder"] for row in rows] == [kinds[int(row["document"])] for row in rows]
    (folder,) = run(replace(reading, sae={**reading.sae, "d_sae": 24}))
    table = json.loads((folder / "features/columns.json").read_text())
    assert table["n_documents"] == len(rows)
    few = replace(recipe, evaluation=EvaluationArguments(n_tokens=16))
    assert not read_recipe(harvest_to(few, tmp_path / "few")).activations.labels
    assert "labels are left out: 1 documents with labels" in caplog.text
    alone = replace(images, folder=str(tmp_path / "pictures" / "wool"))
    alike = replace(recipe, images=alone)
    assert not read_recipe(harvest_to(alike, tmp_path / "alike")).activations.labels
    assert "no column of labels can be used" in caplog.text


def test_pictures_that_cannot_be_read_stop_a_run_before_it_trains_and_mended_ones_do_not(tmp_path):
    pytest.importorskip("PIL")
    save_pictures(tmp_path / "pictures", 60)
    lm = LMArguments(name=save_encoder("vit", tmp_path / "vit"), kind="auto", dtype="float32")
    images = ImageArguments(folder=str(tmp_path / "pictures"), held_out_fraction=0.3)
    sae = {"site": block(whole_model("vit"), 1), "d_sae": 32, "target_l0": 4}
    recipe = tiny_recipe(tmp_path / "run", lm=lm, images=images, sae=sae, collect_tokens=0)
    source = InputSource(images, load_encoder(lm.name), [sae["site"]])
    document = [*source.once("train", None)][-1][-1][0]  # of the last batch of an epoch
    path = tmp_path / "pictures" / source.names[document]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"1 of 60 pictures cannot .* the first is {path.name}"):
        run(recipe)
    assert not [*tmp_path.glob("run/**/*.*")]
    path.write_bytes(whole)
    assert run(recipe)


def _interrupt(*args):
    raise KeyboardInterrupt


def test_what_cannot_be_trained_on_is_one_sentence(acts, tmp_path, capsys):
    out = ["--training.output_dir", str(tmp_path / "x"), *SMALL]
    said = refused(["train", "--activations", str(acts), "--site", "layer9", *out], capsys)
    assert "layer9" in said and "layer8" in said
    said = refused(["train", "--activations", str(tmp_path / "none.npy"), *out], capsys)
    assert "none.npy" in said
    few = {"layer8": torch.randn(100, D)}
    save_file(few, tmp_path / "few.safetensors")
    said = refused(["train", "--activations", str(tmp_path / "few.safetensors"), *out], capsys)
    assert "batch" in said
    assert not (tmp_path / "x").exists() or not any((tmp_path / "x").iterdir())


@pytest.fixture(scope="module")
def two_sites(tmp_path_factory):
    """The rows of one site, and what a linear map makes of them at another; labels of documents by
    their ids, which come in no order; one of them goes with a planted direction."""
    folder = tmp_path_factory.mktemp("two")
    stream = PlantedStream(d=D)
    x = stream.part(1, N)["layers.1"]
    turned = x @ torch.randn(D, 8, generator=torch.Generator().manual_seed(0))
    document = torch.arange(N) // PER_DOCUMENT * 7 % (N // PER_DOCUMENT)  # ids in no order
    save_file({"in": x, "out": turned, "document": document}, folder / "acts.safetensors")
    strongest = (x @ stream.directions[5]).view(-1, PER_DOCUMENT).amax(1)
    kinds = ["high" if one > strongest.median() else "low" for one in strongest.tolist()]
    noise = torch.rand(len(kinds), generator=torch.Generator().manual_seed(1)).tolist()
    ids = document[::PER_DOCUMENT].tolist()
    lines = [f"{i},{kind},{n:.4f}" for i, kind, n in zip(ids, kinds, noise, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["document,kind,noise", *lines]) + "\n")
    return folder


def recipe_of(folder, output, labels="", **sections):
    base = read_recipe("activations")
    held_out = {"held_out_fraction": 0.5, "labels": labels}
    small = {"output_dir": str(output), "n_tokens": 25600, "batch_size": 128}
    given = {
        "activations": ActivationArguments(files=str(folder / "acts.safetensors"), **held_out),
        "sae": base.sae | {"site": "in", "d_sae": 64, "target_l0": 3},
        "training": replace(base.training, **small),
        "shuffle": ShuffleArguments(bucket_tokens=2048),
        "evaluation": EvaluationArguments(bootstrap_samples=20),
    }
    return replace(base, **given, **sections)


def test_several_saes_and_a_transcoder_train_on_one_reading(two_sites, tmp_path):
    saes = {"plain": {}, "across": {"target_site": "out", "subtract_b_dec": False}}
    folders = run(recipe_of(two_sites, tmp_path / "run", saes=saes, collect_tokens=0))
    plain, across = map(load_trained, folders)
    assert (plain.config.d_out, across.config.d_out) == (D, 8)
    for folder in folders:
        metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
        assert metrics["fvu"]["value"] < 0.5
    assert "predict out from in" in (folders[1] / "README.md").read_text()


def card_of(folder) -> str:
    return (folder / "README.md").read_text()


def test_labels_are_tabled_beside_raw_dimensions_and_made_again_where_they_change(
    two_sites, tmp_path
):
    labels = two_sites / "labels.csv"
    recipe = recipe_of(two_sites, tmp_path / "run", labels=str(labels), collect_tokens=0)
    (folder,) = run(recipe)
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    rows = {
        (a["column"], a["measure"]): a
        for a in json.loads((folder / "features/columns.json").read_text())["associations"]
    }
    kind, noise = rows["kind", "auc"], rows["noise", "spearman"]
    assert kind["latent"]["value"] > 0.85 > kind["raw"]["value"]
    assert noise["n_passing"] == 0 and abs(noise["latent"]["value"]) < 0.3
    best, raw = kind["latent"], kind["raw"]
    low = ", low" if best["sign"] < 0 else ""
    shown = f"| {best['index']} {best['use']}{low} | {best['value']:.2f} ({best['low']:.2f} to "
    assert f"{shown}{best['high']:.2f}) | {raw['index']} " in card_of(folder)
    other = tmp_path / "other.csv"
    other.write_text(labels.read_text().replace("kind", "height"))
    (again,) = run(recipe_of(two_sites, tmp_path / "run", labels=str(other), collect_tokens=0))
    assert "height" in (again / "features/columns.md").read_text() and "height" in card_of(again)
    assert (again / "model.safetensors").stat().st_mtime_ns == weights, "nothing is trained again"


def test_arms_are_compared_on_files(two_sites, tmp_path):
    recipe = recipe_of(two_sites, tmp_path / "c", collect_tokens=0)
    of_recipe = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    arms = {
        "jumprelu": {"sweep": {"target_l0": [2, 4]}},
        "topk": {
            "sae": {"model_type": "topk_sae", "target_l0": None},
            "sweep": {"k": [2, 4]},
            "training": {"warm_start_steps": 0},
        },
    }
    report = compare(Comparison(**of_recipe, arms=arms, seeds=[0], at_l0=[3.0]))
    text = (report / "report.md").read_text()
    assert "| topk |" in text and "FVU" in text


@pytest.mark.parametrize("verb", ["explain", "probe", "presets"])
def test_what_needs_a_language_model_is_refused(verb, trained, capsys):
    assert "an SAE of files, so there is no language model" in refused([verb, str(trained)], capsys)


def test_arrays_and_numbers_of_other_kinds_are_one_sentence(tmp_path, capsys):
    with pytest.raises(ValueError, match="must be paths of files, got a ndarray"):
        hfsae.train(activations=np.ones((9, 4)), d_sae=8, output_dir=tmp_path / "x")
    np.save(tmp_path / "f64.npy", np.ones((900, 4)))
    said = refused(["train", "--activations", str(tmp_path / "f64.npy"), *SMALL], capsys)
    assert "as float64 by" in said


def test_labels_that_do_not_fit_stop_a_run_before_it_trains(acts, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("document,kind\n0,a\n7777,b\n")
    argv = ["train", "--activations", str(acts), "--labels", str(tmp_path / "labels.csv"), *SMALL]
    assert "7777" in refused([*argv, "--training.output_dir", str(tmp_path / "x")], capsys)
    assert not [*tmp_path.glob("x/**/*.pt")]


def test_what_would_stop_the_stages_after_training_stops_it_before(acts, tmp_path, capsys):
    tensors, bad = load_file(acts), tmp_path / "bad.safetensors"
    train = ["train", *SMALL, "--training.output_dir", str(tmp_path / "run"), "--activations"]
    labels = tmp_path / "few.csv"
    labels.write_text("document,k\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    said = refused([*train, str(acts), "--labels", str(labels)], capsys)
    assert "documents with labels were read" in said and "held_out_fraction is 0.05: raise" in said
    row = int(FileSource(ActivationArguments(str(acts)), ["layer8"]).row_numbers("test")[10])
    tensors["layer8"][row] = float("nan")
    save_file(tensors, bad)
    assert f"row {row:,} of {bad} holds NaN" in refused([*train, str(bad)], capsys)
    for factor, sentence in (
        (1e25, "norms of about 2e+26, whose squares float32 does not hold; divide them by 2e+26"),
        (1e-25, "norms of about 2e-24, whose squares float32 does not hold; divide them by 2e-24"),
        (0.0, "are the same vector in all 2,048 of a sample, so there is nothing to learn"),
    ):
        scaled = load_file(acts)
        scaled["layer8"] *= factor
        save_file(scaled, tmp_path / "scaled.safetensors")
        assert main([*train, str(tmp_path / "scaled.safetensors")]) == 2  # once a sample was read
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("side, last", [("train", 4000), ("test", 700)])
@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_each_row_that_a_run_reads_is_read_before_and_a_mended_one_is_trained_on(
    acts, tmp_path, capsys, side, last, form
):
    tensors, bad = load_file(acts), tmp_path / f"bad.{form}"

    def save() -> None:
        if form == "parquet":
            columns = {name: list(x.numpy()) for name, x in tensors.items()}
            parquet.write_table(pa.table(columns), bad)
        else:
            save_file(tensors, bad)

    args = ActivationArguments(str(acts), held_out_fraction=0.2)
    row = int(FileSource(args, ["layer8"]).row_numbers(side)[last])
    whole = tensors["layer8"][row, 3].clone()
    tensors["layer8"][row, 3] = float("-inf")
    save()
    train = ["train", "--activations", str(bad), "--site", "layer8", *SMALL]
    train += ["--training.output_dir", str(tmp_path / "run"), "--training.n_tokens", "6400"]
    train += ["--evaluation.n_tokens", "50"]
    train += ["--activations.held_out_fraction", "0.2", "--collect_tokens", "0"]
    if side == "test":
        labels = tmp_path / "labels.csv"
        lines = "".join(f"{i},{i % 2}\n" for i in range(N // PER_DOCUMENT))
        labels.write_text(f"document,k\n{lines}")
        train += ["--labels", str(labels)]
    assert f"row {row:,} of {bad} holds NaN or infinity" in refused(train, capsys)
    assert not [*tmp_path.glob("run/**/*.*")]
    tensors["layer8"][row, 3] = whole
    save()
    assert main(train) == 0


def test_a_field_that_files_do_not_use_is_refused(acts, tmp_path, capsys):
    argv = ["train", "--activations", str(acts), "--training.output_dir", str(tmp_path / "x")]
    said = refused([*argv, "--text.dataset", "mine.jsonl"], capsys)
    assert said == "--text.dataset has no effect on a recipe of files; leave it out"


def test_a_push_lists_each_file_once(trained, capsys):
    folder = trained.parent / "pushed"
    shutil.copytree(trained, folder)
    (folder / "notes.txt").write_text("mine")
    table = {"associations": [], "by": "document", "n_units": 0, "n_documents": 0}
    (folder / "features/columns.json").write_text(json.dumps(table))
    assert main(["push", str(folder), "me/mine", "--dry_run"]) == 0
    out = capsys.readouterr().out
    sent, _, left = out.partition("not sent: ")
    assert "features/columns.json" in sent and "columns.json" not in left
    assert "notes.txt" in left and "notes.txt" not in sent


def test_a_folder_of_files_and_one_of_text_are_not_mixed(acts, loads, tmp_path):
    run(tiny_recipe(tmp_path / "run", collect_tokens=0))
    files = ActivationArguments(files=str(acts))
    recipe = tiny_recipe(
        tmp_path / "run", collect_tokens=0, activations=files, sae={"site": "layer8"}
    )
    with pytest.raises(ValueError, match="another recipe"):
        run(recipe)
    assert load_trained(tmp_path / "run").config.site == "layers.1"


def test_the_guide_writes_the_activations_of_an_audio_encoder_to_files(tmp_path, monkeypatch):
    guide = (ROOT / "scripts" / "recipes" / "activations.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    folder = save_encoder("wav2vec2", tmp_path / "speech")
    code = code.replace("facebook/wav2vec2-base", folder).replace("layers.8", "layers.1")
    generator = np.random.default_rng(0)
    waves = [generator.normal(size=3200 + 800 * (i % 3)) for i in range(40)]
    monkeypatch.chdir(tmp_path)
    exec(code, {"waves": waves})
    held_out = {"held_out_fraction": 0.3}
    source = FileSource(ActivationArguments("acts.safetensors", **held_out), ["layer8"])
    assert source.documents == list(range(40)) and source.shapes.widths == {"layer8": 16}
    model = whole_model("wav2vec2")
    with torch.no_grad():
        inputs = torch.tensor(waves[3], dtype=torch.float32)[None]
        normal = (inputs - inputs.mean()) / (inputs.var(correction=0) + 1e-7).sqrt()
        expected = model(normal, output_hidden_states=True).hidden_states[2][0]
    mine = load_file("acts.safetensors")
    torch.testing.assert_close(
        mine["layer8"][mine["document"] == 3], expected, rtol=1e-4, atol=1e-5
    )
