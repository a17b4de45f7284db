"""A comparison at several sites: a report for each, and the model of differences over all."""

import logging

import numpy as np
import pytest
from comparisons.across_sites import overall
from comparisons.experiment import Experiment, compare
from scipy import stats

from ..tiny import tiny_fields

SITES = ["layers.0", "layers.1.mlp"]


def comparison(folder, **fields) -> Experiment:
    given = tiny_fields(folder, collect_tokens=0)
    given["sae"] = {"d_sae": given["sae"]["d_sae"]}
    arms = {"jumprelu": {"title": "JumpReLU", "sweep": {"target_l0": [3, 6]}}}
    arms["topk"] = {"sae": {"model_type": "topk_sae"}, "sweep": {"k": [3, 6]}}
    arms["topk"]["training"] = {"warm_start_steps": 0}
    return Experiment(
        **{**given, "arms": arms, "seeds": [0, 1], "at_l0": [4.0, 5.0], "at_sites": SITES, **fields}
    )


def test_each_site_has_a_report_and_one_stands_above(tmp_path, loads):
    report = compare(comparison(tmp_path / "c"), command="compare x.yaml")
    text = (report / "report.md").read_text()
    assert "# 2 arms at 2 sites" in text and "8 SAEs" not in text and "16 SAEs" in text
    for site in SITES:
        assert f"[{site}]({site})" in text
        of_site = (report / site / "report.md").read_text()
        assert f"at `{site}`" in of_site and f"x.yaml --at_sites '[{site}]'" in of_site
        assert (tmp_path / "c" / site / "topk" / "seed_1" / "k_6" / "config.json").is_file()
    order = text.partition("## Order of the arms")[2].partition("\n## ")[0]
    assert "| JumpReLU |" in order and "| topk |" in order
    assert (report / "figures" / "sites.png").is_file() and (report / "report.html").is_file()

    loads.clear()  # what is there is not done again, and one site alone leaves the others' report
    again = compare(comparison(tmp_path / "c", at_sites=SITES[:1]), command="compare x.yaml")
    assert again == report / SITES[0] and not loads
    assert (report / "report.md").read_text() == text


def test_one_arm_alone_has_no_differences_and_a_report(tmp_path, loads):
    report = compare(comparison(tmp_path / "c", only=["topk"], seeds=[0]))
    text = (report / "report.md").read_text()
    assert "# topk at 2 sites" in text and "Silent latents" in text
    assert "## Over all sites" not in text and "sites.png" not in text


def test_every_site_is_checked_before_anything_is_trained(tmp_path, loads, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"layers\.7"):
        compare(comparison(tmp_path / "c", at_sites=[*SITES, "layers.7"]))
    assert not (tmp_path / "c").exists() and not loads


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"at_sites": ["layers.0", "layers.0"]}, r"repeats a site; give each once"),
        ({"sae": {"site": "layers.0", "d_sae": 8}}, r"sae\.site layers\.0; give one of them"),
    ],
)
def test_sites_that_contradict_are_refused(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        comparison(tmp_path / "c", **fields)


def test_the_model_over_sites_has_the_moments_of_a_one_way_layout():
    """Against scipy's F test, and its t test of the sites' means."""
    g = np.random.default_rng(0)
    areas = 0.1 + 0.05 * g.standard_normal((5, 1)) + 0.01 * g.standard_normal((5, 3))
    found, test = overall(areas), stats.ttest_1samp(areas.mean(axis=1), 0.0)
    assert found.value == pytest.approx(areas.mean())
    assert found.of_all == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p_of_all == pytest.approx(test.pvalue)
    of_these = stats.ttest_1samp(areas.mean(axis=0), 0.0)
    assert found.of_these == pytest.approx(tuple(of_these.confidence_interval(0.95)))
    assert found.p_of_these == pytest.approx(of_these.pvalue)
    f = stats.f_oneway(*areas).statistic  # = 1 + seeds * between^2 / within^2
    assert found.between**2 == pytest.approx((f - 1) * found.within**2 / 3)


def test_sites_that_do_not_differ_leave_nothing_between_them():
    areas = np.tile([0.1, 0.2, 0.3], (4, 1))
    found = overall(areas)
    assert found.between == 0 and found.within == pytest.approx(0.1)
    assert np.isnan(overall(areas[:, :1]).within), "one seed says nothing of seeds"
    assert np.isnan(overall(areas[:1]).value), "one site says nothing of sites"
