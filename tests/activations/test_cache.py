"""The activation cache: what is read equals what would be harvested, whatever happened on disk."""

import copy
import logging
import multiprocessing
import os
import signal

import pytest
import torch

from hfsae.activations import HarvestArguments, Harvester, TokenBatch

SITES = ["layers.0", "layers.2"]


def batch(seed=0, rows=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 200, (rows, 7), generator=generator)
    keep = torch.rand(rows, 7, generator=generator) > 0.3
    return TokenBatch(ids, keep, torch.arange(7 * rows).view(rows, 7) // 3)


def cached(lm, folder, sites=SITES, **fields):
    return Harvester(lm, sites, HarvestArguments(cache=str(folder), **fields))


def fill(lm, folder, seeds=range(3), **fields):
    harvester = cached(lm, folder, **fields)
    for seed in seeds:
        harvester(batch(seed))
    return list(folder.rglob("*.safetensors"))


class never(torch.nn.Module):
    """In an LM's place where nothing may run it."""

    def forward(self, *args, **kwargs):
        raise AssertionError("the language model was run")


def idle(lm):
    """The same weights; running it fails."""
    idle = copy.deepcopy(lm)
    idle.base_model.layers[0].register_forward_pre_hook(never())
    return idle


def same(a, b):
    return all(torch.equal(a.activations[s], b.activations[s]) for s in SITES) and all(
        torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_equals_what_is_harvested(tiny_lm, tmp_path, dtype):
    lm = copy.deepcopy(tiny_lm).to(dtype)
    fill(lm, tmp_path)
    reader = cached(idle(lm), tmp_path)
    for seed in (2, 0, 1):
        live = Harvester(lm, SITES, HarvestArguments())(batch(seed))
        assert same(reader(batch(seed)), live)
        assert live.activations["layers.0"].dtype == dtype
    assert (reader.caches[0].hits, reader.caches[0].misses) == (3, 0)


def test_sites_are_found_one_by_one(tiny_lm, tmp_path):
    fill(tiny_lm, tmp_path)
    cached(idle(tiny_lm), tmp_path, sites=["layers.2"])(batch(1))
    wider = cached(tiny_lm, tmp_path, sites=[*SITES, "layers.1"])
    wider(batch(1))
    cached(idle(tiny_lm), tmp_path, sites=["layers.1", "layers.0"])(batch(1))


def test_other_tokens_masks_rows_settings_or_weights_are_not_found(tiny_lm, tmp_path):
    fill(tiny_lm, tmp_path, seeds=[0])
    one = batch(0)
    other_mask = TokenBatch(one.input_ids, ~one.keep, one.document)
    for other, rows in ((batch(5), 16), (other_mask, 16), (one, 2), (batch(0, rows=2), 16)):
        reader = cached(tiny_lm, tmp_path, rows=rows)
        reader(other)
        assert reader.caches[0].misses == 1
    changed = copy.deepcopy(tiny_lm)
    changed.base_model.layers[1].mlp.down_proj.weight.data *= 1.001
    other_settings = copy.deepcopy(tiny_lm)
    other_settings.config.rms_norm_eps = 1e-3
    for lm in (changed, other_settings):
        reader = cached(lm, tmp_path)
        reader(one)
        assert reader.caches[0].misses == 1


def test_norm_outliers_are_dropped_from_what_is_read_too(tiny_lm, tmp_path):
    fill(tiny_lm, tmp_path)
    live = Harvester(tiny_lm, SITES, HarvestArguments(max_norm_ratio=1.05))
    reader = cached(idle(tiny_lm), tmp_path, max_norm_ratio=1.05)
    assert all(same(reader(batch(seed)), live(batch(seed))) for seed in range(3))
    assert reader.dropped_outliers == live.dropped_outliers > 0


@pytest.mark.parametrize("where", [0.1, 0.9])
def test_one_flipped_bit_is_seen_and_harvested_again(tiny_lm, tmp_path, caplog, where):
    for path in fill(tiny_lm, tmp_path):
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= 4
        path.write_bytes(data)
    live = Harvester(tiny_lm, SITES, HarvestArguments())
    reader = cached(tiny_lm, tmp_path)
    assert all(same(reader(batch(seed)), live(batch(seed))) for seed in range(3))
    assert caplog.text.count("is damaged; it is harvested again") == 6
    assert same(cached(idle(tiny_lm), tmp_path)(batch(2)), live(batch(2)))


def test_half_a_file_is_harvested_again(tiny_lm, tmp_path, caplog):
    for path in fill(tiny_lm, tmp_path):
        path.write_bytes(path.read_bytes()[:-100])
    reader = cached(tiny_lm, tmp_path)
    reader(batch(0))
    assert reader.caches[0].misses == 1 and "is damaged" in caplog.text
    cached(idle(tiny_lm), tmp_path)(batch(0))


def test_a_full_disk_ends_the_caching_and_not_the_run(tiny_lm, tmp_path, full_disk, caplog):
    harvester = cached(tiny_lm, tmp_path)
    live = Harvester(tiny_lm, SITES, HarvestArguments())
    for seed in range(3):
        assert same(harvester(batch(seed, rows=16)), live(batch(seed, rows=16)))
    assert caplog.text.count("keeps nothing more: it cannot be written to") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_it_takes_no_more_disk_than_it_may(tiny_lm, tmp_path, caplog):
    fill(tiny_lm, tmp_path, seeds=range(5), cache_gb=1e-8)
    assert "has reached harvest.cache_gb (1e-08 GB)" in caplog.text
    assert not list(tmp_path.rglob("*.safetensors"))


def _fill_until_killed(lm, folder, ready):
    harvester = cached(lm, folder)
    for seed in range(10**6):
        harvester(batch(seed))
        if seed == 8:
            ready.set()


def test_a_killed_process_leaves_whole_files(tiny_lm, tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_fill_until_killed, args=(tiny_lm, tmp_path, ready))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    reader = cached(tiny_lm, tmp_path)
    live = Harvester(tiny_lm, SITES, HarvestArguments())
    assert all(same(reader(batch(seed)), live(batch(seed))) for seed in range(8))
    assert reader.caches[0].hits > 3


def test_a_folder_that_cannot_be_made_is_one_sentence(tiny_lm, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"harvest\.cache .* cannot be made .*another folder"):
        cached(tiny_lm, tmp_path / "file")


def test_no_gigabytes_are_refused():
    with pytest.raises(ValueError, match=r"^harvest\.cache_gb is 0\.0"):
        HarvestArguments(cache_gb=0.0)


@pytest.fixture(autouse=True)
def _logs(caplog):
    caplog.set_level(logging.WARNING)


def test_the_limit_is_of_all_that_write_to_a_folder(tiny_lm, tmp_path, caplog):
    one = sum(path.stat().st_size for path in fill(tiny_lm, tmp_path / "one", seeds=[0]))
    beside = [cached(tiny_lm, tmp_path / "all", cache_gb=2 * one / 1e9) for _ in range(4)]
    for seed, harvester in enumerate(beside):  # each as if in a process of its own
        harvester(batch(seed))
    assert len(list((tmp_path / "all").rglob("*.safetensors"))) == 4
    assert "has reached harvest.cache_gb" in caplog.text
