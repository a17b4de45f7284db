"""The results of a run: what is made after training, in which order, and when anew."""

import json
import os
import shutil
from dataclasses import fields, replace

import pyarrow.parquet as pq
import pytest

from hfsae.activations import TextArguments
from hfsae.cards.merge import front_of
from hfsae.explanations.explainers import STORED
from hfsae.io.checksums import sealed
from hfsae.io.file_names import (
    CARD,
    EVALUATION,
    EVIDENCE,
    EXAMPLES,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FIGURES,
    FINGERPRINT,
    LATENTS,
    META,
    RECORDS,
    TRAINING,
)
from hfsae.runs import Recipe, as_plain, load_plain, outdated, run, save_recipe, stage_of
from hfsae.runs.recipe import TRAINING_SECTIONS, value_at, what_is_set, with_value
from hfsae.runs.results import MADE_FROM, STAGES, Stage, made_from

from .conftest import every_lm_is
from .tiny import letters, letters_recipe, tiny_recipe


def test_each_field_of_a_recipe_is_the_trainings_or_a_stages():
    named = {section for stage in STAGES for section in stage.sections}
    assert not named & {*TRAINING_SECTIONS}
    sections = {section.partition(".")[0] for section in named}  # of some a stage has one field
    every = {field.name for field in fields(Recipe)}
    assert {*TRAINING_SECTIONS} | sections == every - {"license"}  # which only the card shows


def test_a_stage_of_size_0_is_left_out():
    recipe, settings = Recipe(), [stage.setting for stage in STAGES if stage.setting]
    for setting in settings:
        recipe = with_value(recipe, setting, 0)
    assert {value_at(as_plain(recipe), setting) for setting in settings} == {0}
    made = [stage.file for stage in STAGES if stage.size(recipe) != 0]
    assert made == ["fingerprint.safetensors", "README.md"]


def test_each_stage_writes_the_stamp_and_the_seal_that_its_record_promises(tmp_path, loads):
    (folder,) = run(tiny_recipe(tmp_path / "sae", explain_tokens=2000))
    files, records = [stage.file for stage in STAGES], {r.file: r for r in RECORDS}
    made = [file for file in files if file.endswith(".json") and (folder / file).exists()]
    assert made == [EVALUATION, META, EXPLANATIONS_RECORD]
    for file in made:
        content = json.loads((folder / file).read_text())
        assert "weights_sha256" in content or not records[file].is_stamped, file
        assert "content_sha256" in content or not records[file].is_sealed, file
    recorded = [files.index(file) for file in files if file in records]
    assert max(recorded) < files.index(CARD), "what the card shows is checked before it is written"


def test_a_fingerprint_reads_no_row_more_than_its_64_tokens_take(tmp_path, loads, tiny_lm):
    """Of rows of 128 tokens one: at a model's real size a batch of them takes minutes on a CPU."""
    text = TextArguments(dataset=letters(), context_size=128, held_out_fraction=0.6)
    (folder,) = run(letters_recipe(tmp_path / "sae", text=text))
    (folder / FINGERPRINT).unlink()
    read = []
    counting = tiny_lm.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    run(letters_recipe(tmp_path / "sae", text=text))
    counting.remove()
    assert [shape for shape in read if shape != (1, 1)] == [(1, 128)] and (
        folder / FINGERPRINT
    ).is_file()


def test_a_further_line_of_the_table_is_a_stage_of_a_run(tmp_path, loads, monkeypatch):
    """Made in its turn, kept, and made anew where a section of its own changes."""
    made = []

    def count(job):
        made.append([stage.file for stage in STAGES if (job.folder / stage.file).exists()])
        record = {"n": job.sae.config.d_sae, **job.more}
        (job.folder / "count.json").write_text(json.dumps(record))

    at = next(i for i, stage in enumerate(STAGES) if stage.file == CARD)
    longer = (*STAGES[:at], Stage("count.json", count, sections=("collect",)), *STAGES[at:])
    monkeypatch.setattr("hfsae.runs.results.STAGES", longer)
    before = ["evaluation.json", "features/meta.json", "fingerprint.safetensors"]
    (folder,) = run(tiny_recipe(tmp_path / "sae"))
    assert json.loads((folder / "count.json").read_text())["n"] == 32 and made == [before]
    run(tiny_recipe(tmp_path / "sae"))
    assert made == [before], "it is kept"
    (folder / "count.json").unlink()
    run(tiny_recipe(tmp_path / "sae"))
    assert made == [before, [*before, CARD]], "what is missing is made again"
    recipe = tiny_recipe(tmp_path / "sae")
    recipe.collect.top += 1
    run(recipe)
    assert len(made) == 3 and len(loads) == 3


def test_a_stage_that_takes_all_text_is_made_anew_where_its_section_changes(tmp_path, loads):
    """Its size is None, which is not 0."""
    recipe = tiny_recipe(tmp_path / "sae")
    recipe.evaluation.n_tokens = None
    (folder,) = run(recipe)
    before = (folder / "evaluation.json").read_bytes()
    recipe.evaluation.bootstrap_samples += 10
    run(recipe)
    assert (folder / "evaluation.json").read_bytes() != before and len(loads) == 2


def test_a_result_carries_the_hash_of_its_settings_and_its_weights():
    recipe, stage = Recipe(), stage_of(EVALUATION)
    made = made_from(stage, recipe, "weights")
    assert made_from(stage, Recipe(seed=1), "weights") == made, "no section of its own"
    recipe.evaluation.n_foreign_tokens += 1
    others = {made_from(stage, recipe, "weights"), made_from(stage, Recipe(), "other")}
    assert len(others) == 2 and made not in others
    assert what_is_set(Recipe(), stage.sections) == {"evaluation": {}}, "of defaults nothing counts"


def test_which_results_are_made_again_is_told_with_the_reason(tmp_path, loads, caplog):
    (folder,) = run(tiny_recipe(tmp_path / "sae"))
    assert outdated(folder, tiny_recipe(tmp_path / "sae")) == {}
    other = tiny_recipe(tmp_path / "sae")
    other.evaluation.bootstrap_samples += 1
    run(other)
    field = "evaluation.bootstrap_samples is 20 there and 21 here"
    said = (
        f"{folder / EVALUATION} was made with other settings ({field}); {EVALUATION} is made again"
    )
    assert f"{said} (evaluate)" in caplog.text and META not in caplog.text
    caplog.clear()
    save_recipe(folder, as_plain(tiny_recipe(tmp_path / "sae")))  # as an interrupted run does
    run(tiny_recipe(tmp_path / "sae"))
    assert f"{folder / EVALUATION} was made with other settings (evaluation);" in caplog.text


def test_names_that_were_asked_for_by_a_verb_stand(tmp_path, loads):
    """Where a stage's settings differ, it makes what it made, and no more."""
    (folder,) = run(tiny_recipe(tmp_path / "sae", explain_tokens=2000))
    path = folder / EXPLANATIONS_RECORD
    record = {k: v for k, v in json.loads(path.read_text()).items() if k != MADE_FROM}
    path.write_text(json.dumps(sealed(record)))
    before = path.read_bytes()
    run(tiny_recipe(tmp_path / "sae", explain_tokens=1500))
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def named(tmp_path_factory, tiny_lm, tiny_tokenizer):
    """A finished run with names, of `letters`."""
    with pytest.MonkeyPatch.context() as patch:
        every_lm_is(tiny_lm, tiny_tokenizer, patch)
        (folder,) = run(named_recipe(tmp_path_factory.mktemp("run") / "sae"))
    return folder


@pytest.fixture
def folder(named, tmp_path):
    """A copy of it."""
    return shutil.copytree(named, tmp_path / "sae")


def named_recipe(folder, **fields):
    return letters_recipe(folder, explain_tokens=2500, license="mit", **fields)


def test_names_are_made_again_with_the_examples_that_they_are_made_from(folder, loads, caplog):
    recipe = named_recipe(folder)
    recipe.collect = replace(recipe.collect, top=1, quantiles=1, per_quantile=0)
    run(recipe)
    rows = pq.read_table(folder / EXPLANATIONS).to_pylist()
    assert {row["n_shown"] for row in rows if row["source"] == STORED} == {1}
    assert f"{META} is made again (collect)" in caplog.text
    assert f"{EXPLANATIONS_RECORD} is made again (explain)" in caplog.text
    run(recipe)
    assert len(loads) == 1


@pytest.mark.parametrize(
    "file, of",
    [(LATENTS, META), (EXAMPLES, META)]
    + [(file, EXPLANATIONS_RECORD) for file in (EXPLANATIONS, EVIDENCE, EXPLANATIONS_REPORT)],
)
def test_a_result_without_a_file_that_belongs_to_it_is_made_again(folder, loads, caplog, file, of):
    before = (folder / file).read_bytes()
    (folder / file).unlink()
    run(named_recipe(folder))
    assert (folder / file).read_bytes() == before and len(loads) == 1
    assert f"{folder / file} is missing; {of} is made again" in caplog.text


def test_a_result_that_a_verb_made_is_not_lost_for_its_report(folder, loads):
    record = json.loads((folder / EXPLANATIONS_RECORD).read_text())
    del record[MADE_FROM]
    (folder / EXPLANATIONS_RECORD).write_text(json.dumps(sealed(record)))
    (folder / EXPLANATIONS_REPORT).unlink()
    assert EXPLANATIONS_RECORD not in outdated(folder, named_recipe(folder))
    (folder / EXPLANATIONS).unlink()
    assert EXPLANATIONS_RECORD in outdated(folder, named_recipe(folder))


def test_an_unfinished_result_is_told_from_a_missing_one(folder, loads):
    record = json.loads((folder / EXPLANATIONS_RECORD).read_text())
    plan = {key: value for key, value in record.items() if key != "scores"}
    (folder / EXPLANATIONS_RECORD).write_text(json.dumps(sealed(plan)))
    (folder / EVALUATION).unlink()
    why = outdated(folder, named_recipe(folder))
    assert why[EXPLANATIONS_RECORD] == f"{folder / EXPLANATIONS_RECORD} is unfinished"
    assert why[EVALUATION] == f"{folder / EVALUATION} is missing"


def test_an_edit_is_told_to_be_overwritten_and_no_probing_to_be_lost(folder, loads, caplog):
    before = (folder / EVALUATION).read_bytes()
    (folder / EVALUATION).write_text(json.dumps({**json.loads(before), "n_tokens": 1}))
    run(named_recipe(folder))
    assert (folder / EVALUATION).read_bytes() == before
    assert "differs; it is overwritten; evaluation.json is made again (evaluate)" in caplog.text
    assert "probing" not in caplog.text


def test_a_card_is_written_again_without_the_language_model_and_with_the_reason(
    folder, loads, caplog
):
    caplog.set_level("INFO", "hfsae")
    shutil.rmtree(folder / FIGURES)
    run(named_recipe(folder))
    assert f"{folder / FIGURES} is missing; {folder / CARD} is written again" in caplog.text
    assert (folder / FIGURES).is_dir()
    os.utime(folder / META)
    run(named_recipe(folder))
    assert f"{folder / META} is newer; {folder / CARD} is written again" in caplog.text
    assert not loads and "nothing to do" not in caplog.text
    run(named_recipe(folder))
    assert "nothing to do" in caplog.text


def test_another_licence_is_on_the_card_unless_a_person_wrote_one_there(folder, loads, caplog):
    caplog.set_level("INFO", "hfsae")
    card = folder / CARD
    text = card.read_text()
    for before, new in (("mit", "apache-2.0"), ("apache-2.0", None), (None, "mit")):
        run(replace(named_recipe(folder), license=new))
        assert f"license is {before!r} there and {new!r} here; {card} is written" in caplog.text
        assert front_of(card.read_text()).get("license") == new
        assert load_plain(folder)["license"] == new
    assert card.read_text() == text and not loads
    card.write_text(text.replace("license: mit", "license: cc0-1.0"))
    recipe = replace(named_recipe(folder), license="apache-2.0")
    run(recipe)
    assert front_of(card.read_text())["license"] == "cc0-1.0" and outdated(folder, recipe) == {}


def test_a_damaged_record_of_training_is_told_before_the_language_model_loads(folder, loads):
    record = json.loads((folder / TRAINING).read_text())
    (folder / EVALUATION).unlink()
    for text, why in (("{", "Expecting"), (json.dumps({**record, "harvested": 1}), "no norm lim")):
        (folder / TRAINING).write_text(text)
        with pytest.raises(ValueError, match=rf"training\.json is damaged \(.*{why}"):
            run(named_recipe(folder))
    assert not loads
