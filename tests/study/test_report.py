"""A study's report: what answers planted in it must give."""

import csv
import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from studies.answers import Answer, ledgers, open_ledger
from studies.plan import Item, Plan, Refused
from studies.report import close, progress, write_report
from studies.results import Answers, rater_of, results_of, scores_of

from .conftest import WEIGHTS, a_plan, answer_all


def careful(item: Item) -> str | int:
    """Latents of the first SAE yes, of the second maybe or no; never fooled by a control."""
    if item.question == "intruder":
        return item.odd if item.sae == 0 else (item.odd + 1) % 5
    if item.kind == "direction":
        return "no"
    return "yes" if item.sae == 0 else ("maybe", "no")[item.latent % 2]


def careless(item: Item) -> str | int:
    return 0 if item.question == "intruder" else "yes"


@pytest.fixture
def rated(study):
    plan = Plan.load(study)
    for name in ("ada", "bob"):
        answer_all(study, plan, name, careful)
    answer_all(study, plan, "cy", careless)
    return study, plan


def test_planted_answers_come_back_as_means_differences_and_accuracies(rated):
    study, plan = rated
    answers = Answers(plan, ledgers(study, plan)).only(["ada", "bob"])
    results = results_of(answers, study)
    first, second, directions = results.saes
    assert (first.mean.value, second.mean.value, directions.mean.value) == (2, 0.5, 0)
    assert (first.n_latents, first.n_ratings, first.yes.value, second.yes.value) == (10, 20, 1, 0)
    assert (first.intruders.value, second.intruders.value) == (1, 0)
    ((difference, p),) = results.differences.values()
    assert difference.value.value == 1.5 and p == difference.p < 0.01
    assert results.agreement["Krippendorff's alpha, ordinal"].value == 1
    # ten pairs, in each of which the first SAE's latent is rated higher
    assert difference.signed_rank == pytest.approx(2 / 2**10)


def test_a_rater_is_described_by_controls_intruders_and_repeats(rated):
    study, plan = rated
    answers = Answers(plan, ledgers(study, plan))
    ada, cy = rater_of(answers, "ada"), rater_of(answers, "cy")
    assert ada.passes and (ada.controls.value, ada.control_mean, ada.repeats.value) == (1, 0, 1)
    assert ada.intruders.value == 0.5 and ada.seconds == 10
    assert not cy.passes and (cy.controls.value, cy.control_mean, cy.mean) == (0, 2, 2)


def test_a_rater_who_fails_controls_is_shown_with_and_without(rated):
    study, _ = rated
    close(study)
    text = write_report(study, about="Rated by a script")
    assert "## All raters, by SAE" in text and "## Without cy, by SAE" in text
    assert "**cy** rated most random directions yes." in text and "cy (fails)" in text
    assert text.startswith("# Ratings of latents\n\nRated by a script. 3 raters (ada, bob, cy)")
    assert (study / "report.html").read_text().count("<table>") == text.count("| --- |")


def by_chance(item: Item) -> str | int:
    """Controls no; three intruders of twelve, and repeats otherwise than before."""
    if item.question == "intruder":
        return item.odd if item.latent == 7000 else (item.odd + 1) % 5
    return {"direction": "no", "repeat": "maybe"}.get(item.kind, "yes")


def test_a_rater_fails_by_intruders_at_chance_and_by_repeats_that_differ(tmp_path):
    plan = a_plan(20, controls=0.1, repeats=0.2, intruders=0.3)
    plan.save(tmp_path)
    answer_all(tmp_path, plan, "ada", careful)
    answer_all(tmp_path, plan, "cy", by_chance)
    answers = Answers(plan, ledgers(tmp_path, plan))
    ada, cy = rater_of(answers, "ada"), rater_of(answers, "cy")
    assert ada.passes and cy.failures == ("intruders", "repeats")
    assert (cy.controls.value, cy.intruders.value, cy.repeats.value) == (1, 2 / 12, 0)
    close(tmp_path)
    text = write_report(tmp_path)
    assert "**cy** named intruders no more often than by chance. **cy** gave most repeated" in text
    assert "most random directions yes." not in text and "## Without cy, by SAE" in text


def test_four_intruders_or_repeats_are_too_few_to_judge_a_rater_by(tmp_path):
    plan = a_plan(10, controls=0.1, repeats=0.2, intruders=0.2)
    plan.save(tmp_path)
    answer_all(tmp_path, plan, "cy", by_chance)
    cy = rater_of(Answers(plan, ledgers(tmp_path, plan)), "cy")
    assert cy.passes and cy.repeats.value == 0


def test_raters_are_shown_with_their_correlation_with_the_others(rated):
    study, plan = rated
    answers = Answers(plan, ledgers(study, plan))
    assert rater_of(answers.only(["ada", "bob"]), "ada").with_others == pytest.approx(1)
    # with cy, who said yes to all, there is none
    assert rater_of(answers, "ada").with_others == pytest.approx(0.5)


def test_the_answers_are_rows_with_what_raters_could_not_see(rated):
    study, plan = rated
    close(study)
    write_report(study)
    rows = pq.read_table(study / "report.parquet").to_pylist()
    assert len(rows) == 3 * len(plan.items)
    own = [r for r in rows if r["rater"] == "ada" and r["kind"] == "latent"]
    assert {(r["sae"], r["rating"]) for r in own} == {
        ("jumping", 2),
        ("topping", 1),
        ("topping", 0),
    }
    with (study / "report.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_an_open_study_tells_how_far_raters_are_and_nothing_else(rated):
    study, plan = rated
    text = progress(study)
    assert f"{len(plan.items)} answered" in text and "jumping" not in text
    with pytest.raises(Refused, match="is open; `python -m studies close"):
        write_report(study)


def test_closing_needs_an_answer_and_happens_once(study):
    with pytest.raises(Refused, match="nobody has answered"):
        close(study)
    plan = Plan.load(study)
    open_ledger(study, plan, "ada").add(Answer(plan.items[0].id, "yes"))
    close(study)
    assert json.loads((study / "closed.json").read_text())["answers"] == {"ada": 1}
    with pytest.raises(Refused, match="closed already"):
        close(study)


def rewrite(path, *, without: int | None = None, answer: str | None = None) -> None:
    """Change the first "yes" of a rater's file, or take a line out."""
    lines = path.read_text().splitlines(keepends=True)
    if answer:
        number = next(i for i, line in enumerate(lines) if '"yes"' in line)
        lines[number] = lines[number].replace('"yes"', f'"{answer}"')
    path.write_text("".join(line for i, line in enumerate(lines) if i != without))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda home: rewrite(home / "ada.jsonl", answer="no"), "of ada were changed"),
        (lambda home: rewrite(home / "bob.jsonl", without=3), "of bob were changed"),
        (lambda home: (home / "cy.jsonl").unlink(), "of cy are missing"),
        (lambda home: shutil.copy(home / "ada.jsonl", home / "dan.jsonl"), "of dan were added"),
    ],
)
def test_a_report_needs_the_answers_that_were_there_when_the_study_was_closed(rated, change, what):
    study, _ = rated
    close(study)
    write_report(study)
    (study / "report.md").unlink()
    change(study / "answers")
    with pytest.raises(Refused, match=f"the answers {what} after .* was closed"):
        write_report(study)
    assert not (study / "report.md").exists()
    (study / "closed.json").unlink()
    close(study)
    write_report(study)


def test_a_changed_record_of_the_closing_is_refused_and_one_without_hashes_accepted(rated):
    study, _ = rated
    close(study)
    closed = json.loads((study / "closed.json").read_text())
    (study / "closed.json").write_text(json.dumps({**closed, "closed_at": "yesterday"}))
    with pytest.raises(Refused, match=r"closed\.json is damaged \(it was changed after"):
        write_report(study)
    names = ("plan_sha256", "closed_at", "answers")
    (study / "closed.json").write_text(json.dumps({name: closed[name] for name in names}))
    write_report(study)


def test_one_answer_of_one_rater_makes_a_report(study):
    plan = Plan.load(study)
    open_ledger(study, plan, "ada").add(Answer(plan.items[0].id, "yes", "<b>loud</b> | *words*"))
    close(study)
    text = write_report(study)
    assert "No two raters have rated the same items." in text and "<b>" not in text
    assert "<b>" not in (study / "report.html").read_text()


def explained(study, tmp_path, scores):
    """Folders of the study's SAEs, with a score for each latent."""
    folders = {}
    for number, sae in enumerate(Plan.load(study).saes):
        folder = tmp_path / sae["name"]
        (folder / "features").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        rows = [
            {"latent": 7000 + i, "pearson": scores(number, i), "density": 0.1} for i in range(10)
        ]
        table = pa.Table.from_pylist([row | {"shuffled_pearson": 0.0} for row in rows])
        pq.write_table(table, folder / "features/explanations.parquet")
        folders[sae["name"]] = str(folder)
    (study / "folders.json").write_text(json.dumps(folders))


def test_scores_of_explanations_stand_beside_ratings_without_their_controls(rated, tmp_path):
    study, plan = rated
    explained(study, tmp_path, lambda sae, i: 0.9 if sae == 0 else 0.4 - 0.4 * (i % 2))
    answers = Answers(plan, ledgers(study, plan)).only(["ada", "bob"])
    scores = results_of(answers, study).scores
    assert [(s.name, s.sae) for s in scores] == [
        ("pearson", "all")  # 10 latents of an SAE are too few for rows of their own
    ]
    assert scores[0].correlation.n == 20
    correlation = scores[0].correlation
    assert correlation.spearman.value == pytest.approx(1)
    assert (correlation.n_yes, correlation.n_no, correlation.auc.value) == (10, 5, 1)
    alone = results_of(answers.only(["ada"]), study).scores[0].correlation
    assert math.isnan(alone.corrected.value)
    close(study)
    assert "| 10 / 5 | 1.00 [0.72, 1.00] |" in write_report(study)


def test_a_correlation_that_cannot_be_corrected_for_raters_says_so(study, tmp_path):
    answer_all(study, Plan.load(study), "ada", careful)
    explained(study, tmp_path, lambda sae, i: i / 10)
    close(study)
    assert "| cannot be estimated |" in write_report(study)


def test_pairs_of_the_signed_rank_test_lie_in_one_block(study):
    latents = [
        [i for i in Plan.load(study).items if i.kind == "latent" and i.sae == s] for s in (0, 1)
    ]
    assert [a.block for a in latents[0]] == [b.block for b in latents[1]]


def test_scores_that_are_missing_are_named(rated):
    study, plan = rated
    assert [why for _, table, why in scores_of(plan, study)] == ["its folder is not here"] * 2
    close(study)
    assert "No scores: jumping: its folder is not here; topping" in write_report(study)


def test_one_sae_and_no_controls_make_a_report(tmp_path):
    plan = a_plan(6, ["alone"], controls=0.0, repeats=0.0, intruders=0.0)
    plan.save(tmp_path)
    answer_all(tmp_path, plan, "ada", careful)
    close(tmp_path)
    text = write_report(tmp_path)
    assert "differences" not in text.lower().partition("## raters")[0] and "| alone |" in text
