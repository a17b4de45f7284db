"""A collection that is stopped goes on where it was, with the same store to the bit."""

import dataclasses

import pytest
import torch

from hfsae.features import CollectArguments, FeatureStore, collect, collecting

ARGS = CollectArguments(reservoir=4)


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def written_after_each_batch(monkeypatch):
    monkeypatch.setattr(collecting, "_EVERY_SECONDS", 0.0)


def run(planted, path=None, stop_after=None, batches=None, args=ARGS):
    """The store, and the number of tokens that were told in each step."""
    told = []

    def rows():
        for n, batch in enumerate(planted.batches(2) if batches is None else batches):
            if n == stop_after:
                raise Stopped
            yield batch

    more = {"tokenizer": planted.tokenizer, "progress": told.append, "resume": path}
    return collect(planted.lm, planted.sae, rows(), args, **more), told


def stop(planted, path, after=3):
    with pytest.raises(Stopped):
        run(planted, path, stop_after=after)
    assert path.is_file()


def equal(one: FeatureStore, other: FeatureStore) -> bool:
    same = one.latents.equals(other.latents) and one.meta == other.meta
    return same and one.examples.to_table().equals(other.examples.to_table())


def test_a_stopped_collection_goes_on_and_gives_the_same_store_to_the_bit(random_latents, tmp_path):
    whole, every = run(random_latents)
    path = tmp_path / "features" / "state"
    stop(random_latents, path, after=3)
    stop(random_latents, path, after=5)
    again, told = run(random_latents, path)
    assert equal(again, whole) and not equal(whole, run(random_latents, args=CollectArguments())[0])
    assert told == [sum(every[:5]), *every[5:]]
    assert not path.exists()


@pytest.mark.parametrize("change", ["weights", "settings", "text", "less text", "damage"])
def test_what_was_kept_of_something_else_is_not_used(random_latents, tmp_path, change):
    path, planted = tmp_path / "state", random_latents
    stop(planted, path)
    batches, args = list(planted.batches(2)), ARGS
    with torch.no_grad():
        if change == "weights":
            planted.sae.b_enc[3] += 1e-3
        elif change == "settings":
            args = dataclasses.replace(ARGS, window=5)
        elif change == "text":
            batches[1].document[0, 0] += 1
        elif change == "less text":
            batches = batches[:2]
        else:
            path.write_bytes(path.read_bytes()[:-9])
        again, told = run(planted, path, batches=batches, args=args)
        assert equal(again, run(planted, batches=batches, args=args)[0])
    assert told == [batch.input_ids.numel() for batch in batches]
