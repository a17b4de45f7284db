"""The plan of a study: settled, hashed, balanced, and in an order of each rater's own."""

import json
from collections import Counter
from itertools import pairwise

import pytest

from hfsae import Refused
from hfsae.study.plan import Plan, StudyArguments

from .conftest import a_plan


def test_a_plan_is_the_same_after_saving_and_its_hash_stands_in_the_file(tmp_path):
    plan = a_plan()
    plan.save(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    assert Plan.load(tmp_path) == plan and content["plan_sha256"] == plan.hash
    assert a_plan(seed=1).hash != plan.hash == a_plan().hash


def test_a_plan_that_was_changed_is_refused(tmp_path):
    a_plan().save(tmp_path)
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"latent": 7003', '"latent": 7004', 1))
    with pytest.raises(Refused, match="was changed after it was made"):
        Plan.load(tmp_path)
    with pytest.raises(Refused, match="no study in"):
        Plan.load(tmp_path / "elsewhere")


def test_shares_become_items_and_each_block_has_as_many_of_each_sae():
    plan = a_plan(30)
    assert Counter((i.sae, i.kind) for i in plan.items) == {
        (sae, kind): n
        for sae in (0, 1)
        for kind, n in {"latent": 30, "direction": 3, "repeat": 3, "intruder": 9}.items()
    }
    for block in range(plan.n_blocks):
        counts = Counter(i.sae for i in plan.items if i.block == block)
        assert counts[0] == counts[1] and 4 <= counts[0] <= 6


def test_each_rater_has_every_item_once_in_an_order_of_their_own_block_by_block():
    plan = a_plan(30)
    orders = [plan.order(name) for name in ("ada", "bob", "ada")]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert Counter(i.id for i in order) == Counter(i.id for i in plan.items)
        changes = sum(a.block != b.block for a, b in pairwise(order))
        assert changes == plan.n_blocks - 1


def test_a_repeat_is_the_same_windows_in_another_block_under_another_id():
    plan = a_plan(30)
    items = {item.id: item for item in plan.items}
    repeats = [item for item in plan.items if item.kind == "repeat"]
    assert len({item.repeats for item in repeats}) == 6
    for item in repeats:
        first = items[item.repeats]
        assert (first.windows, first.latent) == (item.windows, item.latent)
        assert first.block != item.block and first.id != item.id


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_latents": 1}, "n_latents is 1; it must be 2 or more"),
        ({"controls": 1.5}, "controls is 1.5; give a share of latents, from 0 to 1"),
        ({"min_density": 0.2}, "give shares of tokens, the smaller first"),
    ],
)
def test_arguments_that_make_no_study_are_refused(changes, sentence):
    with pytest.raises(Refused, match=sentence):
        StudyArguments(**changes)
