"""label_table and the files of labels: latents that were planted are found, and noise is not."""

import json
import logging

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from hfsae.activations import ActivationBatch
from hfsae.cards.sections import labels_section
from hfsae.features import LabelColumns, label_table, read_labels_table
from hfsae.io.errors import Refused
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig

D, N_ROWS = 40, 5


def sae_of_dimensions(d: int = D) -> JumpReLUSAE:
    """Latent i is dimension i where that is above 1."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=d, site="acts", initial_threshold=1.0))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d))
        sae.W_dec.copy_(torch.eye(d))
    return sae


def noise(n_documents: int, seed: int = 0, n_rows: int = N_ROWS) -> torch.Tensor:
    """[documents, rows, d], multiples of 1/64, so that sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_documents, n_rows, D, generator=generator)
    return (x * 64).round() / 64


def batches(x: torch.Tensor, size: int = 64) -> list[ActivationBatch]:
    n_documents, n_rows, d = x.shape
    document = torch.arange(n_documents).repeat_interleave(n_rows)
    position = torch.arange(n_rows).repeat(n_documents)
    parts = (field.split(size) for field in (x.reshape(-1, d), document, position))
    return [ActivationBatch({"acts": a}, d, p) for a, d, p in zip(*parts, strict=True)]


def latents_of(x: torch.Tensor) -> dict[str, np.ndarray]:
    latents = torch.where(x > 1, x, 0.0)
    return {"max": latents.double().amax(1).numpy(), "mean": latents.mean(1).double().numpy()}


def test_correlations_p_and_q_of_all_documents_are_scipys():
    x = noise(60)
    age = np.random.default_rng(0).normal(size=60).round(2)
    x[:, 0, 7] = torch.from_numpy(age).float() + 3
    (a,) = label_table(sae_of_dimensions(), batches(x), {"age": age}, n_resamples=20).associations
    for use, values in enumerate(latents_of(x).values()):
        for i in range(D):
            rho, p = stats.spearmanr(values[:, i], age)
            assert a.values[use, i] == pytest.approx(rho, abs=1e-12)
            assert a.p[use, i] == pytest.approx(p, abs=1e-12)
    expected = stats.false_discovery_control(a.p, axis=None).reshape(a.q.shape)
    np.testing.assert_allclose(a.q, expected)
    assert a.n_passing == (expected.min(0) < 0.05).sum() >= 1
    assert (a.measure, a.group, a.n, a.n_in) == ("spearman", None, 60, None)


def test_aucs_and_eta_squared_of_all_documents_are_those_of_their_definitions():
    x, kinds = noise(60), np.array(["cat", "dog", "eel"])[np.arange(60) % 3]
    table = label_table(sae_of_dimensions(), batches(x), {"kind": kinds}, n_resamples=20)
    assert [(a.measure, a.group) for a in table.associations] == [
        *(("auc", kind) for kind in ("cat", "dog", "eel")),
        ("eta_squared", None),
    ]
    for use, values in enumerate(latents_of(x).values()):
        for i in range(D):
            for a in table.associations[:3]:
                auc = roc_auc_score(kinds == a.group, values[:, i])
                assert a.values[use, i] == pytest.approx(auc, abs=1e-12)
            groups = [values[kinds == kind, i] for kind in ("cat", "dog", "eel")]
            f = stats.f_oneway(*groups).statistic  # of 2 and 57 degrees of freedom
            eta = f * 2 / (f * 2 + 57)
            assert table.associations[3].values[use, i] == pytest.approx(eta, abs=1e-9)


def test_a_planted_latent_is_found_with_its_use_and_its_sign():
    x, rng = noise(80), np.random.default_rng(1)
    is_defect, age = rng.random(80) < 0.4, rng.normal(size=80)
    x[torch.from_numpy(is_defect), 2, 11] = 6.0  # one row of many: the maximum shows it
    x[:, :, 20] = 3 - torch.from_numpy(age).float()[:, None]  # all rows
    labels = {"defect": is_defect, "age": age}
    table = label_table(sae_of_dimensions(), batches(x), labels, n_resamples=50)
    defect, eta, of_age = table.associations
    assert (defect.group, defect.n_in) == ("True", is_defect.sum())
    assert (defect.latent.index, defect.latent.use, defect.latent.sign) == (11, "max", 1)
    assert defect.latent.value == defect.raw.value == 1.0
    assert (defect.latent.low, defect.latent.high) == (1, 1)
    assert eta.latent.index == 11 and eta.latent.value > 0.9
    assert (of_age.latent.index, of_age.latent.sign) == (20, -1)
    assert of_age.latent.low <= of_age.latent.value < -0.95
    assert of_age.q[:, 20].max() < 1e-6
    assert of_age.raw.index == 20 and len(of_age.others) == 4


def test_a_class_in_which_a_latent_is_low_has_its_auc_of_the_negative():
    x = noise(60)
    is_in = np.arange(60) % 3 == 0
    x[:, :, 5] = torch.from_numpy(np.where(is_in, 0.0, 4.0)).float()[:, None]
    first, _ = label_table(
        sae_of_dimensions(), batches(x), {"dark": is_in}, n_resamples=20
    ).associations
    assert (first.latent.index, first.latent.sign, first.latent.value) == (5, -1, 1.0)
    assert first.values[0, 5] == 0.0


def test_the_held_out_half_has_no_part_in_the_choice():
    x, age = noise(40), np.random.default_rng(2).normal(size=40)
    arguments = {"n_resamples": 20, "seed": 3}
    (before,) = label_table(sae_of_dimensions(), batches(x), {"age": age}, **arguments).associations
    held_out = held_out_documents(40, seed=3)
    assert before.n_held_out == len(held_out) == 20
    changed = x.clone()
    changed[held_out] = noise(40, seed=9)[held_out]
    (after,) = label_table(
        sae_of_dimensions(), batches(changed), {"age": age}, **arguments
    ).associations
    for one, other in ((before.latent, after.latent), (before.raw, after.raw)):
        assert (one.index, one.use, one.sign, one.chosen) == (
            other.index,
            other.use,
            other.sign,
            other.chosen,
        )
        assert one.value != other.value
    values = latents_of(x)[before.latent.use][:, before.latent.index]
    rho = stats.spearmanr(values[held_out], age[held_out]).statistic
    assert before.latent.value == pytest.approx(rho, abs=1e-12)
    choosing = np.setdiff1d(np.arange(40), held_out)
    best = max(
        abs(stats.spearmanr(v[choosing, i], age[choosing]).statistic)
        for v in latents_of(x).values()
        for i in range(D)
    )
    assert abs(before.latent.chosen) == pytest.approx(best, abs=1e-12)


def held_out_documents(n: int, seed: int) -> np.ndarray:
    """The documents without which nothing of the table's held-out numbers is left, found by what
    changes: one label is moved at a time."""
    x, age = noise(n), np.arange(n, dtype=float)

    def chosen(labels):
        (a,) = label_table(
            sae_of_dimensions(), batches(x), {"age": labels}, seed=seed, n_resamples=1
        ).associations
        return a.latent.chosen, a.raw.chosen

    before, held_out = chosen(age), []
    for document in range(n):
        moved = age.copy()
        moved[document] = n + 5.0 if document < n / 2 else -5.0
        if chosen(moved) == before:
            held_out.append(document)
    return np.array(held_out)


def test_on_noise_hardly_any_latent_passes_and_the_best_is_no_better_than_chance():
    passing, aucs, flattered = [], [], []
    for seed in range(12):
        x, rng = noise(100, seed, n_rows=2), np.random.default_rng(seed)
        labels = {"age": rng.normal(size=100), "ill": rng.random(100) < 0.5}
        table = label_table(sae_of_dimensions(), batches(x), labels, seed=seed, n_resamples=5)
        passing.append(table.associations[0].n_passing / D)
        aucs.append(table.associations[1].latent.value)
        flattered.append(table.associations[1].latent.chosen)
    assert np.mean(passing) <= 0.05
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.06)  # 12 of standard deviation .08
    assert min(flattered) > 0.6


def test_where_each_document_is_one_row_its_value_is_used():
    x = noise(40, n_rows=1)
    digits = np.arange(40) % 4
    x[:, 0, 3] = torch.from_numpy(np.where(digits == 2, 4.0, 0.0)).float()
    table = label_table(sae_of_dimensions(), batches(x), {"digit": digits}, n_resamples=20)
    assert table.uses == ["value"]
    two = next(a for a in table.associations if a.group == "2")
    assert (two.latent.index, two.latent.use, two.latent.value) == (3, "value", 1.0)


def test_labels_of_rows_are_compared_with_rows(tmp_path):
    x = noise(20)
    is_marked = np.random.default_rng(0).random(100) < 0.3
    x.view(100, D)[torch.from_numpy(is_marked), 9] = 5.0
    documents = np.arange(20).repeat(N_ROWS)
    path = tmp_path / "rows.csv"
    path.write_text("marked\n" + "".join(f"{m}\n".lower() for m in is_marked))
    labels = read_labels_table(path, documents)
    table = label_table(sae_of_dimensions(), batches(x, 7), labels, n_resamples=20)
    assert (table.by, table.n_units, table.n_documents, table.uses) == ("row", 100, 20, ["value"])
    first = table.associations[0]
    assert (first.latent.index, first.latent.value) == (9, 1.0)
    expected = roc_auc_score(is_marked, torch.where(x > 1, x, 0.0).view(100, D)[:, 4])
    assert first.values[0, 4] == pytest.approx(expected, abs=1e-12)


def test_rows_and_documents_without_labels_are_left_out():
    x = noise(60)
    age = np.random.default_rng(3).normal(size=60)
    given = {i: age[i] for i in range(0, 60, 2)}
    half = [ActivationBatch(b.activations, b.document, None) for b in batches(x)]
    (a,) = label_table(sae_of_dimensions(), half, {"age": given}, n_resamples=5).associations
    assert a.n == 30
    rho = stats.spearmanr(latents_of(x)["mean"][::2, 8], age[::2]).statistic
    assert a.values[1, 8] == pytest.approx(rho, abs=1e-12)
    missing = np.where(np.arange(60) % 3 == 0, np.nan, age)
    (b,) = label_table(sae_of_dimensions(), half, {"age": missing}, n_resamples=5).associations
    assert b.n == 40


def test_batches_and_blocks_of_variables_change_nothing(monkeypatch):
    x, age = noise(60), np.random.default_rng(4).normal(size=60)
    kinds = np.arange(60) % 3
    labels = {"age": age, "kind": kinds}
    whole = label_table(sae_of_dimensions(), batches(x), labels, n_resamples=20)
    monkeypatch.setattr("hfsae.features.columns._AT_ONCE", 60 * 3)
    pieces = label_table(sae_of_dimensions(), batches(x, 11), labels, n_resamples=20)
    assert pieces.to_dict() == whole.to_dict()
    for one, other in zip(whole.associations, pieces.associations, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


def test_of_more_units_than_memory_holds_a_random_part_is_used(monkeypatch, caplog):
    x, age = noise(200, n_rows=2), np.random.default_rng(5).normal(size=200)
    monkeypatch.setattr("hfsae.features.columns._MOST", 2 * D * 50)
    with caplog.at_level(logging.WARNING):
        table = label_table(sae_of_dimensions(), batches(x, 16), {"age": age}, n_resamples=5)
    assert 10 < table.n_units <= 50 and table.share in (0.5, 0.25, 0.125)
    assert f"a random share of {100 * table.share:.1f} % is used" in caplog.text
    again = label_table(sae_of_dimensions(), batches(x, 100), {"age": age}, n_resamples=5)
    np.testing.assert_array_equal(again.associations[0].values, table.associations[0].values)
    assert "a random" in table.table()


def test_the_table_is_markdown_and_the_dict_is_json():
    x, rng = noise(80), np.random.default_rng(1)
    is_defect, age = np.arange(80) % 4 == 0, rng.normal(size=80)
    x[torch.from_numpy(is_defect), 2, 11] = 6.0
    x[:, :, 20] = 3 - torch.from_numpy(age).float()[:, None]
    hostile = "<img src=x onerror=alert(1)> [a](b)"
    labels = {"defect|": np.where(is_defect, hostile, "no"), "age": age}
    table = label_table(sae_of_dimensions(), batches(x), labels, n_resamples=20)
    lines = table.table().splitlines()
    assert lines[0].startswith(
        "| column | measure | latent | held out | raw dimension | held out |"
    )
    shown = r"\<img src=x onerror=alert(1)\> \[a\](b)"
    assert lines[2].startswith(f"| defect\\| | AUC of {shown} | 11 max | 1.00 (1.00 to 1.00) |")
    assert lines[3].startswith("| defect\\| | eta squared | 11 max |")
    assert lines[4].startswith("| age | Spearman | 20 ") and "\\* | -" in lines[4]
    assert lines[6].startswith("Latents, their use and sign are chosen on one half of 80 documents")
    n_passing = table.associations[2].n_passing
    assert lines[6].endswith(f"all documents): {n_passing} of 40 latents for age.")
    read = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert read["associations"][0]["latent"]["index"] == 11
    assert read["associations"][0]["others"][0]["low"] is None
    assert read["associations"][2]["n_passing"] == n_passing


def test_too_few_documents_and_uneven_columns_are_refused():
    x = noise(6)
    with pytest.raises(Refused, match=r"6 documents with labels were read; .* of 8 or more"):
        label_table(sae_of_dimensions(), batches(x), {"age": [1.5, 2, 3, 4, 5, 6]})
    with pytest.raises(Refused, match=r"differ in length \(a 2, b 3\)"):
        label_table(sae_of_dimensions(), batches(x), {"a": [1, 2], "b": [1, 2, 3]})
    with pytest.raises(Refused, match=r"too few labels \(column 'k' is left out: no class has 2"):
        rare = ["x"] * 39 + ["y"]
        label_table(sae_of_dimensions(), batches(noise(40)), {"k": rare})


@pytest.mark.parametrize("n, is_told", [(17, True), (80, False)])
def test_a_table_from_few_documents_tells_how_to_get_more(tmp_path, caplog, n, is_told):
    labels = {"age": np.random.default_rng(0).normal(size=n)}
    table = label_table(sae_of_dimensions(), batches(noise(n)), labels, n_resamples=5)
    (tmp_path / "features").mkdir()
    (tmp_path / "features/columns.json").write_text(json.dumps(table.to_dict()))
    facts = labels_section(tmp_path)
    assert facts["n_documents"] == n
    for text in (table.table(), facts["few"], caplog.text):
        assert (
            f"{n} documents are too few to tell which latents go with a label" in text
        ) == is_told
        assert ("hold out more of them (held_out_fraction)" in text) == is_told


def test_labels_of_rows_need_positions():
    x = noise(10)
    without = [ActivationBatch(b.activations, b.document, None) for b in batches(x)]
    numbers = np.arange(10).repeat(N_ROWS)
    labels = LabelColumns({"k": list(range(50))}, numbers, np.tile(np.arange(N_ROWS), 10))
    with pytest.raises(Refused, match="labels are those of rows, but the activations come without"):
        label_table(sae_of_dimensions(), without, labels)
