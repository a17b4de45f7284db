"""The plan of a study: settled, hashed, balanced, and in an order of each rater's own."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from studies.plan import Item, Plan, Refused, StudyArguments

from .conftest import a_plan


def test_a_plan_is_the_same_after_saving_and_its_hash_stands_in_the_file(tmp_path):
    plan = a_plan()
    plan.save(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    assert Plan.load(tmp_path) == plan and content["plan_sha256"] == plan.hash
    other = a_plan()
    assert other.hash != plan.hash
    plan.items[3].density *= 2
    assert plan.hash != content["plan_sha256"]


def without_ids(plan: Plan) -> list[Item]:
    """The items, of which repeats name what they repeat by its place."""
    places = {item.id: str(place) for place, item in enumerate(plan.items)}
    repeats = [i.repeats and places[i.repeats] for i in plan.items]
    return [replace(i, id="", repeats=r) for i, r in zip(plan.items, repeats, strict=True)]


def test_one_seed_draws_the_same_items_and_no_id_can_be_computed_from_it():
    plans = [a_plan(30), a_plan(30)]
    assert without_ids(plans[0]) == without_ids(plans[1]) != without_ids(a_plan(30, repeats=0.2))
    one, other = ({item.id for item in plan.items} for plan in plans)
    assert one.isdisjoint(other) and len(one) == len(plans[0].items)
    assert one.isdisjoint(old_id(0, sae, number) for sae in (0, 1) for number in range(100))


def old_id(seed: int, sae: int, number: int) -> str:
    """As ids were made before they were drawn."""
    return hashlib.sha256(f"{seed} {sae} {number}".encode()).hexdigest()[:12]


def test_a_plan_whose_ids_come_from_the_seed_can_still_be_rated(tmp_path):
    plan = a_plan()
    names = {item.id: old_id(0, item.sae, n) for n, item in enumerate(plan.items)}
    for item in plan.items:
        item.id, item.repeats = names[item.id], item.repeats and names[item.repeats]
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan


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
