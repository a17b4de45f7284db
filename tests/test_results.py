"""The results of a run: what is made after training, in which order, and when anew."""

import json
from dataclasses import fields

from hfsae.io.checksums import sealed
from hfsae.io.file_names import CARD, EVALUATION, EXPLANATIONS_RECORD, META, RECORDS
from hfsae.runs import Recipe, as_plain, outdated, run, stage_of
from hfsae.runs.recipe import TRAINING_SECTIONS, value_at, what_is_set, with_value
from hfsae.runs.results import MADE_FROM, STAGES, Stage, made_from

from .tiny import tiny_recipe


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


def test_a_result_carries_the_hash_of_its_settings_its_weights_and_its_stages_version():
    recipe, stage = Recipe(), stage_of(EVALUATION)
    made = made_from(stage, recipe, "weights")
    assert made_from(stage, Recipe(seed=1), "weights") == made, "no section of its own"
    recipe.evaluation.n_foreign_tokens += 1
    others = {made_from(stage, recipe, "weights"), made_from(stage, Recipe(), "other")}
    others |= {made_from(stage._replace(version=2), Recipe(), "weights")}
    assert len(others) == 3 and made not in others
    assert what_is_set(Recipe(), stage.sections) == {"evaluation": {}}, "of defaults nothing counts"


def test_which_results_are_made_again_is_told_with_the_reason(tmp_path, loads, caplog):
    (folder,) = run(tiny_recipe(tmp_path / "sae"))
    assert outdated(folder, tiny_recipe(tmp_path / "sae")) == {}
    other = tiny_recipe(tmp_path / "sae")
    other.evaluation.bootstrap_samples += 1
    run(other)
    said = f"{folder / EVALUATION} was made with other settings (evaluation); {EVALUATION} is made"
    assert said in caplog.text and META not in caplog.text


def test_names_that_were_asked_for_by_a_verb_stand(tmp_path, loads):
    """Where a stage's settings differ, it makes what it made, and no more."""
    (folder,) = run(tiny_recipe(tmp_path / "sae", explain_tokens=2000))
    path = folder / EXPLANATIONS_RECORD
    record = {k: v for k, v in json.loads(path.read_text()).items() if k != MADE_FROM}
    path.write_text(json.dumps(sealed(record)))
    before = path.read_bytes()
    run(tiny_recipe(tmp_path / "sae", explain_tokens=1500))
    assert path.read_bytes() == before
