"""Sources: what fills buckets, and gives a side's activations, whatever they come from."""

import copy

import pytest
import torch

from hfsae.activations import (
    HarvestArguments,
    Harvester,
    PackedRows,
    ShuffleArguments,
    ShuffledActivations,
    Source,
    TensorSource,
    TextArguments,
    TextSource,
)
from hfsae.training import Trainer
from tests.tiny import TEXTS
from tests.training.planted import (
    PlantedStream,
    arguments,
    assert_same_bits,
    make_sae,
    stop_at,
    weights,
)

SITE = "layers.1"


@pytest.fixture
def text_source(tiny_lm, tiny_tokenizer):
    def make(**fields: float) -> TextSource:
        text = TextArguments(dataset=TEXTS, context_size=16, held_out_fraction=0.3, **fields)
        rows = PackedRows(tiny_tokenizer, text, "train", rows=4, epochs=None)
        harvest = HarvestArguments(rows=4, max_norm_ratio=1.2)
        return TextSource(rows, Harvester(tiny_lm, [SITE], harvest))

    return make


def counted(n: int, batch_size: int = 8) -> TensorSource:
    """Row i is [i, i]."""
    return TensorSource({"a": torch.arange(float(n))[:, None].repeat(1, 2)}, batch_size)


def in_buckets(stream: PlantedStream) -> ShuffledActivations:
    return ShuffledActivations(stream, ShuffleArguments(bucket_tokens=1024), stream.batch_size)


def test_an_sae_trained_on_a_source_without_text_resumes_to_the_bit(tmp_path):
    whole, resumed = make_sae(), make_sae()
    Trainer(whole, in_buckets(PlantedStream()), arguments(tmp_path / "whole")).train()
    args, stopping = arguments(tmp_path / "parts", save_steps=0), in_buckets(PlantedStream())
    stopping.next_batch = stop_at(stopping, 14)  # within the fourth bucket
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_sae(), stopping, args).train()
    trainer = Trainer(resumed, in_buckets(PlantedStream()), args)
    trainer.train()
    assert_same_bits(weights(resumed), weights(whole))
    harvested = trainer.record("")["harvested"]
    assert harvested["kept"] == 256 * 40 and harvested["norm_limits"] == {}


def test_buckets_hand_each_activation_of_a_source_out_once():
    stream = ShuffledActivations(counted(96), ShuffleArguments(bucket_tokens=48), 8)
    handed_out = torch.cat([stream.next_batch()["a"] for _ in range(12)])[:, 0]
    for part, first in zip(handed_out.split(48), (0, 48), strict=True):
        assert torch.equal(part.sort().values, torch.arange(first, first + 48.0))
        assert not torch.equal(part, part.sort().values)
    with pytest.raises(ValueError, match=r"the tensors gave 0 activations, fewer than a batch"):
        stream.next_batch()


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_shares_of_processes_make_the_bucket_of_one(text_source, kind):
    make = text_source if kind == "text" else PlantedStream
    whole = make().fill(400, 0, 1)
    fillings = [make().fill(400, rank, 3) for rank in range(3)]
    rounds = zip(*(filling.parts for filling in fillings), strict=True)
    shares = [part[SITE] for parts in rounds for part in parts]
    assert torch.equal(torch.cat(shares), torch.cat([part[SITE] for part in whole.parts]))
    assert {filling.digest for filling in fillings} == {whole.digest}


@pytest.mark.parametrize("kind", ["text", "masked text", "tensors"])
def test_a_position_gives_the_same_filling_again(text_source, kind):
    makes = {"text": text_source, "masked text": lambda: text_source(mask_share=0.4)}
    make = makes.get(kind, PlantedStream)
    one, other = make(), make()
    assert isinstance(one, Source)
    for _ in range(2):
        list(one.fill(100, 0, 1).parts)
    position = one.state_dict()
    expected = torch.cat([part[SITE] for part in one.fill(100, 0, 1).parts])
    for source in (other, one):
        source.load_state_dict(position)
        filling = source.fill(100, 0, 1)
        assert torch.equal(torch.cat([part[SITE] for part in filling.parts]), expected)


def test_other_tensors_at_a_loaded_position_are_refused():
    stopped, resumed = in_buckets(PlantedStream()), in_buckets(PlantedStream(l0=4.0))
    stopped.next_batch()
    resumed.load_state_dict(stopped.state_dict())
    with pytest.raises(ValueError, match=r"the tensors differ from .* \(bucket 1 differs\)"):
        resumed.next_batch()


def test_one_side_of_the_text_comes_with_its_documents(text_source):
    source = text_source()
    list(source.fill(100).parts)  # the norm limits are those of the training
    rows = PackedRows(source.rows.tokenizer, source.rows.args, "test", rows=4)
    harvester = source.harvester
    alone = Harvester(harvester.lm, [SITE], harvester.args, norm_limits=harvester.norm_limits)
    expected = [alone(batch) for batch in rows]
    got = list(source.batches("test"))
    assert alone.dropped_outliers and len(got) == len(expected) > 2
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours.activations[SITE], theirs.activations[SITE])
        assert torch.equal(ours.document, theirs.document)
    assert sum(len(batch.document) for batch in source.batches("test", 50)) < 50 + 16


@pytest.fixture
def read_by_lm(monkeypatch):
    """The batches of tokens that go through language models."""
    seen, call = [], Harvester.__call__
    monkeypatch.setattr(
        Harvester, "__call__", lambda self, batch: (seen.append(batch), call(self, batch))[1]
    )
    return seen


def test_a_share_of_the_training_text_is_masked_and_not_trained_on(text_source, read_by_lm):
    source, share = text_source(mask_share=0.4), 0.4
    plain = list(PackedRows(source.rows.tokenizer, source.rows.args, "train", rows=4))
    filling = source.fill(900)
    assert sum(len(part[SITE]) for part in filling.parts) <= filling.capacity
    n_masked = n_tokens = 0
    for before, batch in zip(plain, read_by_lm, strict=False):
        masked = before.keep & ~batch.keep
        assert torch.equal(batch.document, before.document)
        assert torch.equal(batch.input_ids[~masked], before.input_ids[~masked])
        assert (batch.input_ids[masked] == source.rows.tokenizer.pad_token_id).all()
        assert not (batch.keep & ~before.keep).any()
        n_masked, n_tokens = n_masked + int(masked.sum()), n_tokens + int(before.keep.sum())
    assert n_tokens > 1400 and filling.capacity == n_tokens - n_masked
    assert abs(n_masked / n_tokens - share) < 4 * (share * (1 - share) / n_tokens) ** 0.5


@pytest.mark.parametrize("side", ["train", "test"])
def test_text_that_is_measured_on_has_no_mask(text_source, read_by_lm, side):
    for share in (0.0, 0.9):
        list(text_source(mask_share=share).batches(side))
    half = len(read_by_lm) // 2
    assert half
    for plain, other in zip(read_by_lm[:half], read_by_lm[half:], strict=True):
        assert torch.equal(plain.input_ids, other.input_ids)
        assert torch.equal(plain.keep, other.keep)


def test_the_mask_follows_the_seed_and_no_batch_has_that_of_another(text_source, read_by_lm):
    for seed in (0, 0, 1):
        source = text_source(mask_share=0.5, seed=seed, shuffle_documents=False)
        list(source.fill(200).parts)
    n = len(read_by_lm) // 3
    one, same, other = (
        [~batch.keep for batch in read_by_lm[i * n : (i + 1) * n]] for i in range(3)
    )
    assert all(map(torch.equal, one, same)) and not any(map(torch.equal, one, other))
    assert not torch.equal(one[0], one[1])


def test_a_tokenizer_with_nothing_to_mask_with_is_refused(tiny_lm, tiny_tokenizer):
    bare = copy.deepcopy(tiny_tokenizer)
    bare.mask_token = bare.pad_token = bare.eos_token = None
    text = TextArguments(dataset=TEXTS, context_size=16, mask_share=0.1)
    rows = PackedRows(bare, text, "train", rows=4)
    with pytest.raises(ValueError, match=r"no mask, padding or EOS token .* set text.mask_share"):
        TextSource(rows, Harvester(tiny_lm, [SITE], HarvestArguments()))


def test_tensors_are_a_stream_in_their_own_order_until_they_end():
    stream, resumed = counted(20), counted(20)
    assert torch.equal(stream.sample(5)["a"][:, 0], torch.arange(5.0))
    batches = [stream.next_batch()["a"][:, 0] for _ in range(3)]
    assert torch.equal(torch.cat(batches), torch.arange(20.0))
    resumed.load_state_dict({"position": 1})
    assert torch.equal(resumed.next_batch()["a"][:, 0], batches[1])
    with pytest.raises(ValueError, match="the tensors are used up after 3 batches"):
        stream.next_batch()
    assert [len(batch.document) for batch in stream.batches("train")] == [8, 8, 4]
    with pytest.raises(ValueError, match="tensors have no test side"):
        next(stream.batches("test"))
