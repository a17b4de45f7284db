"""What evaluation.json has of a probing: one SAE's means beside its controls', always the last."""

import json

import pytest
import torch

from hfsae.cards import probing_facts, probing_section
from hfsae.evaluation import EvaluationResult
from hfsae.evaluation.metrics import Metric
from hfsae.evaluation.probing.extract import extract, json_safe, kept_extract
from hfsae.evaluation.untrained import Untrained
from hfsae.io.errors import Refused
from hfsae.models import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.runs import evaluation_text

from ..probed import CAUTION, WEAK, probing_record


def test_an_extract_has_one_sae_and_its_controls_without_tasks_and_letters():
    whole = probing_record("mine", ("other",))
    part = extract(whole)
    assert {(e["features"], e["of"]) for e in part["means"]} == {
        ("mine", ""),
        ("untrained", "mine"),
        ("model's dimensions", "layers.1"),
    }
    own, control = part["absorption"]["rows"]
    assert (own["features"], control["of"]) == ("mine", "mine")
    assert own["n_letters"] == 2 and "letters" not in own and "rows" not in part
    assert [*part["uniformity"]["saes"]] == ["mine"]
    assert probing_facts(part) == probing_facts(whole), "the card's facts are the same"


def test_what_is_no_number_is_none_in_json():
    record = probing_record()
    record["uniformity"]["saes"]["mine"]["mean"] = (float("nan"),) * 3
    part = extract(record)
    assert part["uniformity"]["saes"]["mine"]["mean"] == [None] * 3
    row = probing_facts(part)["measures"][-1]
    assert (row["title"], row["own"]) == ("uniformity of effects", "-")
    assert json_safe({"a": [float("inf"), 1.0, "x"]}) == {"a": [None, 1.0, "x"]}


def test_values_stand_beside_those_of_untrained_latents_with_what_they_cannot_tell():
    facts = probing_facts(probing_record())
    own, untrained = "0.500, 0.400 to 0.600", "0.050, -0.050 to 0.150"
    assert [(r["own"], r["untrained"]) for r in facts["measures"]] == [(own, untrained)] * 4
    assert [r["over"] for r in facts["measures"]] == ["2 letters"] * 3 + ["64 tokens"]
    about_absorption, about_uniformity = facts["notes"]
    assert CAUTION in about_absorption and "A more even SAE is not better" in about_uniformity


def test_a_probe_that_is_too_weak_leaves_a_sentence_in_place_of_figures():
    facts = probing_facts(extract(probing_record(is_weak=True)))
    assert [row["title"] for row in facts["measures"]] == ["uniformity of effects"]
    assert f"no figures, since {WEAK}." in facts["notes"][0]


def test_records_from_before_absorption_and_its_controls_are_still_read():
    older = probing_record()
    del older["absorption"], older["uniformity"]["saes"]["mine"]["untrained"]
    (row,) = probing_facts(extract(older))["measures"]
    assert row["untrained"] == "-"
    del older["uniformity"]
    facts = probing_facts(extract(older))
    assert facts["rows"] and not facts["measures"] and not facts["notes"]


@pytest.fixture
def folder(tmp_path):
    """An SAE's folder with a probing of its weights."""
    torch.manual_seed(0)
    JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1")).save_pretrained(tmp_path)
    (tmp_path / "probing.json").write_text(json.dumps(probing_record()))
    return tmp_path


@pytest.fixture(scope="module")
def result():
    metric = Metric(1.0, 0.5, 1.5, "1", 10, "made up", "made_up.v1")
    histogram = torch.arange(3.0), torch.tensor([1, 2])
    about = {"n_tokens": 10, "n_documents": 2, "seed": 0, "site": "a", "target_site": "a"}
    sizes = {"density": torch.zeros(8), "l0_histogram": torch.tensor([4, 6])}
    return EvaluationResult(
        {"fvu": metric}, density_histogram=histogram, mean_source="", **sizes, **about
    )


def test_an_evaluation_has_the_last_probing_and_another_evaluation_keeps_it(folder, result):
    first = evaluation_text(result, folder)
    assert json.loads(first)["probing"] == extract(probing_record())
    (folder / "evaluation.json").write_text(first)
    (folder / "probing.json").write_text(json.dumps(probing_record(value=0.6)))
    again = json.loads(evaluation_text(result, folder))
    assert again["probing"] == extract(probing_record(value=0.6))
    assert EvaluationResult.from_dict(again).to_dict() == result.to_dict()
    (folder / "probing.json").unlink()
    assert evaluation_text(result, folder) == first, "the evaluation's own, where nothing else is"
    assert probing_section(folder, json.loads(first)) == probing_facts(probing_record())


def test_without_a_probing_an_evaluation_is_as_it_was(folder, result):
    (folder / "probing.json").unlink()
    record = json.loads(evaluation_text(result, folder))
    assert "probing" not in record and probing_section(folder, record) == {}


def test_the_probing_of_other_weights_is_not_taken_over(folder, result):
    of_others = {"weights_sha256": "0" * 64}
    record = probing_record() | of_others
    (folder / "probing.json").write_text(json.dumps(record))
    evaluation = {"probing": extract(probing_record()), **of_others}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert kept_extract(folder) == {}
    assert "probing" not in json.loads(evaluation_text(result, folder))


def test_a_damaged_probing_is_left_out_of_an_evaluation_and_its_card_refused(
    folder, result, caplog
):
    (folder / "probing.json").write_text('{"means": 3}')
    assert "probing" not in json.loads(evaluation_text(result, folder))
    assert "probing.json gives no results of probing" in caplog.text
    with pytest.raises(Refused, match=r"probing\.json.*damaged"):
        probing_section(folder)


def test_untrained_latents_are_the_same_as_an_sae():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator) + 3
    densities = torch.tensor([0.0, 0.002, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
    untrained = Untrained(x, densities, seed=0)
    x = torch.randn(300, 4, generator=generator) + 3  # none of the values that are limits
    latents = untrained.encode(x)
    config = JumpReLUSAEConfig(d_in=4, d_sae=8, site="layers.1", token_norm="layer_norm")
    sae = untrained.as_sae(JumpReLUSAE(config))
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-4, rtol=1e-4)
    assert torch.equal(sae.W_dec, untrained.directions)
    wide = JumpReLUSAEConfig(d_in=4, d_out=6, d_sae=8, site="layers.1", target_site="layers.2")
    written = untrained.as_sae(JumpReLUSAE(wide)).W_dec
    torch.testing.assert_close(written.norm(dim=1), torch.ones(8))
    assert torch.equal(written, untrained.as_sae(JumpReLUSAE(wide)).W_dec), "seeded"
