"""The app for SAEs that read no text: of files, of pictures."""

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import gradio as gr
import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTImageProcessorPil, ViTModel

from hfsae.demo import Choice, Subject, build, open_subject
from hfsae.demo import address as at
from hfsae.demo.actions import Actions, docstring, instructions
from hfsae.demo.app import pages_of
from hfsae.demo.pages.page import Visit
from hfsae.demo.picture_latents import MOST_BYTES, as_rgb, heat, upload
from hfsae.demo.snippet import of_latent
from hfsae.demo.subject import how_to_make
from hfsae.demo.word_search import find
from hfsae.features.pictures import Grid

from ..wordless import COLOURS, D_SAE, GRID, folder_of_pictures, folder_of_rows
from ..wordless import pictures as drawn
from .conftest import assert_described, visiting

# what only an app with a language model has a word for
FOREIGN = r"(?i)language model|\btokens?\b|logit|steer|loss|--model|\btexts?\b|chat"


@pytest.fixture(scope="module")
def of_rows(tmp_path_factory) -> Subject:
    return open_subject(Choice(str(folder_of_rows(tmp_path_factory.mktemp("rows") / "sae"))))


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory) -> Subject:
    folder = folder_of_pictures(tmp_path_factory.mktemp("pictures") / "sae")
    return open_subject(Choice(str(folder)))


@pytest.fixture(params=["rows", "pictures"])
def wordless(request) -> Subject:
    return request.getfixturevalue(f"of_{request.param}")


def png(image: Image.Image) -> bytes:
    done = BytesIO()
    image.save(done, "PNG")
    return done.getvalue()


def shown(subject: Subject, address: at.Address) -> str:
    """All that a page shows, as HTML."""
    with gr.Blocks() as blocks:
        page = pages_of(subject)[address.tab](Actions(subject))
    drawn = page.render(address)
    parts = [drawn.get(b, b.value) for b in blocks.blocks.values() if isinstance(b, gr.HTML)]
    return "".join(map(str, parts))


def test_an_sae_is_known_by_its_records_and_has_the_pages_that_fit(of_rows, of_pictures):
    text = {"inspect", "steer", "why"}
    own = ["feature", "search", "map", "labels", "health", "compare", "about"]
    assert of_rows.unit.one == "row" and list(pages_of(of_rows)) == own
    assert of_pictures.unit.one == "patch" and list(pages_of(of_pictures)) == ["picture", *own]
    assert of_rows.loaded is of_pictures.loaded is None and of_pictures.encoder is not None
    assert text.isdisjoint(pages_of(of_pictures))
    assert not of_rows.notes + of_pictures.notes


def test_two_saes_without_text_are_compared_by_their_metrics(of_rows):
    drawn = shown(of_rows, at.Compare(other=str(of_rows.folder)))
    assert "<td>fvu</td>" in drawn and "cosine of the two" not in drawn
    assert shown(of_rows, at.Compare()).count("Name another SAE") == 1


@pytest.mark.parametrize("is_bare", [False, True])
def test_no_page_has_a_word_of_a_language_model(wordless, is_bare):
    """With all that a run writes, and with weights alone."""
    subject = replace(wordless, store=None, pictures=None, evaluation={}) if is_bare else wordless
    for name, page_class in pages_of(subject).items():
        with gr.Blocks() as blocks:
            page = page_class(Actions(subject))
        drawn = page.render(page.first())
        for part in blocks.blocks.values():
            words = [drawn.get(part, getattr(part, "value", "")), getattr(part, "label", "")]
            words.append(getattr(part, "placeholder", ""))
            for word in map(str, words):
                visible = re.sub(r"<[^>]*>|data:\S+", " ", word)
                assert not re.search(FOREIGN, visible), (name, visible)


def test_a_model_for_files_is_refused_in_a_sentence(of_rows):
    with pytest.raises(ValueError, match="no model for an SAE of rows; leave out --model"):
        open_subject(of_rows.choice, model="gpt2")


def test_a_link_to_a_page_that_does_not_fit_says_which_there_are(of_rows):
    restore = next(f.fn for f in build(of_rows).fns.values() if f.name == "prepare")
    request = gr.Request(None, query_params={"tab": "steer", "latents": "3:1"})
    texts = " ".join(map(str, restore(request, Visit()).values()))
    assert f"no page &#39;steer&#39;; its pages: {', '.join(pages_of(of_rows))}" in texts


def test_examples_of_rows_show_their_captions_and_the_rows_around(of_rows):
    view = Actions(of_rows).feature(3)
    example = view["groups"][0]["examples"][0]
    assert example["text"] == f"document {example['document']}, row {example['position']}"
    assert example["position"] in example["places"]
    page = shown(of_rows, at.Feature(3))
    assert example["text"] in page and "hf-around" in page and "hf-crop" not in page
    n = of_rows.store[3].n_firings
    assert f"{n} of 240 rows" in page


def test_examples_of_pictures_show_them_with_the_patch_framed(of_pictures):
    page = shown(of_pictures, at.Feature(3))
    example = of_pictures.store[3].examples[0]
    row, column = divmod(example.position, GRID[1])
    box = f"--x:{column / GRID[1]:.4f};--y:{row / GRID[0]:.4f};--w:0.2500;--h:0.2500"
    content = of_pictures.pictures.read([(example.document, 0)])[example.document, 0].content
    link = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    first = page[page.index('<ul class="hf-crops">') :].partition("</li>")[0]
    assert link in first and box in first and f'data-at="{example.document}"' in first


def test_activations_lie_over_a_picture_a_pixel_a_patch():
    grid, shares = Grid(2, 3, 0.5, 1 / 3), {0: 1.0, 4: 0.5, 5: 0.0, -1: 1.0}
    link = heat(grid, shares)
    image = Image.open(BytesIO(base64.b64decode(link.partition(",")[2])))
    opacity = [[image.getpixel((x, y))[3] for x in range(3)] for y in range(2)]
    assert opacity == [[round(255 * 0.6), 0, 0], [0, round(255 * 0.3), 0]]
    assert heat(grid, {3: 0.0}) == ""
    whole = Image.open(BytesIO(base64.b64decode(heat(grid, shares, is_whole=True)[22:])))
    colours = [whole.getpixel((x, y))[:3] for y in range(2) for x in range(3)]
    dark, orange = (15, 23, 38), (240, 140, 26)
    assert colours == [orange, dark, dark, dark, orange, dark]


def test_a_picture_of_ones_own_gives_the_latents_of_the_models_hidden_states(of_pictures):
    image = drawn()[6].resize((50, 40))
    home = of_pictures.lm_name
    model = ViTModel.from_pretrained(home, add_pooling_layer=False).eval()
    processor = ViTImageProcessorPil.from_pretrained(home)
    with torch.no_grad():
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        hidden = model(pixels, output_hidden_states=True).hidden_states[1][0, 1:]
        latents = of_pictures.sae.encode(hidden)
    link = f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
    view = Actions(of_pictures).inspect_picture(link)
    assert (view["rows"], view["columns"]) == GRID
    assert view["l0"] == pytest.approx(float((latents > 0).sum(1).float().mean()))
    rows = view["ranking"] + view["dense"]["rows"]
    assert rows and view["latent"] == view["ranking"][0]["latent"]
    for row in rows:
        own = latents[:, row["latent"]]
        assert row["value"] == pytest.approx(float(own.max()), rel=1e-4)
        assert row["peak"] == int(own.argmax())
    expected = latents[:, view["latent"]].tolist()
    assert view["activations"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    residual = (hidden - of_pictures.sae.decode(latents)).square().sum()
    whole = (hidden - hidden.mean(0)).square().sum()
    assert view["fvu"] == pytest.approx(float(residual / whole), rel=1e-4)


def test_latents_of_a_picture_are_in_the_order_of_share_times_rarity(of_pictures):
    view = Actions(of_pictures).inspect_picture("2")
    scores = []
    for row in view["ranking"]:
        record = of_pictures.store[row["latent"]]
        most = record.max_activation
        share = min(1.0, row["value"] / most) if most else 0.0
        scores.append(share * -math.log(max(record.density, 1e-9)))
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "picture, why",
    [
        (base64.b64encode(b"just words").decode(), "that is no picture; give a PNG"),
        ("not base64!", "neither a document's number nor a file in base64"),
        ("99", "no example is from picture 99; upload one"),
        ("own-0123456789abcdef", "no longer here; upload it again"),
        ("", "no picture is chosen"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(of_pictures, picture, why):
    with pytest.raises(ValueError, match=why):
        Actions(of_pictures).inspect_picture(picture)


def test_pictures_that_are_too_large_are_refused_before_they_are_as_rgb(monkeypatch):
    with pytest.raises(ValueError, match=r"8,000,001 bytes; at most 8,000,000"):
        as_rgb(bytes(MOST_BYTES + 1))
    monkeypatch.setattr("hfsae.activations.pictures.MOST_PIXELS", 99)
    with pytest.raises(ValueError, match="pixels; make it smaller"):
        as_rgb(png(Image.new("L", (10, 10))))


def test_what_shines_through_is_white_and_a_picture_is_held_by_its_content(of_pictures):
    clear = png(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert as_rgb(clear).getpixel((1, 1)) == (255, 255, 255)
    name = upload(of_pictures, clear)
    assert name.startswith("own-") and upload(of_pictures, clear) == name
    others = {upload(of_pictures, png(Image.new("L", (4, 4), i))) for i in range(16)}
    assert len(others) == 16
    with pytest.raises(ValueError, match="no longer here"):
        Actions(of_pictures).inspect_picture(name)


def test_without_its_model_the_page_says_why_and_the_others_work(of_pictures):
    bare = open_subject(of_pictures.choice, with_lm=False)
    assert "leave out --no_model" in shown(bare, at.Picture("3"))
    assert "hf-crop" in shown(bare, at.Feature(3))
    with pytest.raises(ValueError, match="the model of pictures, which is not loaded"):
        Actions(bare).inspect_picture("3")


def test_an_sae_of_the_cls_vector_reads_it_alone(of_pictures, tmp_path):
    folder = Path(shutil.copytree(of_pictures.folder, tmp_path / "sae"))
    about = json.loads((folder / "training.json").read_text())
    about["images"]["positions"] = "cls"
    (folder / "training.json").write_text(json.dumps(about))
    view = Actions(open_subject(Choice(str(folder)))).inspect_picture("3")
    assert (view["rows"], view["columns"], view["l0"], view["fvu"]) == (1, 1, 3.0, None)


def test_the_table_of_labels_links_latents(of_rows):
    view = Actions(of_rows).labels()
    assert [(r["column"], r["class"], r["latent"]) for r in view["found"]] == [
        ("colour", "red", 3),
        ("colour", "green", 5),
        ("age", None, 5),
    ]
    assert [r["class"] for r in Actions(of_rows).labels("Green")["found"]] == ["green"]
    page = shown(of_rows, at.Labels())
    assert 'data-do="open" data-at="3"' in page and "AUC <b>0.97</b>" in page
    assert "colour = red" in shown(of_rows, at.Feature(3))  # among its names


@pytest.mark.parametrize(
    "damage",
    [
        {"latent": {"index": D_SAE, "value": 1}},
        {"latent": {"index": 1}},
        {"latent": {"index": 1, "value": "much"}},
        {"latent": 7},
        {"measure": "p"},
    ],
)
def test_a_damaged_table_of_labels_is_left_out_with_a_sentence(of_rows, tmp_path, damage):
    folder = Path(shutil.copytree(of_rows.folder, tmp_path / "sae"))
    good = {"column": "kept", "measure": "auc", "latent": {"index": 1, "value": 0.5}}
    table = folder / "features/columns.json"
    table.write_text(json.dumps({"associations": [good]}))
    assert Actions(open_subject(Choice(str(folder)))).labels()["found"][0]["column"] == "kept"
    table.write_text(json.dumps({"associations": [good, good | damage]}))
    subject = open_subject(Choice(str(folder)))
    assert subject.notes[0].startswith("its columns.json is left out: ")
    assert not subject.columns and "labels" not in pages_of(subject)


def test_a_search_finds_latents_by_document_and_by_label(of_rows, of_pictures):
    hits = find(of_rows, "document 15")
    owners = {i for i in range(D_SAE) for e in of_rows.store[i].examples if e.document == 15}
    assert {hit.latent for hit in hits} <= owners and hits
    assert hits[0].score == pytest.approx(1.0) and hits[0].why == "fires in “document 15”"
    assert [hit.latent for hit in find(of_pictures, "red")] == [3]
    with pytest.raises(ValueError, match="by is 'promotes'; it can be word, label, similar to"):
        Actions(of_rows).search("a", "promotes")


@pytest.mark.parametrize("kind", ["rows", "pictures"])
def test_the_code_of_a_latent_runs(kind, request, tmp_path, monkeypatch, capsys):
    subject = request.getfixturevalue(f"of_{kind}")
    monkeypatch.chdir(tmp_path)
    save_file({"acts": torch.randn(20, 8)}, "activations.safetensors")
    drawn()[0].save("picture.jpg")
    exec(of_latent(subject, 3), {})
    assert "tensor(" in capsys.readouterr().out


def test_commands_for_what_is_missing_name_the_inputs_of_the_kind(of_rows, of_pictures):
    commands = {}
    for subject in (of_rows, of_pictures):
        store, subject.store = subject.store, None
        commands[subject.unit.one] = how_to_make(subject, "collect")[0].partition("/sae ")[2]
        subject.store = store
    assert commands["row"] == "--activations.files FILES.safetensors"
    assert commands["patch"].endswith("--lm.kind auto --images.folder PICTURES")


def test_agents_are_told_of_the_tools_that_there_are(of_rows, of_pictures):
    assert "inspect_picture" in instructions({"about", "inspect_picture"})
    assert not re.search(FOREIGN, instructions({"about", "feature"}))
    rows, own = ({e.name for e in Actions(s).fitting()} for s in (of_rows, of_pictures))
    assert {"steer", "why", "inspect", "measure"}.isdisjoint(rows | own)
    assert own - rows == {"inspect_picture"} and "labels" in rows


@pytest.mark.parametrize(
    "name, given",
    [("inspect_picture", {"picture": "3"}), ("labels", {}), ("feature", {"latent": 3})],
)
def test_every_argument_and_every_key_of_an_answer_is_described(of_pictures, name, given):
    (endpoint,) = (e for e in Actions(of_pictures).fitting() if e.name == name)
    summary, arguments, _ = docstring(endpoint.function)
    assert summary and endpoint.title
    assert list(arguments) == [*endpoint.signature.parameters]
    answer = getattr(Actions(of_pictures), name)(**given)
    assert_described(answer, endpoint)
    jsonschema.validate(given, endpoint.input_schema)


@pytest.mark.browser
def test_the_app_of_files_opens_without_a_word_of_a_language_model(browser, serve, of_rows):
    with visiting(browser, serve(of_rows.folder)) as visit:
        page = visit("tab=feature&latent=3")
        page.wait_for_selector("#feature-main h2:has-text('Latent 3')")
        for name in ("Search", "Map", "Labels", "Health", "About"):
            page.get_by_role("tab", name=name).click()
            page.wait_for_selector("[role=tabpanel]:visible .hf-panel")
            assert not re.search(FOREIGN, page.locator("body").inner_text()), name
        page.get_by_role("tab", name="Labels").click()
        page.locator("#labels-table .hf-id").nth(1).click()
        page.wait_for_selector("#feature-main h2:has-text('Latent 5')")


@pytest.mark.browser
def test_a_picture_of_ones_own_is_coloured_and_leads_to_latents(browser, serve, of_pictures):
    own = png(drawn()[1].resize((64, 64)))
    with visiting(browser, serve(of_pictures.folder)) as visit:
        page = visit()
        page.wait_for_selector("#picture-shown h2:has-text('square-0.png')")
        chosen = page.locator("[role=tabpanel] input[type=file]")
        chosen.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"words"})
        sentence = page.locator(".hf-error:visible")
        sentence.wait_for()
        assert sentence.inner_text().startswith("that is no picture; give a PNG")
        chosen.set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": own})
        page.wait_for_selector("#picture-shown h2:has-text('your picture')")
        page.wait_for_url(re.compile("picture=own-"))
        rows = page.locator("#picture-latents .hf-seen-rows > li")
        page.wait_for_selector("#picture-shown .hf-heat")
        rows.first.locator(".hf-id").click()
        page.wait_for_selector("#feature-main .hf-crops .hf-crop i")
        framed = page.locator("#feature-main .hf-crop").first.bounding_box()
        frame = page.locator("#feature-main .hf-crop i").first.bounding_box()
        latent = int(re.search(r"latent=(\d+)", page.url)[1])
        position = of_pictures.store[latent].examples[0].position
        row, column = divmod(position, GRID[1])
        assert frame["x"] - framed["x"] == pytest.approx(column / GRID[1] * framed["width"], abs=1)
        assert frame["y"] - framed["y"] == pytest.approx(row / GRID[0] * framed["height"], abs=1)
        page.locator("#feature-main .hf-crops button").first.click()
        page.wait_for_selector(f"#picture-shown h2:has-text('coloured by latent {latent}')")
    assert len(COLOURS) == 4
