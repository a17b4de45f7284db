"""Names at the end of a run: each latent with examples has one, some have scores; it resumes."""

import html
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import hfsae
from hfsae.cards import render_card, shown_latents
from hfsae.cli import main
from hfsae.demo import Choice, open_subject
from hfsae.demo.inspect_actions import feature
from hfsae.explanations.explainers import STORED
from hfsae.features import FeatureStore, read_automatic, read_names, write_label
from hfsae.io.checksums import changes
from hfsae.runs import load_plain, run

from ..conftest import every_lm_is
from ..tiny import letters_recipe

D_SAE = 48
RECORD, TABLE = "features/explanations.json", "features/explanations.parquet"
EVIDENCE = "features/evidence.parquet"


@pytest.fixture(scope="module")
def named(tmp_path_factory, tiny_lm, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("run") / "sae"
    with pytest.MonkeyPatch.context() as patch:
        every_lm_is(tiny_lm, tiny_tokenizer, patch)
        run(letters_recipe(folder, explain_tokens=2500))
    return folder


@pytest.fixture
def folder(named, tmp_path):
    shutil.copytree(named, tmp_path / "sae")
    return tmp_path / "sae"


def record_of(folder):
    return json.loads((folder / RECORD).read_text())


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
    recipe = letters_recipe(folder, explain_tokens=2500)
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
    run(letters_recipe(folder, explain_tokens=2000))
    assert record_of(folder)["arguments"]["n_tokens"] == 2000
    assert load_plain(folder)["explain_tokens"] == 2000
    assert kept == {name: (folder / name).read_bytes() for name in kept}


def test_too_little_text_for_scores_gives_names_without_them(folder, loads, caplog):
    caplog.set_level("INFO", "hfsae")
    run(letters_recipe(folder, explain_tokens=100))
    record = record_of(folder)
    assert "read more tokens" in record["unscored"]
    (note,) = (r for r in caplog.records if record["unscored"] in r.getMessage())
    assert note.levelname == "INFO" and note.getMessage().startswith("note: names of latents have")
    assert note.getMessage().endswith(f"`hfsae explain {folder} --n_tokens N` tries again")
    names = read_names(folder)
    assert len(names) == record["n_stored_names"] > 20
    assert all(name.startswith("auto: ") for name in names.values())
    run(letters_recipe(folder, explain_tokens=100))
    assert len(loads) == 1, "the reason is a result: it is not tried again"


def test_a_run_whose_sae_never_fires_has_all_its_results(tmp_path, loads, capsys):
    """A mishap of the sparsity must not lose the rest of a long run."""
    folder = tmp_path / "sae"
    sae = {"d_sae": D_SAE, "initial_threshold": 1e6}
    run(letters_recipe(folder, sae=sae, explain_tokens=2500))
    made = ("evaluation.json", "features/meta.json", "fingerprint.safetensors", "README.md", RECORD)
    assert all((folder / name).is_file() for name in made)
    assert "silent on all tokens read" in record_of(folder)["unscored"]
    assert main(["show", str(folder)]) == main(["show", str(folder), "3"]) == 0
    assert main(["card", str(folder)]) == main(["verify", str(folder)]) == 0
    assert "latent 3: fires on 0.000% of tokens (0)" in capsys.readouterr().out
    assert open_subject(Choice(str(folder)), with_lm=False).store is not None


def test_windows_that_test_a_latent_fire_at_their_peak_or_not_at_all(named):
    windows = pq.read_table(named / EVIDENCE).to_pylist()
    assert {w["latent"] for w in windows} == {*record_of(named)["latents"]}
    for window in windows:
        tokens, activations = window["tokens"], window["activations"]
        assert len(tokens) == len(activations) and tokens[window["firing"]]
        assert window["activation"] == activations[window["firing"]] == max(activations)
        assert (window["activation"] > 0) == window["kind"].startswith("quantile")


def test_the_card_has_scores_with_controls_and_the_names_of_its_latents(folder):
    card = render_card(folder)
    n_scored, n_stored = (record_of(folder)[key] for key in ("n_latents", "n_stored_names"))
    assert f"{n_scored + n_stored} latents have names" in card
    pearson = record_of(folder)["scores"]["lexical"]["uniform"]["pearson"]
    difference = "{:.3f}, {:.3f} to {:.3f}".format(*pearson["difference"])
    assert f"| {difference} | {'yes' if pearson['difference'][1] > 0 else 'no'} |" in card
    latent = next(shown_latents(folder))["latent"]
    assert f"named  {html.escape(read_names(folder)[latent], quote=False)}" in card
    write_label(folder, latent, "the sea")
    assert "named  the sea" in render_card(folder)


@pytest.mark.parametrize("name", [TABLE, EVIDENCE])
def test_names_and_windows_copied_from_another_sae_are_left_out_and_not_pushed(
    folder, capsys, name
):
    table = pq.read_table(folder / name)
    pq.write_table(table.replace_schema_metadata({"weights_sha256": "0" * 64}), folder / name)
    sentence = f"{Path(name).name} was made with other weights"
    with pytest.raises(ValueError, match=sentence):
        read_automatic(folder)
    assert main(["show", str(folder)]) == 0
    assert f"note: names are left out: {folder / name} was made" in capsys.readouterr().out
    with pytest.raises(ValueError, match=sentence):
        hfsae.push(folder, "me/sae", dry_run=True)
    notes = open_subject(Choice(str(folder)), with_lm=False).notes
    assert any("its automatic names are left out" in note for note in notes)


def test_names_and_windows_are_those_that_were_written_with_their_record(folder):
    assert list(changes(folder)) == []
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.slice(1), folder / TABLE)
    with pytest.raises(ValueError, match=r"explanations\.parquet is damaged .*hfsae explain "):
        hfsae.push(folder, "me/sae", dry_run=True)


def test_labels_of_other_weights_are_not_on_the_card_and_not_pushed(folder, caplog):
    latent = next(shown_latents(folder))["latent"]
    write_label(folder, latent, "the sea")
    path = folder / "features/labels.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": "0" * 64}))
    assert "the sea" not in render_card(folder) and "has no labels" in caplog.text
    with pytest.raises(ValueError, match=r"labels\.json was made with other weights"):
        hfsae.push(folder, "me/sae", dry_run=True)


def test_a_card_has_no_names_of_other_weights(folder):
    record = record_of(folder) | {"weights_sha256": "0" * 64}
    (folder / RECORD).write_text(json.dumps(record))
    assert "## Names" not in render_card(folder) and "named  " not in render_card(folder)


def test_the_app_shows_the_name_its_score_and_its_windows(folder):
    subject = open_subject(Choice(str(folder)), with_lm=False)
    rows = pq.read_table(folder / TABLE).to_pylist()
    view = feature(subject, rows[0]["latent"])
    assert view["auto"]["explanation"] == rows[0]["explanation"] and view["label"] == ""
    assert f"a correlation of {rows[0]['pearson']:.2f};" in view["auto"]["note"]
    windows = sum(len(group["examples"]) for group in view["auto"]["groups"])
    assert windows == rows[0]["n_active"] + rows[0]["n_hard"] + rows[0]["n_random"]
    subject.take_labels({rows[0]["latent"]: "the sea"})
    view = feature(subject, rows[0]["latent"])
    assert view["label"] == "the sea" and view["auto"]["explanation"] == rows[0]["explanation"]
    if untested := [row for row in rows if row["pearson"] is None]:
        view = feature(subject, untested[0]["latent"])["auto"]
        assert view["note"].endswith("not tested") and view["groups"] == []
