"""Names at the end of a run: each latent with examples has one, some have scores; it resumes."""

import json
import random
import shutil

import pyarrow.parquet as pq
import pytest

from hfsae.activations import TextArguments
from hfsae.explain.stored import STORED
from hfsae.features import FeatureStore, read_names
from hfsae.recipe import load_plain, run

from ..conftest import every_lm_is
from ..tiny import tiny_recipe

D_SAE = 48
RECORD, TABLE = "features/explanations.json", "features/explanations.parquet"


def recipe_of(folder, **fields):
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(60)]
    text = TextArguments(dataset=texts, context_size=64, held_out_fraction=0.6)
    return tiny_recipe(folder, **{"text": text, "sae": {"d_sae": D_SAE}} | fields)


@pytest.fixture(scope="module")
def named(tmp_path_factory, tiny_lm, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("run") / "sae"
    with pytest.MonkeyPatch.context() as patch:
        every_lm_is(tiny_lm, tiny_tokenizer, patch)
        patch.setattr("hfsae.cards.figures.draw", lambda folder: None)
        run(recipe_of(folder, explain_tokens=2500))
    return folder


@pytest.fixture
def folder(named, tmp_path):
    shutil.copytree(named, tmp_path / "sae")
    return tmp_path / "sae"


def record_of(folder):
    return json.loads((folder / RECORD).read_text())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("hfsae.cards.figures.draw", lambda folder: None)


def test_each_latent_with_examples_has_a_name_and_the_drawn_ones_have_scores(named):
    rows = pq.read_table(named / TABLE).to_pylist()
    store = FeatureStore.load(named)
    with_examples = {i for i in range(D_SAE) if store[i].examples}
    scored = [row["latent"] for row in rows if row["pearson"] is not None]
    assert scored == record_of(named)["latents"] and len(scored) >= 20
    assert {row["latent"] for row in rows} == with_examples | {*scored}
    assert {*read_names(named)} == with_examples | {*scored}
    for row in rows[len(scored) :]:
        examples = store[row["latent"]].examples
        assert row["source"] == STORED and row["n_shown"] == len(examples)
        peaks = {e.tokens[e.firing].strip() for e in examples}
        assert any(peak in row["explanation"] for peak in peaks)


def test_a_second_run_leaves_names_alone_and_a_plan_is_not_a_result(folder, loads):
    recipe = recipe_of(folder, explain_tokens=2500)
    run(recipe)
    assert not loads
    made = (folder / TABLE).read_bytes()
    plan = {key: value for key, value in record_of(folder).items() if key != "scores"}
    (folder / RECORD).write_text(json.dumps(plan))
    (folder / TABLE).unlink()
    run(recipe)
    assert len(loads) == 1 and (folder / TABLE).read_bytes() == made
    assert "scores" in record_of(folder)


def test_other_tokens_name_again_and_change_nothing_else(folder, loads):
    kept = {
        name: (folder / name).read_bytes() for name in ("evaluation.json", "features/meta.json")
    }
    run(recipe_of(folder, explain_tokens=2000))
    assert record_of(folder)["arguments"]["n_tokens"] == 2000
    assert load_plain(folder)["explain_tokens"] == 2000
    assert kept == {name: (folder / name).read_bytes() for name in kept}


def test_too_little_text_for_scores_gives_names_without_them(folder, loads, caplog):
    run(recipe_of(folder, explain_tokens=100))
    record = record_of(folder)
    assert "read more tokens" in record["unscored"] and record["unscored"] in caplog.text
    names = read_names(folder)
    assert len(names) == record["n_stored_names"] > 20
    assert all(name.startswith("auto: ") for name in names.values())
    run(recipe_of(folder, explain_tokens=100))
    assert len(loads) == 1, "the reason is a result: it is not tried again"
