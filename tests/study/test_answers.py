"""Answers on the disk: appended at once, undone, resumed, and checked against the plan."""

import json

import pytest
from studies.answers import Answer, checked, ledgers, open_ledger, rater_name
from studies.plan import Plan, Refused


@pytest.fixture
def plan(study) -> Plan:
    return Plan.load(study)


def first(plan: Plan, question: str):
    return next(item for item in plan.items if item.question == question)


def test_an_answer_is_in_the_file_when_add_returns_and_the_last_one_counts(study, plan):
    ledger, item = open_ledger(study, plan, "Ada"), first(plan, "meaning")
    ledger.add(Answer(item.id, "no", "a word", 3.5))
    (line,) = (study / "answers/ada.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= {"item": item.id, "answer": "no", "seconds": 3.5}.items()
    ledger.add(Answer(item.id, "yes"))
    again = open_ledger(study, plan, "ada")
    assert again.latest[item.id].answer == "yes" and len(again.given) == 2


def test_undo_restores_the_answer_before_and_survives_a_restart(study, plan):
    ledger, item = open_ledger(study, plan, "ada"), first(plan, "meaning")
    ledger.add(Answer(item.id, "no"))
    ledger.add(Answer(item.id, "yes"))
    assert ledger.undo() == item.id
    assert open_ledger(study, plan, "ada").latest[item.id].answer == "no"
    ledger.undo()
    assert ledger.undo() is None and not open_ledger(study, plan, "ada").given


def test_a_half_written_line_is_passed_over_and_the_next_answer_stands_on_its_own(study, plan):
    ledger, item = open_ledger(study, plan, "ada"), first(plan, "meaning")
    ledger.add(Answer(item.id, "no"))
    with ledger.path.open("a") as file:
        file.write('{"plan": "' + plan.hash[:16] + '", "item": "')
    again = open_ledger(study, plan, "ada")
    assert len(again.given) == 1
    again.add(Answer(item.id, "maybe"))
    assert [a.answer for a in open_ledger(study, plan, "ada").given] == ["no", "maybe"]


def test_answers_to_another_plan_are_refused(study, plan):
    open_ledger(study, plan, "ada").add(Answer(plan.items[0].id, "no"))
    path = study / "answers/ada.jsonl"
    path.write_text(path.read_text().replace(plan.hash[:16], "0" * 16))
    with pytest.raises(Refused, match=f"answers to plan '{'0' * 16}', and the study's is"):
        ledgers(study, plan)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "-x", "a" * 41, "é", "a b", "a\n"])
def test_a_name_that_could_not_be_a_files_is_refused(name):
    if name == "a\n":
        assert rater_name(name) == "a"
        return
    with pytest.raises(Refused, match="must be 1 to 40 letters"):
        rater_name(name)


@pytest.mark.parametrize(
    ("question", "answer"),
    [("meaning", 2), ("meaning", "Yes"), ("intruder", "yes"), ("intruder", 5), ("intruder", True)],
)
def test_an_answer_that_is_none_of_the_choices_is_refused(plan, question, answer):
    items = {item.id: item for item in plan.items}
    with pytest.raises(Refused, match="is not one of"):
        checked(Answer(first(plan, question).id, answer), items)
    with pytest.raises(Refused, match="is not in this study"):
        checked(Answer("nothing", "yes"), items)


def test_times_and_words_are_kept_within_bounds(plan):
    items, item = {i.id: i for i in plan.items}, first(plan, "meaning")
    answer = checked(Answer(item.id, None, " a\n b " + "c" * 400, float("nan")), items)
    assert answer.seconds == 0 and answer.words.startswith("a b c") and len(answer.words) == 300
