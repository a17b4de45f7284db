"""Small pictures of examples, and sheets of them."""

import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sheet import sheet

from hfsae.features import FeatureStore, pictures
from hfsae.features.pictures import Grid, Pictures, write_pictures
from hfsae.io.file_names import EXAMPLES, PICTURES

from ..wordless import GRID, PATCH, SIDE, TOP, folder_of_pictures, folder_of_rows
from ..wordless import pictures as drawn


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return folder_of_pictures(tmp_path_factory.mktemp("pictures") / "sae")


@pytest.fixture
def folder(home, tmp_path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "sae"))


def large(document: int, position: int) -> Image.Image:
    """A picture of its own for each document, larger than is kept, and not square."""
    return Image.new("RGBA", (400, 200), (10 * document, 100, 0, 255))


def test_each_document_of_an_example_has_a_small_picture_with_its_name(folder):
    documents = {e.document for latent in FeatureStore.load(folder) for e in latent.examples}
    assert write_pictures(folder, large) == len(documents)
    there = Pictures.load(folder)
    assert there is not None and {d for d, _ in there.names} == documents
    assert there.names[3, 0] == "square-3.png"
    found = there.read([(3, 0), (5, 0), (99, 0), (3, 1)])
    assert list(found) == [(3, 0), (5, 0)]
    for (document, _), picture in found.items():
        assert picture.image().size == (160, 80)
        red, green, blue = picture.image().getpixel((80, 40))
        assert abs(red - 10 * document) < 4 and abs(green - 100) < 4 and blue < 4


def test_of_too_many_pictures_those_of_the_strongest_examples_are_kept(folder, monkeypatch):
    monkeypatch.setattr(pictures, "MOST", 5)
    table = pq.read_table(folder / EXAMPLES).to_pylist()
    strongest = sorted(range(len(table)), key=lambda i: table[i]["rank"])  # stable
    first = list(dict.fromkeys(table[i]["document"] for i in strongest))[:5]
    assert write_pictures(folder, large) == 5
    there = Pictures.load(folder)
    assert there is not None and {d for d, _ in there.names} == set(first)


def test_a_position_has_a_cell_a_box_and_a_part_of_its_document():
    grid = Grid.of({"grid": [3, 4], "patch": [0.3, 0.25]})
    assert grid is not None and grid.box(6) == (0.5, 0.3, 0.25, 0.3)
    assert grid.cell(12 + 6) == (1, 2) and grid.part(12 + 6) == 1  # of the second crop
    assert grid.box(-1) is None and grid.cell(-1) is None and grid.part(-1) == -1
    assert Grid.of({"grid": [2, 5]}) == Grid(2, 5, 0.5, 0.2)
    assert Grid.of({"grid": [3, 1]}) == Grid(3, 1, 1 / 3, 1)
    assert Grid.of({"grid": [1, 2]}) == Grid(1, 2, 1, 0.5)
    assert Grid.of({}) is None
    for wrong in ({"grid": [0, 4]}, {"grid": [10**5, 10**5]}, {"grid": [2, 2], "patch": [0.6, 1]}):
        with pytest.raises(ValueError, match=r"grid is|patch is"):
            Grid.of(wrong)


def test_pictures_of_other_examples_are_refused(folder):
    store = FeatureStore.load(folder)
    fewer = pa.dataset.dataset(store.examples.to_table().slice(0, 5))
    FeatureStore(store.latents, fewer, store.meta).save(folder)
    with pytest.raises(ValueError, match=r"made for other examples .* `hfsae collect"):
        Pictures.load(folder)


@pytest.mark.parametrize("content", [b"no picture", b"\xff\xd8\xff" + bytes(2**17)])
def test_a_damaged_picture_is_refused_with_its_document(folder, content):
    table = pq.read_table(folder / PICTURES)
    rows = [row | {"picture": content} for row in table.to_pylist() if row["document"] == 3]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / PICTURES)
    there = Pictures.load(folder)
    assert there is not None
    with pytest.raises(ValueError, match="the picture of document 3 is no small JPEG"):
        there.read([(3, 0)])


def test_a_store_without_a_grid_takes_no_pictures(tmp_path):
    folder = folder_of_rows(tmp_path / "sae")
    with pytest.raises(ValueError, match="not of pictures: it has no grid"):
        write_pictures(folder, large)
    with pytest.raises(ValueError, match="has no pictures; `hfsae collect"):
        sheet(folder, [0], tmp_path / "sheet.png")
    assert Pictures.load(folder) is None


def test_a_sheet_outlines_the_patch_of_each_example(folder, tmp_path):
    store = FeatureStore.load(folder)
    latent = next(i for i in range(len(store)) if len(store[i].examples) == TOP)
    (folder / "features" / "labels.json").write_text(json.dumps({"labels": {latent: "a corner"}}))
    sheet(folder, [latent, latent], tmp_path / "sheet.png", n=3)
    image = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert image.size == (16 + 190 + 3 * 130 + 16, 2 * 130 + 32)
    dark, white, side = (15, 23, 38), (255, 255, 255), 120
    for row in range(2):
        for j, example in enumerate(store[latent].examples[:3]):
            x, y = 16 + 190 + 130 * j, 16 + 130 * row
            down, across = divmod(example.position, GRID[1])
            corner = (x + across * side // GRID[1], y + down * side // GRID[0])
            assert image.getpixel(corner) == white
            if down and across:
                assert image.getpixel((corner[0] - 1, corner[1] - 1)) == dark
            inner = (corner[0] + 15, corner[1] + 15)  # the picture itself
            expected = drawn()[example.document].getpixel(
                (across * PATCH + PATCH // 2, down * PATCH + PATCH // 2)
            )
            assert math.dist(image.getpixel(inner), expected) < 40
    assert side % GRID[0] == 0 and GRID[0] * PATCH == SIDE


@pytest.mark.parametrize("latents", [[], [24], [-1], [0] * 201])
def test_a_sheet_of_no_such_latent_is_refused(home, tmp_path, latents):
    with pytest.raises(ValueError, match="name 1 to 200 of 0 to 23"):
        sheet(home, latents, tmp_path / "sheet.png")
