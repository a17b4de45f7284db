"""Answers to SAEBench's question against the scores that its own code gave."""

import json
from pathlib import Path

import numpy as np
import pytest

from hfsae.explanations.explainers import Spelt
from hfsae.explanations.judges import Answer
from hfsae.explanations.scorers import SCORERS, Case
from hfsae.explanations.scorers.base import Sample
from hfsae.explanations.windows import Window

CASES = json.loads((Path(__file__).parent / "saebench_scores.json").read_text())
SPELT = Spelt([" a"], 0, Window(0, 1, 0, 1.0, "top"), (1.0,))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["answer"])
def test_answers_have_the_scores_that_saebenchs_own_code_gives(case):
    """What it makes of them, written by scripts/interop/write_saebench_scores.py."""
    scorer, n = SCORERS["saebench"](), len(case["active"])
    items = sorted(range(n), key=lambda at: not case["active"][at])  # active windows first
    n_active = sum(case["active"])
    sample = Sample(0, 0, [SPELT] * n_active, [SPELT] * (n - n_active), 0.5, [], np.ones(3))
    ours = Case(sample, "own", "a name")
    (question,) = scorer.requests(ours)
    named = scorer.parse(question, Answer(case["answer"]))
    assert named == case["named"]
    order = scorer._order(sample)  # number n of our prompt is item order[n - 1]
    place = {at: order.index(item) + 1 for item, at in enumerate(items)}
    reply = None if named is None else [place.get(at - 1, at) for at in named]
    metrics = scorer.score(sample, scorer.values(ours, [reply]))
    expected = float("nan") if case["score"] is None else case["score"]
    assert metrics["accuracy"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
