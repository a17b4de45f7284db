"""The page of attribution graphs: kept ones as they were written, and one made of a prompt."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import hfsae
from hfsae.circuits import digest
from hfsae.cli import main
from hfsae.demo import Choice, open_subject
from hfsae.demo.actions import Actions

from .conftest import ROOT, visiting


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_tiny_lm, tiny_tokenizer) -> Path:
    """Two transcoders of a tiny model, below one folder, and the graph of a text in graphs/."""
    home = tmp_path_factory.mktemp("transcoders")
    lm = make_tiny_lm("llama")
    lm.save_pretrained(home / "lm")
    tiny_tokenizer.save_pretrained(home / "lm")
    for layer in (0, 2):
        config = hfsae.JumpReLUSAEConfig(
            d_in=16,
            d_sae=40,
            site=f"layers.{layer}.mlp:in",
            target_site=f"layers.{layer}.mlp",
            model_name=str(home / "lm"),
            initial_threshold=0.1,
            bos="row",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(layer)
            sae = hfsae.JumpReLUSAE(config)
            torch.nn.init.normal_(sae.b_enc, std=0.2)
        sae.save_pretrained(home / "run" / f"layers.{layer}")
    made = ["graph", str(home / "run"), "the cat", "--out", str(home / "graphs"), "--slug", "cat"]
    assert main(made) == 0
    assert (home / "graphs" / "cat.html").is_file()
    return home


@pytest.fixture(scope="module")
def address(run, serve) -> str:
    """`hfsae demo RUN --graphs DIR`, for the transcoder of the last block; its address."""
    options = "--subfolder", "layers.2", "--graphs", run / "graphs"
    return serve("demo", run / "run", *options)


@pytest.fixture
def visit(browser, address) -> Iterator[Callable]:
    with visiting(browser, address) as visit:
        yield visit


def test_a_kept_graph_is_the_file_and_a_made_one_is_the_commands(run):
    subject = open_subject(Choice(str(run / "run"), "layers.2"))
    assert subject.transcoders == str(run / "run")
    file = run / "graphs" / "cat.json"
    subject.graphs = {"cat": hfsae.circuits.read_graph(file)}
    actions = Actions(subject)
    kept, written = actions.attribution_graph("cat"), json.loads(file.read_text())
    assert kept["graph"] == written
    by_digest = {t["digest"]: t["blocks"] for t in written["metadata"]["transcoders"].values()}
    assert by_digest[digest(subject.sae)] == [2] and kept["opens"] == {"2": 0}
    made = actions.attribution_graph(prompt="the cat")["graph"]
    for name in ("replacement_score", "completeness_score"):
        assert made["metadata"][name] == pytest.approx(written["metadata"][name], rel=1e-4)
    nodes = {node["node_id"]: node["activation"] for node in written["nodes"]}
    for node in made["nodes"]:  # fewer are sent to a browser
        activation = nodes[node["node_id"]]
        assert node["activation"] == activation or node["activation"] == pytest.approx(activation)
    for arguments, sentence in (
        ({"name": "dog"}, "there is no graph 'dog'; kept: cat"),
        ({}, "there is no text"),
        ({"prompt": "a" * 70}, "takes at most 64"),
        ({"prompt": "the cat", "contrast": "a"}, "a contrast needs a target"),
    ):
        with pytest.raises(ValueError, match=sentence):
            actions.attribution_graph(**arguments)


def test_a_folder_that_holds_no_graphs_is_refused_in_one_sentence(run, tmp_path, capsys):
    argv = ["demo", str(run / "run"), "--subfolder", "layers.2", "--graphs", str(tmp_path)]
    assert main(argv) == 2
    assert "holds no graph" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"metadata": {}}')
    assert main(argv) == 2
    said = capsys.readouterr().err.strip()
    assert "other.json is no attribution graph: 'nodes' is missing" in said and "\n" not in said


def test_the_graphs_of_the_space_are_small_exact_and_told_with_their_scores():
    graphs = hfsae.circuits.read_graphs(ROOT / "demo" / "graphs")
    guide = (ROOT / "scripts" / "recipes" / "circuits.md").read_text()
    assert len(graphs) == 5
    for name, graph in graphs.items():
        assert (ROOT / "demo" / "graphs" / f"{name}.json").stat().st_size < 300_000
        metadata = graph.content["metadata"]
        assert metadata["largest_error_of_a_sum"] < 1e-5
        row = next(line for line in guide.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {metadata['replacement_score']:.3f} |" in row
        assert "".join(metadata["prompt_tokens"][1:]) in row


@pytest.mark.browser
def test_a_kept_graph_is_drawn_and_a_feature_of_this_sae_leads_to_its_page(visit, run):
    page = visit("tab=graph&name=cat")
    written = json.loads((run / "graphs" / "cat.json").read_text())
    page.wait_for_selector("#graph-drawn .hg-node")
    assert page.locator(".hg-node").count() == len(written["nodes"])
    ours = next(n for n in written["nodes"] if n["layer"] == "2" and n["feature"] >= 0)
    theirs = next(n for n in written["nodes"] if n["layer"] == "0" and n["feature"] >= 0)
    page.locator(f"[data-id='{theirs['node_id']}']").click()
    assert page.get_by_role("button", name="Open its page").count() == 0
    page.locator(f"[data-id='{ours['node_id']}']").click()
    page.get_by_role("button", name="Open its page").click()
    latent = ours["node_id"].split("_")[1]
    page.wait_for_selector(f"#feature-main h2:has-text('Latent {latent}')")


@pytest.mark.browser
def test_a_prompts_graph_is_made_by_its_button_only(visit):
    page = visit("tab=graph&prompt=a+dog", width=390)
    page.wait_for_selector("#graph-drawn .hf-empty")
    page.get_by_role("button", name="Make the graph").click()
    page.wait_for_selector("#graph-drawn .hg-node")
    assert page.locator("#graph-drawn h2").inner_text() == "a-dog"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".hg-stage").bounding_box()["width"] > 300  # the panel is below it
    page.get_by_role("button", name="cat", exact=True).click()
    page.wait_for_selector("#graph-drawn h2:has-text('cat')")
    page.wait_for_url("**tab=graph&name=cat*")


@pytest.mark.browser
def test_axe_finds_nothing_serious_on_the_page_of_graphs(visit, axe):
    page = visit("tab=graph&name=cat", width=390)
    page.locator(".hg-node").first.click()
    assert not axe(page)
