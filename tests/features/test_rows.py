"""collect_rows: every number of a store without text against a literal loop over activations."""

import sys
import weakref

import numpy as np
import pytest
import torch

from hfsae.activations import ActivationBatch
from hfsae.features import (
    CollectArguments,
    FeatureSearch,
    FeatureStore,
    collect_rows,
    show,
)
from hfsae.io.errors import Damaged, Refused
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig

D, THRESHOLD = 8, 0.75
LENGTHS = [40, 1, 7, 23, 1, 12, 60, 3] * 2


def sae_of_dimensions(d: int = D) -> JumpReLUSAE:
    """Latent i is dimension i where that is above the threshold."""
    config = JumpReLUSAEConfig(d_in=d, d_sae=d, site="acts", initial_threshold=THRESHOLD)
    sae = JumpReLUSAE(config)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def batch_of(x, document, position) -> ActivationBatch:
    return ActivationBatch({"acts": x}, document, position)


class Planted:
    """Random activations in documents of unlike length, numbered 10, 17, 24 and so on. Multiples of
    1/8, so that peaks tie."""

    def __init__(self, lengths=LENGTHS):
        generator = torch.Generator().manual_seed(0)
        n = sum(lengths)
        self.x = (torch.randn(n, D, generator=generator) * 8).round() / 8
        self.document = torch.arange(10, 10 + 7 * len(lengths), 7).repeat_interleave(
            torch.tensor(lengths)
        )
        self.position = torch.cat([torch.arange(length) for length in lengths])
        self.latents = torch.where(self.x > THRESHOLD, self.x, 0.0)

    def batches(self, size: int = 16) -> list[ActivationBatch]:
        parts = (field.split(size) for field in (self.x, self.document, self.position))
        return [batch_of(*batch) for batch in zip(*parts, strict=True)]

    def order(self, order: torch.Tensor) -> "Planted":
        for name in ("x", "document", "position", "latents"):
            setattr(self, name, getattr(self, name)[order])
        return self


def caption(document: int, position: int) -> str:
    return f"document {document}, row {position}"


def run(planted: Planted, size: int = 16, **arguments) -> FeatureStore:
    args = CollectArguments(**{"window": 3, "top": 4, "reservoir": 8, **arguments})
    return collect_rows(sae_of_dimensions(), planted.batches(size), args, caption=caption)


def peaks(planted: Planted, latent: int) -> list[tuple[float, int, int]]:
    """(activation, document, position) of the peak of each document it fires in, best first; of
    equal ones the first in the order of reading."""
    best: dict[int, tuple[float, int, int]] = {}
    rows = zip(planted.latents[:, latent], planted.document, planted.position, strict=True)
    for activation, document, position in rows:
        value, key = activation.item(), document.item()
        if value > 0 and value > best.get(key, (0.0,))[0]:
            best[key] = (value, key, position.item())
    return sorted(best.values(), key=lambda peak: -peak[0])


@pytest.fixture
def small_pieces(monkeypatch):
    """Seven pieces or more, which cut documents."""
    monkeypatch.setattr(sys.modules[collect_rows.__module__], "_PIECE_LATENTS", 32 * D)


@pytest.mark.parametrize("size", [3, 1000])
def test_top_examples_are_what_a_literal_loop_over_rows_finds(small_pieces, size):
    planted = Planted()
    store = run(planted, size)
    for i in range(D):
        top = [e for e in store[i].examples if e.kind == "top"]
        assert [(e.activation, e.document, e.position) for e in top] == peaks(planted, i)[:4]
        assert [e.rank for e in top] == list(range(len(top)))
        assert all(e.row == (e.document - 10) // 7 for e in top)


def test_counts_means_and_histograms_are_those_of_all_rows(small_pieces):
    planted = Planted()
    store = run(planted)
    edges = np.array(store.meta["histogram_edges"])
    n = len(planted.x)
    assert (store.meta["n_tokens"], store.meta["n_rows"]) == (n, len(LENGTHS))
    for i in range(D):
        fired = planted.latents[:, i][planted.latents[:, i] > 0]
        latent = store[i]
        assert latent.n_firings == len(fired)
        assert latent.density == pytest.approx(len(fired) / n, rel=1e-12)
        assert latent.max_activation == fired.max()
        assert latent.mean_activation == pytest.approx(fired.mean().item(), rel=1e-6)
        assert latent.histogram == np.histogram(fired.numpy(), edges)[0].tolist()


def test_a_window_is_the_rows_of_the_same_document_around_the_peak(small_pieces):
    planted = Planted()
    places = {
        (d, p): i
        for i, (d, p) in enumerate(
            zip(planted.document.tolist(), planted.position.tolist(), strict=True)
        )
    }
    n_cut = 0
    for i, latent in enumerate(run(planted)):
        for e in latent.examples:
            inside = [p for p in range(e.position - 3, e.position + 4) if (e.document, p) in places]
            values = [planted.latents[places[e.document, p], i].item() for p in inside]
            assert e.token_ids == inside and e.activations == values
            assert inside[e.firing] == e.position and values[e.firing] == e.activation
            expected = [f"{p} " if p < e.position else f" {p}" for p in inside]
            expected[e.firing] = caption(e.document, e.position)
            assert e.tokens == expected
            n_cut += len(inside) < 7
    assert n_cut > 20


def test_sampled_examples_are_the_peaks_of_other_documents_of_their_group():
    planted = Planted()
    store = run(planted, reservoir=len(LENGTHS), quantiles=3, per_quantile=2)
    for i in range(D):
        weakest_first = sorted(p[0] for p in peaks(planted, i))
        by_document = {p[1]: p for p in peaks(planted, i)}
        examples = store[i].examples
        assert len({e.document for e in examples}) == len(examples)
        for e in examples:
            assert (e.activation, e.document, e.position) == by_document[e.document]
            if e.kind != "top":
                rank = weakest_first.index(e.activation), weakest_first.count(e.activation)
                groups = {3 * r // len(weakest_first) for r in range(rank[0], sum(rank))}
                assert int(e.kind[-1]) - 1 in groups


def test_the_size_of_batches_and_pieces_changes_nothing(monkeypatch):
    planted = Planted()
    expected = list(run(planted))
    assert list(run(planted, 5)) == expected
    monkeypatch.setattr(sys.modules[collect_rows.__module__], "_PIECE_LATENTS", 32 * D)
    assert list(run(planted, 5)) == expected


def test_documents_may_take_turns(small_pieces):
    planted = Planted()
    generator = torch.Generator().manual_seed(1)
    shuffled = Planted().order(torch.randperm(len(planted.x), generator=generator))
    for one, other in zip(run(planted, window=0), run(shuffled, window=0), strict=True):
        both = [
            {(e.document, e.activation) for e in x.examples if e.kind == "top"}
            for x in (one, other)
        ]
        # of documents with equal peaks, the one that comes first is kept
        weakest = min(a for _, a in both[0])
        assert {p for p in both[0] if p[1] > weakest} == {p for p in both[1] if p[1] > weakest}
        assert len({e.document for e in other.examples}) == len(other.examples)
        assert (one.n_firings, one.histogram) == (other.n_firings, other.histogram)


def test_a_document_that_goes_on_later_keeps_its_larger_peak():
    sae = sae_of_dimensions(1)
    args = CollectArguments(top=2, reservoir=2, quantiles=1, per_quantile=9, window=1)

    def batch(document: int, position: int, *values: float) -> ActivationBatch:
        x = torch.tensor(values)[:, None]
        places = torch.arange(position, position + len(values))
        return batch_of(x, torch.full((len(values),), document), places)

    batches = [batch(5, 0, 2.0), batch(6, 0, 3.0), batch(7, 0, 1.0), batch(5, 1, 4.0, 1.0)]
    module = sys.modules[collect_rows.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_LATENTS", 1)
        store = collect_rows(sae, batches, args, caption=caption)
    top = [(e.document, e.row, e.activation) for e in store[0].examples if e.kind == "top"]
    assert top == [(5, 0, 4.0), (6, 1, 3.0)]
    assert {e.document for e in store[0].examples if e.kind != "top"} <= {7}


def test_negative_places_are_next_to_no_other():
    x = torch.tensor([[1.0, 0], [1, 2], [3, 1], [1, 0], [0, 1]])
    position = torch.tensor([-2, -1, 0, 1, 3])
    batches = [batch_of(x, torch.zeros(5, dtype=torch.long), position)]
    args = CollectArguments(window=2)
    store = collect_rows(sae_of_dimensions(2), batches, args, caption=caption)
    (first,), (second,) = store[0].examples, store[1].examples
    assert (first.token_ids, first.activations, first.firing) == ([0, 1], [3.0, 1.0], 0)
    assert (second.token_ids, second.activations) == ([-1], [2.0])


def test_the_first_rows_alone_are_read():
    store = run(Planted())
    planted = Planted()
    planted.order(torch.arange(50))
    args = CollectArguments(window=3, top=4, reservoir=8)
    counted = []
    first = collect_rows(
        sae_of_dimensions(),
        Planted().batches(),
        args,
        caption=caption,
        n=50,
        progress=counted.append,
    )
    assert list(first) == list(run(planted)) != list(store)
    assert counted == [16, 16, 16, 2]


def test_a_store_is_read_again_as_it_was_written(tmp_path):
    planted = Planted()
    args = CollectArguments(window=3, top=4)
    store = collect_rows(
        sae_of_dimensions(),
        planted.batches(),
        args,
        caption=caption,
        unit="patch",
        meta={"files": "acts/*.npy"},
    )
    store.save(tmp_path)
    loaded = FeatureStore.load(tmp_path)
    assert list(loaded) == list(store)
    assert loaded.unit == loaded[3].unit == "patch"
    assert loaded.meta["files"] == "acts/*.npy"
    assert loaded.meta["logit_lens"] == "none: there is no language model"
    about = loaded.meta["columns"]["latents"]["density"]
    assert about == "share of the patches read on which the latent is above 0"
    assert loaded[3].promoted == loaded[3].suppressed == []
    assert loaded.places is not None and loaded.places.shape == (D, 2)
    best = loaded[3].examples[0]
    hits = FeatureSearch(loaded).by_token(caption(best.document, best.position))
    assert 3 in {hit.latent for hit in hits}


def test_stores_of_another_unit_are_damaged(tmp_path):
    store = run(Planted())
    store.meta["unit"] = "furlong"
    store.save(tmp_path)
    with pytest.raises(Damaged, match=r"meta.json is damaged \(the unit is 'furlong', not one of"):
        FeatureStore.load(tmp_path)


def test_show_gives_captions_and_the_places_around_them():
    x = torch.tensor([[0.0], [2.0], [3.5], [0.0], [0.0], [1.25], [1.0]])
    document, position = torch.tensor([3] * 5 + [4] * 2), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    args = CollectArguments(window=2)
    store = collect_rows(
        sae_of_dimensions(1), [batch_of(x, document, position)], args, caption=caption, unit="row"
    )
    assert show(store[0]).splitlines() == [
        "latent 0: fires on 57.143% of rows (4), max 3.5, mean when active 1.94",
        "  top",
        "        3.5  «document 3, row 2»  also at 1 (2)",
        "       1.25  «document 4, row 0»  also at 1 (1)",
    ]
    assert show(store[0], width=38).splitlines()[2] == "        3.5  «document 3, row 2»  also"


def test_latents_that_never_fire_are_logged(caplog):
    batch = batch_of(torch.zeros(5, 2), torch.zeros(5, dtype=torch.long), torch.arange(5))
    store = collect_rows(sae_of_dimensions(2), [batch], caption=caption, unit="patch")
    (message,) = caplog.messages
    assert message.startswith("no latent fired on any of the 5 patches: the feature store has no")
    assert store[0].examples == [] and store[0].max_activation == 0


@pytest.mark.parametrize(
    "batches, options, sentence",
    [
        ([], {}, "no activation is left to collect from"),
        ([batch_of(torch.ones(1, D), torch.zeros(1).long(), None)], {}, "come without positions"),
        ([], {"unit": "word"}, "the unit is 'word'; it can be 'row', 'patch'"),
        ([], {"n": 0}, "n is 0; give 1 row or more, or None for all"),
    ],
)
def test_what_cannot_be_collected_is_refused(batches, options, sentence):
    with pytest.raises(Refused, match=sentence):
        collect_rows(sae_of_dimensions(), batches, caption=caption, **options)


def test_activations_are_let_go_after_they_are_read(small_pieces):
    read, most = [], 0

    def batches():
        nonlocal most
        for batch in Planted(LENGTHS * 2).batches():
            read.append(weakref.ref(x := batch.activations["acts"].clone()))
            yield batch_of(x, batch.document, batch.position)
            most = max(most, sum(ref() is not None for ref in read))

    collect_rows(sae_of_dimensions(), batches(), CollectArguments(window=3), caption=caption)
    assert len(read) > 30 and most <= 4
