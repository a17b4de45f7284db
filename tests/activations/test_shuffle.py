"""Buckets: each activation once a pass, in an order that a saved position gives back."""

import copy
from dataclasses import replace

import pytest
import torch

from hfsae.activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    TextArguments,
    TextSource,
)
from hfsae.activations.source import agree_on_norm_limits

SITES = ["layers.1", "layers.2"]
TEXTS = [f"document {i}: " + "abcdefghij " * (3 + i % 5) for i in range(40)]


@pytest.fixture
def make_stream(tiny_lm, tiny_tokenizer):
    def make(batch_size=32, *, harvest=None, kind=Harvester, **fields) -> ShuffledActivations:
        text = TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.0)
        rows = PackedRows(tiny_tokenizer, text, "train", rows=4, epochs=None)
        harvester = kind(tiny_lm, SITES, harvest or HarvestArguments(rows=4))
        args = ShuffleArguments(**{"bucket_tokens": 400, **fields})
        return ShuffledActivations(TextSource(rows, harvester), args, batch_size)

    return make


def direct(stream: ShuffledActivations) -> torch.Tensor:
    """Activations at the first site in text order, harvested without any bucket."""
    rows = PackedRows(stream.source.rows.tokenizer, stream.source.rows.args, "train", rows=4)
    harvester = Harvester(stream.source.harvester.lm, SITES, stream.source.harvester.args)
    return torch.cat([harvester(batch).activations["layers.1"] for batch in rows]).float()


def keys(x: torch.Tensor) -> list[tuple[float, ...]]:
    return [tuple(row[:4].tolist()) for row in x]


def test_a_bucket_holds_the_text_in_order_and_hands_each_activation_out_once(make_stream):
    stream = make_stream()
    first, second = stream.sample(10_000)["layers.1"], None
    n = len(first)
    assert 400 <= n < 400 + 4 * 16
    expected = keys(direct(stream)[:n])
    batches = [stream.next_batch()["layers.1"] for _ in range(n // 32)]
    handed_out = keys(torch.cat(batches))
    assert set(handed_out) <= set(expected) and len(handed_out) == n // 32 * 32
    assert handed_out != expected[: len(handed_out)], "not shuffled"
    assert handed_out == keys(first)[: len(handed_out)], "sample() shows what comes"
    second = keys(stream.next_batch()["layers.1"])
    assert set(second) <= set(keys(direct(stream)[n : 2 * n + 64]))


def test_sites_stay_aligned(make_stream):
    stream = make_stream()
    rows = PackedRows(stream.source.rows.tokenizer, stream.source.rows.args, "train", rows=4)
    pairs = {}
    for batch in rows:
        acts = stream.source.harvester(batch).activations
        pairs |= dict(zip(keys(acts["layers.1"]), keys(acts["layers.2"]), strict=True))
    batch = stream.next_batch()
    for one, two in zip(keys(batch["layers.1"]), keys(batch["layers.2"]), strict=True):
        assert pairs[one] == two


def test_each_pass_has_the_same_activations_in_another_order(make_stream):
    stream = make_stream(batch_size=1, passes=2)
    n = len(stream.sample(10_000)["layers.1"])
    one, two = (
        keys(torch.cat([stream.next_batch()["layers.1"] for _ in range(n)])) for _ in range(2)
    )
    assert sorted(one) == sorted(two) and one != two
    assert stream.record["kept"] == n


def test_the_order_depends_on_the_seed_alone(make_stream):
    a, b, c = make_stream(), make_stream(), make_stream(seed=1)
    for _ in range(30):
        x, y, z = (stream.next_batch()["layers.1"] for stream in (a, b, c))
        assert torch.equal(x, y) and not torch.equal(x, z)


@pytest.mark.parametrize("stop_after", [0, 1, 12, 13, 24, 25, 40])
def test_a_loaded_position_gives_the_same_batches_from_there_on(make_stream, stop_after):
    harvest = HarvestArguments(rows=4, max_norm_ratio=1.2)
    whole, stopped, resumed = (make_stream(passes=2, harvest=harvest) for _ in range(3))
    for _ in range(stop_after):
        whole.next_batch(), stopped.next_batch()
    resumed.load_state_dict(stopped.state_dict())
    for _ in range(30):
        expected, got = whole.next_batch(), resumed.next_batch()
        assert all(torch.equal(expected[site], got[site]) for site in SITES)
    assert resumed.record == whole.record and whole.record["dropped_outliers"] > 0


class Rounding(Harvester):
    """Changes one bit of the second batch."""

    n_batches = 0

    def __call__(self, batch):
        harvested = super().__call__(batch)
        self.n_batches += 1
        if self.n_batches == 2:
            bits = harvested.activations["layers.2"][3:4, 7:8].view(torch.int32)
            bits ^= 1
        return harvested


def test_the_hash_of_activations_tells_streams_apart_by_a_single_bit(make_stream):
    digests = []
    for stream in (make_stream(), make_stream(seed=1), make_stream(kind=Rounding)):
        while stream.state_dict()["bucket"] < 2:
            stream.next_batch()
        digests.append(stream.record["digests"])
    assert digests[0] == digests[1]
    assert digests[0]["layers.1"] == digests[2]["layers.1"] != digests[0]["layers.2"]
    assert digests[0]["layers.2"] != digests[2]["layers.2"]


def test_other_text_at_a_loaded_position_is_refused(make_stream):
    stopped, resumed = make_stream(), make_stream()
    for _ in range(15):
        stopped.next_batch()
    resumed.source.rows.args = replace(resumed.source.rows.args, dataset=[t.upper() for t in TEXTS])
    resumed.load_state_dict(stopped.state_dict())
    before = resumed.state_dict()
    for _ in range(2):
        with pytest.raises(ValueError, match="the text, or its tokens, differ from"):
            resumed.next_batch()
        assert resumed.state_dict() == before, "nothing is lost"
    older = {k: v for k, v in before.items() if k not in ("tokens", "lm")}
    del older["source"]["digests"], older["record"]["digests"]
    stopped.load_state_dict(older)
    stopped.next_batch()  # a position from before these were kept
    assert stopped.record["digests"] == {} and stopped.record["kept"] > 0


def test_other_kept_tokens_at_a_loaded_position_are_refused(make_stream):
    stopped, resumed = make_stream(), make_stream()
    stopped.next_batch()
    source = resumed.source
    text = replace(source.rows.args, exclude_special_tokens=False)
    source.rows = PackedRows(source.rows.tokenizer, text, "train", rows=4, epochs=None)
    resumed.load_state_dict(stopped.state_dict())
    with pytest.raises(ValueError, match="the text, or its tokens, differ from"):
        resumed.next_batch()


def test_another_language_model_at_a_loaded_position_is_refused(make_stream):
    stopped, resumed = make_stream(), make_stream()
    stopped.next_batch()
    lm = copy.deepcopy(stopped.source.harvester.lm)
    lm.model.layers[1].mlp.down_proj.weight.data[0] += 1
    source = TextSource(resumed.source.rows, Harvester(lm, SITES, HarvestArguments(rows=4)))
    other = ShuffledActivations(source, resumed.args, 32)
    with pytest.raises(ValueError, match=r"the language model.s weights differ from those"):
        other.load_state_dict(stopped.state_dict())


def test_interrupted_filling_leaves_the_stream_before_the_bucket(make_stream):
    whole, stream = make_stream(), make_stream()
    per_bucket = len(whole.sample(10_000)["layers.1"]) // 32
    for _ in range(per_bucket):
        whole.next_batch(), stream.next_batch()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    stream.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        stream.next_batch()
    state = stream.state_dict()
    stream.progress = lambda done, total: None
    resumed = make_stream()
    resumed.load_state_dict(state)
    expected = whole.next_batch()["layers.1"]
    assert torch.equal(stream.next_batch()["layers.1"], expected)
    assert torch.equal(resumed.next_batch()["layers.1"], expected)


def test_progress_and_counts_add_up(make_stream):
    stream, seen = make_stream(harvest=HarvestArguments(rows=4, max_norm_ratio=1.2)), []
    stream.progress = lambda done, total: seen.append((done, total))
    n = len(stream.sample(10_000)["layers.1"])
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0][1] == n + stream.record["dropped_outliers"] > n
    assert seen[-1] == (n, n) and stream.record["kept"] == n
    # 1 BOS a row, an EOS after each document
    assert stream.record["dropped_special"] >= n // 15


def test_impossible_sizes_are_refused(make_stream):
    with pytest.raises(ValueError, match=r"bucket_tokens \(400\) is smaller than a batch \(500\)"):
        make_stream(batch_size=500)
    with pytest.raises(ValueError, match="must be 1 or more"):
        ShuffleArguments(passes=0)
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=rf"shuffle\.device '{device}' is not here.*has 'cpu'"):
            make_stream(device=device)


def test_norm_limits_are_agreed_on_where_the_first_batch_keeps_nothing(make_stream):
    stream = make_stream(harvest=HarvestArguments(rows=4, max_norm_ratio=3.0))
    rows = iter(stream.source.rows)
    first, second = next(rows), next(rows)
    empty = first._replace(keep=torch.zeros_like(first.keep))
    agree_on_norm_limits(stream.source.harvester, [empty, second], lambda batch: batch)
    limits = stream.source.harvester.norm_limits
    alone = Harvester(stream.source.harvester.lm, SITES, stream.source.harvester.args)
    alone(second)
    assert limits == alone.norm_limits and limits


def test_prefetched_batches_are_the_same(make_stream):
    here, ahead = make_stream(), make_stream(prefetch=True)
    for _ in range(40):  # three buckets
        expected, got = here.next_batch(), ahead.next_batch()
        assert all(torch.equal(got[site], expected[site]) for site in SITES)
    ahead.close()


def test_a_prefetching_stream_resumes_to_the_bit_and_counts_what_it_handed_out(make_stream):
    here, ahead, resumed = make_stream(), make_stream(prefetch=True), make_stream(prefetch=True)
    for _ in range(20):
        here.next_batch(), ahead.next_batch()
    assert ahead.record == here.record, "a bucket that is on its way does not count"
    resumed.next_batch()  # has begun something else, which it forgets
    resumed.load_state_dict(ahead.state_dict())
    for _ in range(20):
        expected = here.next_batch()["layers.1"]
        assert torch.equal(resumed.next_batch()["layers.1"], expected)
    ahead.close(), resumed.close()


def test_nothing_is_prefetched_that_nobody_will_ask_for(make_stream):
    stream = make_stream(prefetch=True)
    stream.n_batches = len(stream.sample(10_000)["layers.1"]) // 32 + 1  # one of the second bucket
    harvested = []
    stream.progress = lambda n, total: harvested.append(n)
    for _ in range(stream.n_batches):
        stream.next_batch()
    stream.close()
    assert harvested and harvested == sorted(harvested), "the third bucket was begun"


@pytest.mark.parametrize("passes", [1, 3])
def test_nothing_is_prefetched_after_a_bucket_that_the_last_batch_uses_up(make_stream, passes):
    stream = make_stream(prefetch=True, passes=passes)
    stream.n_batches = len(stream.sample(10_000)["layers.1"]) // 32 * passes
    harvested = []
    stream.progress = lambda n, total: harvested.append(n)
    for _ in range(stream.n_batches):
        stream.next_batch()
    stream.close()
    assert not harvested, "the second bucket was begun"


def test_closing_stops_a_bucket_on_its_way(make_stream):
    stream, seen = make_stream(prefetch=True), []
    stream.sample(1)
    stream.progress = lambda n, total: (seen.append(n), stream._is_closed.wait(30))
    stream.next_batch()
    stream.close()
    assert len(seen) == 1, "it went on after it was closed"


def test_an_error_of_the_thread_reaches_who_asks_for_the_batch(make_stream):
    stream = make_stream(prefetch=True)
    n = len(stream.sample(10_000)["layers.1"]) // 32

    def fail(done, total):
        raise OSError("the disk is gone")

    stream.progress = fail
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in range(n + 1):
            stream.next_batch()
    stream.close()


def test_what_was_harvested_is_kept_when_filling_is_interrupted(make_stream, tmp_path):
    harvest = HarvestArguments(rows=4, cache=str(tmp_path))
    stream, calls = make_stream(harvest=harvest), []

    def interrupt(done, total):
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    stream.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        stream.next_batch()
    again = make_stream(harvest=harvest)
    again.next_batch()
    assert again.source.harvester.caches[0].hits == 3
