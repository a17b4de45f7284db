"""Explanations of a run's latents: the order of things, files, the verb, and its refusals."""

import json

import pyarrow.parquet as pq
import pytest
import yaml

from hfsae.cli import main
from hfsae.demo.opening import open_subject
from hfsae.demo.subject import Choice
from hfsae.explanations import ExplainArguments, explain
from hfsae.features import read_names, write_label
from hfsae.hub.outgoing import files_to_publish, published
from hfsae.io.checksums import weights_hash

from ..helpers import refused
from .conftest import D_SAE, N_TOKENS, verb

LATENTS = [str(i) for i in range(D_SAE)]
FILES = ("explanations.parquet", "explanations.json", "explanations.md")


def named(folder, *options: str) -> list[str]:
    return verb(folder, "--latents", *LATENTS, *options)


def test_the_verb_writes_files_that_name_the_weights_and_prints_the_report(folder, loads, capsys):
    assert main(named(folder)) == 0
    text = capsys.readouterr().out
    report = (folder / "features/explanations.md").read_text()
    assert report.splitlines()[0] == "# Names for latents" and "| pearson |" in text
    record = json.loads((folder / "features/explanations.json").read_text())
    table = pq.read_table(folder / "features/explanations.parquet")
    assert record["weights_sha256"] == weights_hash(folder)
    assert table.schema.metadata[b"weights_sha256"].decode() == weights_hash(folder)
    assert table["latent"].to_pylist() == record["latents"]
    assert len(table) + sum(record["left_out"].values()) == D_SAE
    assert all(table["explanation"].to_pylist()) and {*table["source"].to_pylist()} == {"template"}
    scores = record["scores"]["lexical"]["uniform"]["pearson"]
    assert scores["own"][1] <= scores["own"][0] <= scores["own"][2]
    assert str(folder) not in json.dumps(record), "no path of this machine"


def test_the_plan_is_noted_before_anything_is_explained_or_scored(planted):
    events = []

    def explainer(shown):
        events.append("explained")
        return {next(iter(shown)): "a name"}

    result = explain(
        planted.lm,
        planted.sae,
        planted.batches(),
        ExplainArguments(n_latents=20, bootstrap_samples=50),
        explainer=explainer,
        source="mine",
        tokenizer=planted.tokenizer,
        note_plan=lambda plan: events.append(plan),
    )
    plan, then = events
    assert then == "explained" and "scores" not in plan
    assert plan["latents"] == [row["latent"] for row in result.rows]
    assert len(plan["latents"]) + sum(plan["left_out"].values()) == N_TOKENS
    assert result.record["plan_sha256"] == plan["plan_sha256"]
    assert [row["explanation"] for row in result.rows[:2]] == ["a name", None]
    again = explain(
        planted.lm,
        planted.sae,
        planted.batches(7),
        ExplainArguments(n_latents=20, bootstrap_samples=50, seed=1),
        tokenizer=planted.tokenizer,
    )
    assert again.record["plan_sha256"] != plan["plan_sha256"]
    assert again.record["scores"]["lexical"]["uniform"]["pearson"]["own"][0] == pytest.approx(1)


def test_the_same_command_again_reads_nothing_and_other_settings_do(folder, loads, capsys):
    assert main(named(folder)) == 0
    made = {name: (folder / "features" / name).read_bytes() for name in FILES}
    first = capsys.readouterr().out
    assert main(named(folder)) == 0
    assert capsys.readouterr().out == first and len(loads) == 1
    assert main(named(folder, "--seed", "1")) == 0 and len(loads) == 2
    assert main(named(folder)) == 0 and len(loads) == 3
    assert made == {name: (folder / "features" / name).read_bytes() for name in FILES}, "to the bit"
    record = json.loads(made["explanations.json"])
    plan = {k: v for k, v in record.items() if k not in ("scores", "about", "controls")}
    (folder / "features/explanations.json").write_text(json.dumps(plan))
    assert main(named(folder)) == 0 and len(loads) == 4, "only planned when it was stopped"


def test_labels_of_people_and_files_of_others_are_explanations(folder, loads, tmp_path):
    assert main(named(folder)) == 0
    latents = pq.read_table(folder / "features/explanations.parquet")["latent"].to_pylist()
    for latent in latents[:3]:
        write_label(folder, latent, f"label {latent}")
    assert main(named(folder, "--explainer", "human")) == 0
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert {r["latent"]: r["explanation"] for r in rows} == {i: f"label {i}" for i in latents[:3]}
    record = json.loads((folder / "features/explanations.json").read_text())
    assert record["left_out"]["without an explanation"] == D_SAE - 3
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps({"index": i, "description": "x"}) + "\n" for i in latents))
    assert main(named(folder, "--explainer", "file", "--file", str(file))) == 0
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert {r["source"] for r in rows} == {"file"} and {r["explanation"] for r in rows} == {"x"}


def test_explanations_of_other_weights_are_refused_as_a_file(folder, loads, capsys, tmp_path):
    assert main(named(folder)) == 0
    path = tmp_path / "theirs.parquet"
    table = pq.read_table(folder / "features/explanations.parquet")
    pq.write_table(table.replace_schema_metadata({"weights_sha256": "0" * 64}), path)
    capsys.readouterr()
    sentence = refused(verb(folder, "--explainer", "file", "--file", str(path)), capsys)
    assert "holds explanations of another SAE: its weights_sha256 differs" in sentence


def test_explanations_that_were_changed_are_told_and_made_again(folder, loads, caplog):
    assert main(named(folder)) == 0 and len(loads) == 1
    assert main(named(folder)) == 0 and len(loads) == 1
    path = folder / "features/explanations.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert main(named(folder)) == 0 and len(loads) == 2
    assert "is not the file that was written with explanations.json" in caplog.text
    assert pq.read_table(path) == table


def test_people_s_labels_come_before_automatic_names_which_are_marked(folder, loads):
    assert main(named(folder)) == 0
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    first, second = rows[0]["latent"], rows[1]["latent"]
    write_label(folder, first, "the sea")
    names = read_names(folder)
    assert names[first] == "the sea" and names[second] == f"auto: {rows[1]['explanation']}"
    subject = open_subject(Choice(str(folder)), with_lm=False)
    assert subject.name_of(first) == "the sea" and second not in subject.labels
    shown = {i: name.replace("auto: ", "by its tokens: ", 1) for i, name in names.items()}
    assert subject.names == shown
    subject.take_labels({first: ""})
    assert subject.name_of(first) == f"by its tokens: {rows[0]['explanation']}"


def test_names_of_other_weights_are_refused(folder, loads):
    assert main(named(folder)) == 0
    record = json.loads((folder / "features/explanations.json").read_text())
    (folder / "features/explanations.json").write_text(
        json.dumps(record | {"weights_sha256": "0" * 64})
    )
    with pytest.raises(ValueError, match=r"made with other weights .* `hfsae explain "):
        read_names(folder)


def test_what_is_pushed_has_no_path_of_this_machine(folder, loads):
    assert main(named(folder)) == 0
    sent = {path.name: published(path) for path in files_to_publish(folder)}
    assert {*FILES} <= {*sent}
    assert b"plan_sha256" in sent["explanations.json"]
    assert str(folder).encode() not in sent["explanations.json"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--latents", "1", "48"], "there is no latent 48; this SAE has 48, 0 to 47"),
        (["--n_latents", "0"], "n_latents is 0; it must be 1 or more"),
        (["--explainer", "human"], "has a label; give labels in"),
        (["--explainer", "file"], "a file goes with one explainer: --explainer file --file PATH"),
        (["--file", "a.jsonl"], "a file goes with one explainer: --explainer file --file PATH"),
        (["--explainer", "file", "--file", "a.jsonl"], "there is no file a.jsonl"),
        (["--explainer", "llm"], "--explainer must be one of 'template', 'lm', 'human', 'file'"),
        (["--n_token", "3"], "has no option '--n_token'; closest: '--n_tokens'"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, folder, loads, capsys):
    assert sentence in refused(["explain", str(folder), *options], capsys)
    assert not (folder / "features/explanations.parquet").exists()


def test_a_folder_without_held_out_documents_is_refused(folder, loads, capsys):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["text"]["held_out_fraction"] = 0.0
    recipe["evaluation"]["n_tokens"] = 0
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    sentence = refused(verb(folder), capsys)
    assert "holds out no documents (text.held_out_fraction is 0)" in sentence
    assert "give --text.dataset with other text" in sentence
    (folder / "recipe.yaml").unlink()
    sentence = refused(verb(folder, "--text.dataset", "nowhere.txt"), capsys)
    assert "no .txt, .jsonl or .parquet file is at 'nowhere.txt'" in sentence
    assert not loads, "before the language model is loaded"


def test_an_untrained_sae_stands_in_the_report_where_it_is_asked_for(folder, loads, capsys):
    assert main(named(folder)) == 0 and len(loads) == 1
    assert "re-drawn weights" not in capsys.readouterr().out
    assert main(named(folder, "--controls", "untrained")) == 0 and len(loads) == 2
    text = capsys.readouterr().out
    record = json.loads((folder / "features/explanations.json").read_text())
    assert "## Beside an SAE of re-drawn weights" in text
    own = record["scores"]["lexical"]["uniform"]["pearson"]["own"]
    assert record["untrained"]["lexical"]["pearson"]["trained"] == own
    assert main(named(folder, "--controls", "untrained")) == 0 and len(loads) == 2
    assert capsys.readouterr().out == text
