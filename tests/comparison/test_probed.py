"""The report's section on probing, from records made by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from comparisons.probed import Pair, ProbingSection, measures

from hfsae.comparison import Measured
from hfsae.evaluation.probing.extract import extract

from ..probed import CAUTION, WEAK, probing_record


def sae(arm, seed, l0, record) -> Measured:
    probing = extract(record) if record else {}
    name = f"target_l0_{l0}"
    return Measured(
        arm, seed, name, l0, Path(name), {"l0": float(l0)}, {}, {}, more={"probing": probing}
    )


def comparison(**fields):
    given = {"arms": ["a", "b"], "seeds": [0, 1, 2], "at_l0": [20.0], "reference_arm": "a"}
    return SimpleNamespace(title=lambda arm: arm.upper(), **given | fields)


def text_of(saes, **fields) -> str:
    section = ProbingSection(comparison(**fields), saes, n_resamples=200, seed=0)
    return "\n\n".join(section.all())


def cells(text, row) -> list[str]:
    """Of the first table that has the row."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def swept(arm, low, high):
    """L0s 10 and 40, whose logarithms 20 is in the middle of."""
    for seed in range(3):
        yield sae(arm, seed, 10, probing_record(value=low + 0.01 * seed))
        yield sae(arm, seed, 40, probing_record(value=high + 0.01 * seed))


def test_values_are_interpolated_at_equal_l0_beside_untrained_and_differences_are_paired():
    text = text_of([*swept("a", 0.3, 0.5), *swept("b", 0.1, 0.3)])
    assert "6 of" not in text and "12 of 12 SAEs were probed" in text
    assert cells(text, "A")[1:] == ["3", *["0.410 / 0.041"] * 5]
    assert cells(text, "B")[1:] == ["3", *["0.210 / 0.021"] * 5]
    assert cells(text, "B minus A")[1:] == ["3", *["**-0.200** (-0.200 to -0.200)"] * 5]
    assert text.count(CAUTION) == 1


def test_a_difference_of_one_seed_or_one_that_seeds_do_not_share_is_not_shown():
    one = [*swept("a", 0.3, 0.5), *swept("b", 0.1, 0.3)]
    of_one_seed = text_of([m for m in one if m.seed == 0], seeds=[0])
    assert cells(of_one_seed, "B minus A")[2] == "-0.200"
    noisy = [sae("b", s, 20, probing_record(value=v)) for s, v in enumerate((0.1, 0.5, 0.6))]
    assert "**" not in cells(text_of([*swept("a", 0.3, 0.5), *noisy]), "B minus A")[2]


def test_other_l0s_and_saes_that_were_not_probed_have_no_values():
    saes = [*swept("a", 0.3, 0.5), *(sae("b", s, 20, None) for s in range(3))]
    text = text_of(saes, at_l0=[20.0, 80.0])
    assert "6 of 9 SAEs" in text and "At an L0 of 20" in text and "At an L0 of 80" not in text
    assert "| B |" not in text
    assert text_of([sae("a", 0, 20, None)]) == ""


def test_no_line_joins_saes_that_are_not_neighbours_in_the_sweep():
    saes = [m for m in swept("a", 0.3, 0.5) if m.seed == 0] + [sae("a", 0, 15, None)]
    assert "At an L0 of" not in text_of(saes)


def test_saes_probed_on_other_tasks_are_left_out():
    other = probing_record()
    other["tasks"] = {"another": 100}
    text = text_of([*swept("a", 0.3, 0.5), sae("b", 0, 20, other)])
    assert "Left out: 1, probed with other settings." in text and "| B |" not in text


def test_a_probe_that_is_too_weak_is_told_with_its_saes():
    weak = [sae("b", s, 20, probing_record(is_weak=True)) for s in range(3)]
    text = text_of([*swept("a", 0.3, 0.5), *weak])
    assert cells(text, "B")[1:] == ["3", "0.500 / 0.050", "-", "-", "-", "0.500 / 0.050"]
    assert f"{WEAK}. (3 of 9 SAEs)" in text


def test_each_sae_stands_with_its_own_intervals():
    text = text_of([sae("a", 0, 20, probing_record())])
    row = cells(text.partition("### Each SAE")[2], "A")
    assert row[1:4] == ["target_l0_20", "0", "20"]
    assert row[4] == "0.450, 0.350 to 0.550"
    assert row[5:] == ["0.500, 0.400 to 0.600 / 0.050, -0.050 to 0.150"] * 4


def test_what_a_record_lacks_is_not_a_number():
    record = probing_record()
    del record["uniformity"]["saes"]["mine"]["untrained"], record["absorption"]
    pairs = measures(record)
    assert pairs["AUC, k = 1"] == Pair(0.5, pytest.approx(0.05))
    assert pairs["r_L0"].own == 0.5 and math.isnan(pairs["r_L0"].untrained)
    assert [*pairs] == ["AUC, k = 1", "r_L0"]
