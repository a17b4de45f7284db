"""Probing of several seeds: one row an arm, paired over tasks."""

import pytest

from hfsae.evaluation.probing.report import arms_of, over_seeds, seeds_table
from hfsae.evaluation.statistics import Interval

NAMES = ["jumprelu/seed_0/l0_50", "jumprelu/seed_1/l0_50", "topk/seed_0/k_50", "topk/seed_1/k_50"]
AUCS = {"war": (0.9, 0.8, 0.6, 0.6), "sea": (0.7, 0.6, 0.7, 0.5)}


def mean(values) -> Interval:
    value = sum(values) / len(values)
    return Interval(value, min(values), max(values))


def entries():
    rows = [
        {"task": task, "features": name, "of": "", "k": 1, "auc": auc}
        for task, aucs in AUCS.items()
        for name, auc in zip(NAMES, aucs, strict=True)
    ]
    return over_seeds(rows, NAMES, mean)


def test_an_arm_is_its_name_without_the_seed():
    assert arms_of(NAMES) == {"jumprelu/l0_50": NAMES[:2], "topk/k_50": NAMES[2:]}
    assert arms_of(["mine", "other"]) == arms_of(NAMES[::2]) == {}
    assert arms_of(["seed_0", "seed_1"]) == {"SAE": ["seed_0", "seed_1"]}


def test_seeds_are_averaged_within_a_task_and_arms_paired_over_tasks():
    first, second = entries()
    assert first["auc"] == pytest.approx((0.75, 0.65, 0.85))
    assert first["above_first"] == (0, 0, 0) and first["seeds"] == pytest.approx([0.7, 0.8])
    assert second["above_first"] == pytest.approx((-0.15, -0.25, -0.05))
    assert second["n_seeds"] == 2 and second["seeds"] == pytest.approx([0.55, 0.65])


def test_the_table_has_arms_and_their_differences():
    lines = seeds_table(entries()).splitlines()
    assert lines[2].startswith("| jumprelu/l0_50 (2 seeds) | 0.750 [0.650, 0.850] (0.700-0.800)")
    assert lines[4].startswith("| topk/k_50 minus jumprelu/l0_50 | -0.150 [-0.250, -0.050]")
