"""Pictures as a source: what an epoch holds, shares of processes, and resuming."""

import json

import numpy as np
import pytest
import torch

from hfsae.activations import (
    HarvestArguments,
    ImageArguments,
    InputSource,
    ShuffleArguments,
    ShuffledActivations,
    Source,
)
from hfsae.lm import capture, forward
from hfsae.training import Trainer
from tests.tiny_encoders import N_PATCHES, D, block, save_pictures
from tests.training.planted import (
    arguments,
    assert_same_bits,
    make_sae,
    stop_at,
    weights,
)

pytest.importorskip("PIL")
N_PICTURES = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("inputs")
    save_pictures(made / "pictures", N_PICTURES)
    return made


@pytest.fixture
def make(encoder, folder):
    """make("vit", crops=2): a source, with a third held out."""

    def source(family: str = "vit", rows: int = 4, ratio: float | None = None, **fields):
        loaded = encoder(family)
        more = {"held_out_fraction": 0.2, "validation_fraction": 0.15} | fields
        args = ImageArguments(folder=str(folder / "pictures"), **more)
        harvest = HarvestArguments(rows=rows, max_norm_ratio=ratio)
        return InputSource(args, loaded, [block(loaded.model, 1)], harvest)

    return source


def filled(source: InputSource, n: int, rank: int = 0, n_processes: int = 1) -> torch.Tensor:
    parts = source.fill(n, rank, n_processes).parts
    return torch.cat([part[source.sites[0]] for part in parts])


def in_order(rows: torch.Tensor) -> torch.Tensor:
    return rows[np.lexsort(rows.double().numpy().T)]


def expected_rows(source: InputSource, sides: tuple[str, ...]) -> torch.Tensor:
    """By a loop: every piece of these sides alone through the model."""
    site, rows, chosen = source.sites[0], [], []
    for document, id_ in enumerate(source.ids):
        place = int(id_, 16) / 2**64
        side = "test" if place < 0.2 else "validation" if place < 0.35 else "train"
        if side in sides:
            chosen.append(document)
    for piece in (piece for side in sides for piece in source.pieces(side)):
        assert piece[0] in chosen
        with torch.no_grad(), capture(source.encoder.model, [site]) as acts:
            forward(source.encoder.model, source.read([piece]).inputs)
        rows.append(acts[site][0][source.keep])
    return torch.cat(rows)


def assert_same_rows(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(in_order(a), in_order(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("family, fields", [("vit", {}), ("vit", {"crops": 2})])
def test_an_epoch_has_each_training_position_once_and_none_that_is_held_out(
    make, family, fields, n_processes
):
    sources = [make(family, **fields) for _ in range(n_processes)]
    n = sources[0].n_positions("train")
    for epoch in (0, 1):
        shares = [filled(one, n, rank, n_processes) for rank, one in enumerate(sources)]
        rows = torch.cat(shares)
        assert len(rows) == n and sources[0].state_dict()["inputs"]["epoch"] == epoch
        assert_same_rows(rows, expected_rows(sources[0], ("train",)))
    everything = len(expected_rows(sources[0], ("train", "validation", "test")))
    sides = {side: sources[0].n_positions(side) for side in ("train", "validation", "test")}
    assert sum(sides.values()) == everything and min(sides.values()) > 0


def test_held_out_sides_are_those_of_the_hash_whatever_the_seed(make):
    for side in ("validation", "test"):
        rows = [
            torch.cat([b.activations[one.sites[0]] for b in one.batches(side)])
            for one in (make(), make(seed=1))
        ]
        assert not torch.equal(*rows)
        assert_same_rows(*rows)
        assert_same_rows(rows[0], expected_rows(make(), (side,)))


def test_each_epoch_has_another_order_and_so_has_each_seed(make):
    one, other = make(), make(seed=1)
    n = one.n_positions("train")
    first, second, third = filled(one, n), filled(one, n), filled(other, n)
    assert not torch.equal(first, second) and not torch.equal(first, third)
    assert_same_rows(first, third)


@pytest.mark.parametrize("family, ratio", [("vit", 1.05), ("clip", None)])
def test_shares_of_processes_make_the_bucket_of_one(make, family, ratio):
    whole = make(family, ratio=ratio)
    filling = whole.fill(300, 0, 1)
    expected = torch.cat([part[whole.sites[0]] for part in filling.parts])
    sources = [make(family, ratio=ratio) for _ in range(3)]
    fillings = [one.fill(300, rank, 3) for rank, one in enumerate(sources)]
    rounds = zip(*(one.parts for one in fillings), strict=True)
    shares = [part[whole.sites[0]] for parts in rounds for part in parts]
    assert torch.equal(torch.cat(shares), expected)
    assert {one.digest for one in fillings} == {filling.digest}
    assert {one.capacity for one in fillings} == {filling.capacity}
    assert (len(expected) < filling.capacity) == (ratio is not None), "outliers are dropped"
    limits = [one.state_dict()["norm_limits"] for one in [whole, *sources]]
    assert all(limit == limits[0] for limit in limits) and len(limits[0]) == (ratio is not None)


@pytest.mark.parametrize("family", ["vit", "clip"])
def test_a_position_gives_the_same_filling_again(make, family):
    one, other = make(family, ratio=2.0), make(family, ratio=2.0)
    assert isinstance(one, Source)
    for _ in range(3):
        filled(one, 150)
    position = json.loads(json.dumps(one.state_dict()))
    expected = filled(one, 150)
    for source in (other, one):
        source.load_state_dict(position)
        assert torch.equal(filled(source, 150), expected)


def test_special_positions_are_counted_and_a_bucket_is_read_when_it_is_harvested(make):
    source = make("registers")
    filling = source.fill(40)
    assert (filling.capacity, filling.n_special) == (4 * N_PATCHES, 4 * 5)
    assert len(torch.cat([part[source.sites[0]] for part in filling.parts])) == 4 * N_PATCHES


def stream(source: InputSource, **fields) -> ShuffledActivations:
    return ShuffledActivations(source, ShuffleArguments(bucket_tokens=320, **fields), 64)


def fresh_sae(source: InputSource):
    return make_sae(site=source.sites[0], d_in=D)


def test_an_sae_learns_on_pictures_and_resumes_to_the_bit(make, tmp_path):
    source = make("vit", ratio=3.0)
    settings = {"n_tokens": 64 * 20, "batch_size": 64, "warmup_steps": 0}
    whole = fresh_sae(source)
    args = arguments(tmp_path / "whole", **settings)
    uninterrupted = Trainer(whole, stream(source, prefetch=True), args)
    uninterrupted.train()
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    fvus = [entry["fvu"] for entry in log if "fvu" in entry]
    assert fvus and fvus[-1] < fvus[0]

    args = arguments(tmp_path / "parts", **settings, save_steps=0)
    stopping = stream(make("vit", ratio=3.0))
    stopping.next_batch = stop_at(stopping, 12)  # within the third bucket
    with pytest.raises(KeyboardInterrupt):
        Trainer(fresh_sae(source), stopping, args).train()
    resumed = fresh_sae(source)
    trainer = Trainer(resumed, stream(make("vit", ratio=3.0)), args)
    trainer.train()
    assert_same_bits(weights(resumed), weights(whole))
    record = trainer.record("")["harvested"]
    assert record == uninterrupted.record("")["harvested"]
    assert record["kept"] >= 320 * 4 and record["norm_limits"].keys() == {source.sites[0]}


def test_other_pictures_or_another_model_at_a_loaded_position_are_refused(
    make, encoder, folder, tmp_path
):
    stopped = stream(make())
    stopped.next_batch()
    state = stopped.state_dict()
    other = tmp_path / "pictures"
    save_pictures(other, N_PICTURES, size=(41, 33))
    args = ImageArguments(folder=str(other), held_out_fraction=0.2, validation_fraction=0.15)
    loaded = encoder("vit")
    resumed = stream(InputSource(args, loaded, make().sites, HarvestArguments(rows=4)))
    resumed.load_state_dict(state)
    with pytest.raises(ValueError, match=r"the pictures differ from .* \(bucket 1 differs\)"):
        resumed.next_batch()
    other_model = stream(make("clip"))
    with pytest.raises(ValueError, match="the model's weights differ from those at the start"):
        other_model.load_state_dict(state)


def test_content_and_description_name_what_was_read(make, folder):
    source, about = make(), make().describe()
    assert source.content() == make(seed=3).content()
    assert source.content().startswith(f"SHA-256 of {N_PICTURES} pictures ")
    assert about["images"]["folder"] == str(folder / "pictures")
    assert about["images"]["n_documents"] == N_PICTURES and about["harvest"]["rows"] == 4
    assert source.origin() == make().origin() != make("clip").origin()


def test_a_part_of_a_side_is_whole_pictures_until_it_is_enough(make):
    batches = list(make().batches("train", 3 * N_PATCHES + 1))
    assert sum(len(batch.document) for batch in batches) == 4 * N_PATCHES
    inputs = make().inputs("train", 5 * N_PATCHES)
    first, second = ([batch.document.tolist() for batch in inputs] for _ in range(2))
    assert first == second and [len(rows) for rows in first] == [4, 1]


def test_a_side_without_pictures_is_refused(make):
    source = make(validation_fraction=0.0)
    with pytest.raises(ValueError, match=r"none of the 30 pictures is on the validation side at "):
        source.pieces("validation")
    source = make(held_out_fraction=1.0)
    with pytest.raises(ValueError, match=r"on the train side at images.held_out_fraction=1.0; ch"):
        source.fill(10)


def test_the_harvest_s_cache_gives_the_same_bits(make, encoder, folder, tmp_path):
    args = ImageArguments(folder=str(folder / "pictures"))
    harvest = HarvestArguments(rows=4, cache=str(tmp_path))
    sites = make().sites
    first = filled(InputSource(args, encoder("vit"), sites, harvest), 200)
    again = InputSource(args, encoder("vit"), sites, harvest)
    assert torch.equal(filled(again, 200), first)
    (cache,) = again.harvester.caches
    assert cache.hits == 4 and cache.misses == 0
