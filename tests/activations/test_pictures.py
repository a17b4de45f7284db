"""Pictures: which are found, how they decode, what the model sees, and where positions lie."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hfsae.activations import HarvestArguments, ImageArguments, InputSource
from hfsae.activations.pictures import grid_of

from ..tiny_encoders import (
    N_PATCHES,
    PATCH,
    SIDE,
    VISION,
    D,
    block,
    save_pictures,
    whole_model,
)

Image = pytest.importorskip("PIL.Image")


def source_of(loaded, rows: int = 2, **fields) -> InputSource:
    """Everything is on the test side, in which the order is that of the seed."""
    args = ImageArguments(**{"held_out_fraction": 1.0} | fields)
    return InputSource(args, loaded, [block(loaded.model, 1)], HarvestArguments(rows=rows))


def all_of(source: InputSource) -> dict[str, torch.Tensor]:
    """All held-out activations, by document and then by position."""
    batches = list(source.batches("test"))
    acts, document, position = (
        torch.cat(parts)
        for parts in zip(
            *((b.activations[source.sites[0]], b.document, b.position) for b in batches),
            strict=True,
        )
    )
    order = np.lexsort((position.numpy(), document.numpy()))
    return {"acts": acts[order], "document": document[order], "position": position[order]}


@pytest.mark.parametrize("positions", ["patches", "cls", "all"])
@pytest.mark.parametrize("family", VISION)
def test_activations_are_the_hidden_states_of_the_processed_pictures(
    family, positions, encoder, tmp_path
):
    loaded, n_prefix = encoder(family), VISION[family][5]
    pixels = save_pictures(tmp_path, 5)
    if positions == "cls" and not n_prefix:
        with pytest.raises(ValueError, match=r"images.positions is 'cls', and Siglip.* has no CLS"):
            source_of(loaded, folder=str(tmp_path), positions=positions)
        return
    got = all_of(source_of(loaded, folder=str(tmp_path), positions=positions))
    model = whole_model(family)
    tower = model.vision_model if family in ("clip", "siglip") else model
    kept = {"patches": slice(n_prefix, None), "cls": slice(0, 1), "all": slice(0, None)}[positions]
    numbers = [*range(-1, -1 - n_prefix, -1), *range(N_PATCHES)][kept]
    assert got["document"].tolist() == [d for d in range(5) for _ in numbers]
    assert got["position"].tolist() == sorted(numbers) * 5
    for document, picture in enumerate(pixels):
        inputs = loaded.processor(images=[Image.fromarray(picture)], return_tensors="pt")
        with torch.no_grad():
            states = tower(**inputs, output_hidden_states=True).hidden_states[2][0, kept]
        expected = states[np.argsort(numbers)]
        acts = got["acts"][got["document"] == document]
        torch.testing.assert_close(acts, expected, rtol=1e-5, atol=1e-6)


def test_pictures_are_in_natural_order_with_names_below_their_folder(encoder, tmp_path, caplog):
    save_pictures(tmp_path, 11)
    (tmp_path / "b").mkdir()
    (tmp_path / "2.png").rename(tmp_path / "b" / "2.png")
    (tmp_path / "notes.txt").write_text("no picture")
    with caplog.at_level("INFO", logger="hfsae.activations"):
        source = source_of(encoder("vit"), folder=str(tmp_path))
    names = [f"{i}.png" for i in (0, 1, *range(3, 11))] + ["b/2.png"]
    assert source.names == names
    assert "11 files are read; not read: notes.txt" in caplog.text
    by_glob = source_of(encoder("vit"), files=[f"{tmp_path}/*.png", f"{tmp_path}/b"])
    assert sorted(by_glob.names) == sorted(names)
    one = source_of(encoder("vit"), files=str(tmp_path / "b" / "2.png"))
    assert one.names == ["2.png"] and one.ids == source.ids[-1:]


def test_pictures_of_every_mode_decode_to_their_colours(encoder, tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    colours = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
    alpha[:5] = 0
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: the top of the picture is on the right
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(colours).save(tmp_path / "1.bmp")
    Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(tmp_path / "2.png")
    Image.fromarray((grey.astype(np.uint16) << 8) + 7).save(tmp_path / "3.png")
    Image.fromarray(colours).save(tmp_path / "4.webp", lossless=True, exif=turned)
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "5.gif")
    Image.fromarray(grey > 127).save(tmp_path / "6.tif")
    source = source_of(encoder("vit"), folder=str(tmp_path))
    seen = [np.asarray(source.picture(document)) for document in range(7)]
    in_grey = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(seen[0], in_grey) and np.array_equal(seen[1], colours)
    assert (seen[2][:5] == 255).all() and np.array_equal(seen[2][5:], colours[5:])
    assert np.array_equal(seen[3], in_grey)
    assert np.array_equal(seen[4], np.rot90(colours, -1))
    assert np.array_equal(seen[5], in_grey)
    assert np.array_equal(seen[6], np.where(in_grey > 127, 255, 0))


@pytest.mark.parametrize("size", [(3, 50), (50, 3), (1, 1), (2, 2)])
def test_pictures_of_a_few_pixels_are_seen_in_their_own_colour(size, encoder, tmp_path):
    Image.new("RGB", size, (10, 200, 90)).save(tmp_path / "a.png")
    source = source_of(encoder("vit"), folder=str(tmp_path))
    seen = np.asarray(source.picture(0)).reshape(-1, 3)
    assert {tuple(colour) for colour in seen.tolist()} == {(10, 200, 90)}
    assert len(all_of(source)["acts"]) == N_PATCHES


def test_crops_are_squares_of_the_picture_and_one_document(encoder, tmp_path):
    pixels = save_pictures(tmp_path, 3)
    source = source_of(encoder("vit"), folder=str(tmp_path), crops=4)
    got = all_of(source)
    assert got["document"].tolist() == [d for d in range(3) for _ in range(4 * N_PATCHES)]
    assert got["position"].tolist() == list(range(4 * N_PATCHES)) * 3
    corners = set()
    for document in range(3):
        for crop in range(4):
            seen = np.asarray(source.picture(document, crop * N_PATCHES + 5))
            places = [
                (top, left)
                for top in range(33 - SIDE + 1)
                for left in range(40 - SIDE + 1)
                if np.array_equal(pixels[document][top : top + SIDE, left : left + SIDE], seen)
            ]
            assert len(places) == 1
            corners.add((document, *places[0]))
    assert len(corners) > 8
    again = all_of(source_of(encoder("vit"), folder=str(tmp_path), crops=4))
    assert torch.equal(again["acts"], got["acts"])
    other = all_of(source_of(encoder("vit"), folder=str(tmp_path), crops=4, seed=1))
    assert not torch.equal(other["acts"], got["acts"])


def test_tokens_before_the_patches_have_places_of_their_own_in_every_crop(encoder, tmp_path):
    save_pictures(tmp_path, 1)
    source = source_of(encoder("registers"), folder=str(tmp_path), crops=3, positions="all")
    got = all_of(source)["position"]
    assert got.tolist() == list(range(-15, 3 * N_PATCHES))
    assert source.caption(0, -1) == "0.png, crop 1, CLS token"
    assert source.caption(0, -8) == "0.png, crop 2, register 2"
    assert source.caption(0, N_PATCHES) == "0.png, crop 2, patch row 1 column 1"
    first, second = (np.asarray(source.picture(0, position)) for position in (0, -6))
    assert not np.array_equal(first, second)
    assert np.array_equal(second, np.asarray(source.picture(0, N_PATCHES)))


def test_a_patch_s_box_holds_the_pixels_that_its_embedding_reads(encoder, tmp_path):
    save_pictures(tmp_path, 1, size=(SIDE, SIDE))
    loaded = encoder("vit")
    source = source_of(loaded, folder=str(tmp_path))
    seen = np.asarray(source.picture(0))
    assert source.grid.step == (PATCH / SIDE, PATCH / SIDE)
    left, top, right, bottom = (2 * PATCH, PATCH, 3 * PATCH, 2 * PATCH)
    assert source.caption(0, 6) == "0.png, patch row 2 column 3"
    changed = seen.copy()
    changed[top:bottom, left:right] ^= 255
    embedded = []
    for pixels in (seen, changed):
        inputs = loaded.processor(images=[Image.fromarray(pixels)], return_tensors="pt")
        embedded.append(loaded.model.embeddings(inputs["pixel_values"])[0, 1:])
    differ = (embedded[0] != embedded[1]).any(dim=-1)
    assert differ.nonzero().flatten().tolist() == [6]


def broken(folder: Path, *numbers: int) -> None:
    for number in numbers:
        file = folder / f"{number}.png"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_picture_that_does_not_decode_is_left_out_and_counted(encoder, tmp_path, caplog):
    save_pictures(tmp_path, 120, size=(8, 8))
    broken(tmp_path, 7)
    source = source_of(encoder("vit"), 16, folder=str(tmp_path))
    assert sorted({*all_of(source)["document"].tolist()}) == [i for i in range(120) if i != 7]
    assert caplog.text.count("7.png cannot be read and is left out: ") == 1
    assert source.n_faults == source.describe()["images"]["n_unreadable"] == 1


def test_more_than_one_in_a_hundred_broken_pictures_are_refused(encoder, tmp_path):
    save_pictures(tmp_path, 120, size=(8, 8))
    broken(tmp_path, 7, 90)
    source = source_of(encoder("vit"), 16, folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"2 of 120 pictures .* more than 1%; the first is [79]0?"):
        all_of(source)


def test_a_truncated_jpeg_is_found_at_an_eighth_of_its_size(encoder, tmp_path):
    (pixels,) = save_pictures(tmp_path, 1, size=(400, 300))
    (tmp_path / "0.png").unlink()
    Image.fromarray(pixels).save(tmp_path / "0.jpg")
    source = source_of(encoder("vit"), folder=str(tmp_path))
    assert source.fault(0) is None
    data = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(data[: len(data) * 9 // 10])
    assert "truncated" in source.fault(0)


def test_a_picture_that_goes_before_it_is_used_is_one_sentence(encoder, tmp_path):
    save_pictures(tmp_path, 1)
    source = source_of(encoder("vit"), folder=str(tmp_path))
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"0\.png cannot be read \(.*No such file.*\); check it"):
        source.fault(0)


@pytest.mark.parametrize("side", [7100, 10_000, 13_500])  # pillow warns of the second
def test_a_picture_of_too_many_pixels_is_refused_before_they_are_decoded(encoder, tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "0.png")
    assert (tmp_path / "0.png").stat().st_size < 30_000
    reader = source_of(encoder("vit"), folder=str(tmp_path))
    assert reader.fault(0) == "it has more than 50,000,000 pixels; make it smaller"


def test_labels_come_from_a_table_or_from_folders(encoder, tmp_path, caplog):
    folder = tmp_path / "pictures"
    save_pictures(folder, 3)
    (folder / "cats").mkdir()
    (folder / "2.png").rename(folder / "cats" / "2.png")
    table = tmp_path / "labels.csv"
    table.write_text("file,kind,weight\n1.png,dog,3\ncats/2.png,,4.5\nother.png,x,1\n")
    source = source_of(encoder("vit"), folder=str(folder), labels=str(table))
    with caplog.at_level("WARNING"):
        source.labels()
    assert "no file is called 'other.png', as in" in caplog.text
    assert source.labels() == {"kind": [None, "dog", None], "weight": [None, "3", "4.5"]}
    by_folder = source_of(encoder("vit"), folder=str(folder), labels="folders")
    assert by_folder.labels() == {"folder": [None, None, "cats"]}
    assert source_of(encoder("vit"), folder=str(folder)).labels() == {}
    for text, sentence in (
        ("name,kind\n1.png,dog\n", "row 1 of .*labels.csv names no file in a column 'file'"),
        ("file,kind\nnone.png,dog\n", r"names none of the 3 files; .* such as '0.png'"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            source.labels()


@pytest.mark.usefixtures("as_for_users")
def test_what_is_no_picture_is_refused_with_the_remedy(encoder, tmp_path):
    loaded = encoder("vit")
    (tmp_path / "a.pt").write_bytes(b"")
    for fields, sentence in (
        ({}, "images names no pictures; give images.files or images.folder"),
        ({"files": "a.png", "folder": "b"}, "images has files and folder; give one of them"),
        ({"files": str(tmp_path / "b*.png")}, r"images.files: no \.png, .* file is at"),
        ({"files": str(tmp_path / "a.pt")}, r"images.files: .*a.pt cannot be read; convert it to"),
        ({"folder": str(tmp_path)}, r"images.folder: no \.png, "),
        ({"files": 3}, "images.files is 3; name a file, a folder, a glob, or a list"),
        ({"files": [3]}, r"images.files holds 3; name files"),
        ({"positions": "tokens"}, "images.positions is 'tokens'; it can be 'patches', 'cls' or"),
        ({"held_out_fraction": 2.0}, "images.held_out_fraction is 2.0; use a fraction"),
        ({"crops": -1}, "images.crops is -1; it must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=sentence):
            source_of(loaded, **fields)


def test_without_pillow_the_command_that_installs_it_is_named(encoder, monkeypatch, tmp_path):
    loaded = encoder("vit")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ValueError, match=r"read by pillow: pip install 'hfsae\[vision\]'"):
        source_of(loaded, folder=str(tmp_path))


def test_blocks_with_fewer_patches_lie_on_a_coarser_grid():
    swin = SimpleNamespace(patch_size=4, model_type="swin")
    grid = grid_of(swin, 49, (224, 224))
    assert (grid.rows, grid.columns, grid.n_prefix) == (7, 7, 0)
    assert grid.step == (32 / 224, 32 / 224)
    assert grid_of(swin, 784, (224, 224)).rows == 28
    wide = grid_of(SimpleNamespace(patch_size=(16, 8)), 1 + 14 * 28, (224, 224))
    assert (wide.rows, wide.columns, wide.n_prefix) == (14, 28, 1)


def test_positions_that_are_no_patches_are_refused():
    for n in (50, 246):  # masked at random (MAE), and with tokens at the end (YOLOS)
        with pytest.raises(
            ValueError, match=rf"has {n} positions .* of 224 x 224 in patches of 16"
        ):
            grid_of(SimpleNamespace(patch_size=16, model_type="x"), n, (224, 224))
    with pytest.raises(ValueError, match="resnet has no patches"):
        grid_of(SimpleNamespace(model_type="resnet"), 49, (224, 224))


def test_a_processor_that_makes_several_sizes_is_refused(encoder, tmp_path):
    save_pictures(tmp_path, 1)
    loaded = encoder("dinov2")
    uncut = type(loaded.processor)(size={"shortest_edge": SIDE}, do_center_crop=False)
    with pytest.raises(ValueError, match="Dinov2Model makes pictures of several sizes"):
        source_of(loaded._replace(processor=uncut), folder=str(tmp_path))


def test_the_width_is_the_model_s(encoder, tmp_path):
    save_pictures(tmp_path, 2)
    assert all_of(source_of(encoder("clip"), folder=str(tmp_path)))["acts"].shape[1] == D
