"""What others read: Neuronpedia's rows, by its tables, and circuit-tracer's page of a feature."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import hfsae
from hfsae.cli import main
from hfsae.features import FeatureStore, even_histogram, feature_page
from hfsae.hub import export_neuronpedia
from hfsae.packaged import SHIPPED_SAE

LAYER, MODEL = "12-hfsae-res-4096", "smollm2-135m-instruct"
TEXTS, NUMBERS, INTEGERS = (list, str), (list, float), (list, int)
# hijohnnylin/neuronpedia at ebb8426f, apps/webapp/prisma/schema.prisma: the columns that are
# written, by table, and after them what has neither a default nor "?" there.
KEY = {"modelId": str, "layer": str, "index": str}
BY = {"creatorId": str, "creatorName": str, "urls": TEXTS, "description": str, "visibility": str}
TABLES = {
    "release": BY | {"name": str},
    "model": {"id": str, "displayName": str, "displayNameShort": str, "creatorId": str}
    | {"visibility": str, "instruct": bool, "layers": int, "neuronsPerLayer": int, "owner": str},
    "sourceset": BY
    | {"modelId": str, "name": str, "releaseName": str, "allowInferenceSearch": bool},
    "source": {"id": str, "modelId": str, "setName": str, "creatorId": str, "visibility": str}
    | {"num_prompts": int, "num_tokens_in_prompt": int, "notes": str},
    "features": KEY
    | {"sourceSetName": str, "creatorId": str, "maxActApprox": float, "hasVector": bool}
    | {"topkCosSimIndices": INTEGERS, "topkCosSimValues": NUMBERS, "frac_nonzero": float}
    | {"pos_str": TEXTS, "pos_values": NUMBERS, "neg_str": TEXTS, "neg_values": NUMBERS}
    | {"freq_hist_data_bar_heights": NUMBERS, "freq_hist_data_bar_values": NUMBERS},
    "activations": KEY
    | {"id": str, "creatorId": str, "tokens": TEXTS, "values": NUMBERS, "maxValue": float}
    | {"maxValueTokenIndex": int, "minValue": float},
    "explanations": KEY | {"id": str, "description": str, "authorId": str},
}
REQUIRED = {
    "release": {"name", "description", "creatorName", "creatorId"},
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
    "sourceset": {"modelId", "name", "description", "creatorName", "creatorId"},
    "source": {"id", "modelId", "setName", "creatorId"},
    "features": {"modelId", "layer", "index"},
    "activations": {"id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex"}
    | {"minValue", "values", "creatorId"},
    "explanations": {"id", "modelId", "layer", "index", "description", "authorId"},
}


def fits(value: object, kind: type | tuple) -> bool:
    if isinstance(kind, tuple):
        return isinstance(value, list) and all(isinstance(v, kind[1]) for v in value)
    return type(value) is kind


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export_neuronpedia(SHIPPED_SAE, tmp_path_factory.mktemp("exports"))


def rows_of(home: Path, table: str) -> list[dict]:
    lines = []
    for path in sorted((home / table).glob("*.gz")) or [home / f"{table}.jsonl"]:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines += text.decode().splitlines()
    return [json.loads(line) for line in lines]


def test_rows_have_the_columns_and_types_of_neuronpedias_tables(exported):
    assert (exported.parent.name, exported.name) == (MODEL, LAYER)
    for table, columns in TABLES.items():
        assert columns.keys() >= REQUIRED[table]
        rows = rows_of(exported, table)
        assert rows
        for row in rows:
            assert row.keys() == columns.keys()  # the importer takes those of the first row
            wrong = [name for name, kind in columns.items() if not fits(row[name], kind)]
            assert not wrong, (table, wrong, row)
    (source,), (group,) = rows_of(exported, "source"), rows_of(exported, "sourceset")
    (model,), (release,) = rows_of(exported, "model"), rows_of(exported, "release")
    assert source["modelId"] == group["modelId"] == model["id"] == MODEL
    assert source["setName"] == group["name"] and group["releaseName"] == release["name"]


def test_rows_refer_to_features_and_hold_the_store(exported):
    store = FeatureStore.load(SHIPPED_SAE)
    features, examples = rows_of(exported, "features"), rows_of(exported, "activations")
    assert [row["index"] for row in features] == [str(i) for i in range(len(store))]
    assert len({row["id"] for row in examples}) == len(examples) == store.examples.count_rows()
    for row in examples:
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        assert len(row["tokens"]) == len(row["values"]) and {row["layer"]} == {LAYER}
    latent, row = store[7], features[7]
    assert dict(zip(row["pos_str"], row["pos_values"], strict=True)) == dict(latent.promoted)
    assert row["topkCosSimIndices"] == [7, *(i for i, _ in latent.neighbours)]
    assert sum(row["freq_hist_data_bar_heights"]) == pytest.approx(latent.n_firings, abs=0.1)
    said = {row["index"]: row["description"] for row in rows_of(exported, "explanations")}
    labels = json.loads((SHIPPED_SAE / "features" / "labels.json").read_text())["labels"]
    assert said.items() >= {i: text for i, text in labels.items() if text}.items()


def test_a_taken_folder_another_name_and_no_store_are_one_sentence(exported, tmp_path, capsys):
    source = str(SHIPPED_SAE)
    argv = ["export", source, "--to", "neuronpedia", "--output"]
    assert main([*argv, str(exported.parent.parent)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "new"), "--model_id", "A/B"]) == 2
    assert "model_id is 'A/B'" in capsys.readouterr().err and not (tmp_path / "new").exists()
    hfsae.load(source).save_pretrained(tmp_path / "bare")
    argv[1] = str(tmp_path / "bare")
    assert main([*argv, str(tmp_path / "new")]) == 2
    assert "no feature store; `hfsae collect" in capsys.readouterr().err


def test_a_page_has_circuit_tracers_fields_and_the_stores_numbers():
    """Fields and types of feature_models.py (decoderesearch/circuit-tracer at 4bb8c0ea)."""
    store = FeatureStore.load(SHIPPED_SAE)
    page, latent = feature_page(store, 7), store[7]
    kinds = {"transcoder_id": str, "index": int, "top_logits": TEXTS, "bottom_logits": TEXTS}
    kinds |= {"act_min": float, "act_max": float, "quantile_values": NUMBERS}
    kinds |= {"histogram": NUMBERS, "activation_frequency": float}
    assert page.keys() == {*kinds, "examples_quantiles"}
    assert all(fits(page[name], kind) for name, kind in kinds.items())
    examples = [e for group in page["examples_quantiles"] for e in group["examples"]]
    assert len(examples) == len(latent.examples) > 0
    for group in page["examples_quantiles"]:
        assert group.keys() == {"quantile_name", "examples"} and group["examples"]
    for example in examples:
        at = example["train_token_ind"]
        assert example["tokens_acts_list"][at] == max(example["tokens_acts_list"]) > 0
        assert len(example["tokens"]) == len(example["tokens_acts_list"])
    assert page["quantile_values"][-1] == pytest.approx(latent.max_activation, abs=1e-3)


def test_an_even_histogram_is_a_count_of_activations_spread_evenly_in_their_bins():
    """By hand: a point for each hundredth of a token of a bin, counted again."""
    latent = FeatureStore.load(SHIPPED_SAE)[7]
    edges, counts = [0.5, 1.0, 2.0, 4.0, 8.0], [3, 10, 20, 4]
    latent = latent._replace(histogram=counts, max_activation=6.0)
    spans = [(0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    points = np.concatenate(
        [
            low + (high - low) * (np.arange(100 * n) + 0.5) / (100 * n)
            for (low, high), n in zip(spans, counts, strict=True)
        ]
    )
    bars, percentiles = even_histogram(latent, edges)
    expected, _ = np.histogram(points, np.linspace(0, 6, len(bars) + 1))
    np.testing.assert_allclose(bars, expected / 100, atol=0.02)
    np.testing.assert_allclose(
        percentiles, np.quantile(points, np.linspace(0.01, 1, 100)), atol=0.02
    )
