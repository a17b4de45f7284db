"""Buckets: each activation once a pass, in an order that a saved position gives back."""

import pytest
import torch

from hfsae.activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    TextArguments,
)

SITES = ["layers.1", "layers.2"]
TEXTS = [f"document {i}: " + "abcdefghij " * (3 + i % 5) for i in range(40)]


@pytest.fixture
def make_stream(tiny_lm, tiny_tokenizer):
    def make(batch_size=32, *, harvest=None, **fields) -> ShuffledActivations:
        text = TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.0)
        rows = PackedRows(tiny_tokenizer, text, "train", rows=4, epochs=None)
        harvester = Harvester(tiny_lm, SITES, harvest or HarvestArguments(rows=4))
        args = ShuffleArguments(**{"bucket_tokens": 400, **fields})
        return ShuffledActivations(rows, harvester, args, batch_size)

    return make


def direct(stream: ShuffledActivations) -> torch.Tensor:
    """Activations at the first site in text order, harvested without any bucket."""
    rows = PackedRows(stream.rows.tokenizer, stream.rows.args, "train", rows=4)
    harvester = Harvester(stream.harvester.lm, SITES, stream.harvester.args)
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
    rows = PackedRows(stream.rows.tokenizer, stream.rows.args, "train", rows=4)
    pairs = {}
    for batch in rows:
        acts = stream.harvester(batch).activations
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
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            ShuffleArguments(device="cuda").check_device()
