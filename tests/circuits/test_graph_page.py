"""The page of a graph in a real browser: it shows what was written, and texts stay texts."""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfsae.circuits import graph_page, read_graph
from hfsae.circuits.graph_page import NOTE

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror=\"document.title='hit'\">'"


def node(name: str, at: int, kind: str, layer: str, influence: float, clerp: str = "") -> dict:
    made = {"node_id": name, "ctx_idx": at, "feature_type": kind, "layer": layer, "clerp": clerp}
    return made | {"influence": influence, "feature": 17, "activation": 2.5, "token_prob": 0.25}


TRANSCODER, ERROR = "cross layer transcoder", "mlp reconstruction error"
NODES = [
    node("3_7_1", 1, TRANSCODER, "3", 0.4, HOSTILE),
    node("5_9_1", 1, TRANSCODER, "5", 0.6),
    node("5_8_1", 1, TRANSCODER, "5", 0.95),
    node("0_4_1", 1, ERROR, "4", 0.7, "error at 4"),
    node("E_2_0", 0, "embedding", "E", 0.2, "The"),
    node("E_4_1", 1, "embedding", "E", 0.3, HOSTILE),
    node("11_6_1", 1, "logit", "11", 0.1, " are (p=0.250)"),
]
LINKS = [
    ("E_2_0", "3_7_1", 0.5),
    ("E_4_1", "3_7_1", -1.5),
    ("3_7_1", "5_9_1", 2.0),
    ("0_4_1", "5_9_1", 0.25),
    ("3_7_1", "11_6_1", 0.75),
    ("5_9_1", "11_6_1", -3.0),
    ("5_8_1", "11_6_1", 0.125),
]
SCORES = {"replacement_score": 0.123, "completeness_score": 0.456, "largest_error_of_a_sum": 7.8e-7}
GRAPH = {
    "metadata": {"slug": "hostile", "prompt_tokens": ["The", HOSTILE], **SCORES},
    "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both"},
    "nodes": NODES,
    "links": [{"source": s, "target": t, "weight": w} for s, t, w in LINKS],
}


@pytest.fixture
def written(tmp_path) -> Path:
    """The file of a graph, with a page of its features beside it."""
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(GRAPH))
    home = tmp_path / "features" / "hostile"
    home.mkdir(parents=True)
    example = {"tokens": ["a", HOSTILE, " sea"], "tokens_acts_list": [0.0, 1.0, 4.0]}
    page = {"examples_quantiles": [{"examples": [example]}], "top_logits": [" boats"]}
    (home / "17.json").write_text(json.dumps(page))
    return path


@pytest.fixture
def page(browser, written, tmp_path) -> Iterator:
    """It in a browser without a network; no script fails, and nothing is asked for."""
    (tmp_path / "hostile.html").write_text(graph_page(read_graph(written)), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda r: wrong.append(r.url) if r.url.startswith("http") else None)
    page.goto((tmp_path / "hostile.html").as_uri())
    yield page
    title = page.title()
    context.close()
    assert not wrong and title == "Graph: hostile"


def texts(page, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


@pytest.mark.browser
def test_a_click_tells_name_value_inputs_outputs_and_top_texts_and_hostile_ones_stay_texts(page):
    assert page.locator(".hg-node").count() == len(NODES)
    assert page.locator(".hg-error rect").count() == 1
    assert page.locator(".hg-stage path").count() == len(LINKS)
    assert texts(page, "dd") == ["0.123", "0.456", "7.8e-7"] and NOTE in texts(page, ".hg-note")
    page.locator("[data-id='3_7_1']").click()
    panel = page.locator(".hg-panel")
    assert panel.locator("h3").inner_text() == HOSTILE
    assert "Feature 3/7 (block/latent)" in panel.inner_text()
    assert "activation 2.5" in panel.inner_text() and "boats" in panel.inner_text()
    rows = [row.split("\n") for row in texts(page, ".hg-panel li")]
    assert [row[0] for row in rows] == [HOSTILE, "The", "feature 5/9", " are (p=0.250)".strip()]
    assert [float(row[1]) for row in rows] == [-1.5, 0.5, 2.0, 0.75]  # inputs, then outputs
    assert page.locator(".hg-example").inner_text() == f"a{HOSTILE} sea"
    assert page.locator(".hg-stage path").count() == 4 and page.locator("img").count() == 0


@pytest.mark.browser
def test_the_slider_hides_nodes_by_influence_but_none_that_is_pinned(page):
    page.locator("[data-id='5_8_1']").click()
    page.get_by_role("button", name="Pin", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_label("share of influence shown").fill("0.45")
    shown = page.locator(".hg-node").evaluate_all("nodes => nodes.map((one) => one.dataset.id)")
    kept = {n["node_id"] for n in NODES if n["influence"] <= 0.45 or n["layer"] in ("E", "11")}
    assert set(shown) == kept | {"5_8_1"}
    assert "5 of 7 nodes, 4 edges" in page.locator(".hg-count").inner_text()


@pytest.mark.browser
def test_pinned_nodes_are_shown_as_one_box_whose_edges_are_sums_and_the_download_has_them(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    assert json.loads(Path(download.value.path()).read_text()) == GRAPH
    for name in ("3_7_1", "5_9_1"):
        page.locator(f"[data-id='{name}']").click()
        page.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_label("name of the group").fill("plural")
    page.get_by_role("button", name="Show the pinned as one").click()
    assert page.locator(".hg-group text").text_content() == "plural"
    assert page.locator(".hg-node").count() == len(NODES) - 1
    outputs = page.locator(".hg-panel h4:has-text('outputs') + ol li")
    assert outputs.inner_text().split("\n") == ["are (p=0.250)", "-2.25"]  # 0.75 - 3
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    grouped = json.loads(Path(download.value.path()).read_text())
    assert grouped["qParams"]["supernodes"] == [["plural", "3_7_1", "5_9_1"]]
    assert grouped["nodes"] == NODES


@pytest.mark.browser
def test_keys_lead_from_node_to_node_and_on_a_phone_nothing_runs_off(page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.locator("[data-id='E_2_0']").focus()
    focused = "document.activeElement.dataset.id"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "E_4_1"
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "3_7_1"
    page.keyboard.press("Enter")
    assert page.locator("[aria-pressed='true']").get_attribute("data-id") == "3_7_1"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = page.locator(".hg-node text").evaluate_all(
        "all => all.map((one) => one.getBBox().width - one.previousElementSibling.getBBox().width)"
    )
    assert max(boxes) <= 0  # each label within its box
    page.keyboard.press("Escape")
    assert page.locator("[aria-pressed='true']").count() == 0
    assert page.evaluate(focused) == "3_7_1"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda g: [1, 2], "no attribution graph"),
        (lambda g: g | {"links": [{"source": "E_2_0", "target": "x", "weight": 1}]}, "not there"),
        (lambda g: g | {"nodes": [*NODES, NODES[0]]}, "two nodes have one id"),
        (lambda g: g | {"nodes": [NODES[0] | {"ctx_idx": 2}]}, "'3_7_1' is at no token of 2"),
        (lambda g: {k: v for k, v in g.items() if k != "links"}, "'links' is missing"),
        (lambda g: g | {"nodes": [], "links": []}, "it has no nodes"),
    ],
)
def test_a_file_that_is_no_graph_is_refused_in_one_sentence(written, change, sentence):
    written.write_text(json.dumps(change(GRAPH)))
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        read_graph(written)
    assert "\n" not in str(refusal.value) and "`hfsae graph` writes one" in str(refusal.value)


def test_what_the_page_says_of_edges_is_what_was_measured():
    runs = json.loads((ROOT / "scripts/bench/results/graphs.json").read_text())["runs"]
    medians = {run["kinds"][0]: [] for run in runs}  # of weights with effects in the real model
    for run in runs:
        medians[run["kinds"][0]].append(statistics.median(row["weight"] for row in run["rows"]))
    across = medians.pop("batch_topk_clt")
    apart = sorted(one for some in medians.values() for one in some)
    told = [float(x) for x in re.findall(r"(?<!\d)\.\d\d", NOTE)]
    assert told == pytest.approx([apart[0], apart[-1], *across], abs=0.005) and len(apart) == 4
