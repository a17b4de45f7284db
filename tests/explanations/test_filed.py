"""A judge that is asked by file: the same scores as by a server, whatever order answers come in."""

import html
import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from hfsae.cli import main
from hfsae.demo import Choice, open_subject
from hfsae.demo.health_actions import health
from hfsae.demo.inspect_actions import feature
from hfsae.demo.pages.health import overview_panel
from hfsae.explanations import study as study_module
from hfsae.explanations.explainers import lm_explainer
from hfsae.explanations.judges import (
    BatchFileJudge,
    JudgeArguments,
    PendingAnswers,
    Question,
    Remote,
    judge_of,
)
from hfsae.explanations.prompts import list_question
from hfsae.explanations.study import explain
from hfsae.explanations.verdicts import ScoreArguments, ScoringRequest
from hfsae.explanations.windows import ExplainArguments, StudyFile, select
from hfsae.features import FeatureStore, read_names
from hfsae.io.errors import Refused
from hfsae.runs import limits_of, load_lm_for, of_run
from hfsae.runs.stage_explain import shuffled_weights

from .. import forked
from ..helpers import refused
from .conftest import read_planted, verb
from .loopback_judge import LoopbackJudge
from .oracle import WORD, Oracle, by_oracle

LATENTS = [*range(14, 20)]
ARGS = ExplainArguments(latents=LATENTS)
SCORES = ScoreArguments(("detection", "intruder"), directions=2)
CHAT = "/v1/chat/completions"


class _Handler:
    """Takes what a server would send."""

    def complete(self, body, text, stop="stop", **more):
        message = {"role": "assistant", "content": text, **more}
        choice = {"index": 0, "message": message, "finish_reason": stop}
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        self.sent = {"id": "1", "choices": [choice], "usage": usage}


def lines_of(folder: Path) -> list[dict]:
    """All requests of a folder."""
    paths = sorted(folder.glob("requests-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def answered(requests, answer=by_oracle) -> list[dict]:
    """Lines as OpenAI's output file has them."""
    lines = []
    for request in requests:
        assert (request["method"], request["url"]) == ("POST", CHAT)
        handler = _Handler()
        answer(handler, request["body"])
        response = {"status_code": 200, "request_id": "r", "body": handler.sent}
        named = {"id": "batch_req_1", "custom_id": request["custom_id"]}
        lines.append({**named, "response": response, "error": None})
    return lines


def written(path: Path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def studied(planted, judge, asked=SCORES):
    inquiry = ScoringRequest(asked, judge)
    explainer, tokenizer = lm_explainer(judge), planted.tokenizer
    rows = planted.batches(32)
    return explain(
        planted.lm,
        planted.sae,
        rows,
        ARGS,
        explainer=explainer,
        source="lm",
        tokenizer=tokenizer,
        inquiry=inquiry,
    )


def by_file(planted, folder, shape=lambda lines: lines, asked=SCORES):
    """A study by file, round by round, and the numbers of requests of each round."""
    n_asked: list[int] = []
    answers: list[str] = []
    for number in range(30):
        args = JudgeArguments(model="m", requests=str(folder / "asked"), answers=answers)
        try:
            return studied(planted, judge_of(args, folder / "calls.jsonl"), asked), n_asked
        except PendingAnswers as waits:
            (path,) = (p for p in (folder / "asked").iterdir() if p.name in str(waits))
            requests = [json.loads(line) for line in path.read_text().splitlines()]
            n_asked.append(len(requests))
            answers.append(written(folder / f"back-{number}.jsonl", shape(answered(requests))))
    raise AssertionError("it does not end")


@pytest.fixture(scope="module")
def by_server(planted):
    with LoopbackJudge() as server:
        server.always = by_oracle
        yield studied(planted, Remote(JudgeArguments(model="m", base_url=server.url)))


def comparable(study):
    record = {k: v for k, v in study.record.items() if k != "usage"}
    return str(study.rows), str(record), str(study.directions)


def test_names_then_scores_by_file_are_those_of_a_server_to_the_bit(planted, by_server, tmp_path):
    study, n_asked = by_file(planted, tmp_path)
    assert len(n_asked) == 2, "names first, then the scores that need them"
    assert n_asked[0] == len(LATENTS) + SCORES.directions
    assert comparable(study) == comparable(by_server)
    assert len({row["explanation"] for row in study.rows}) == len(LATENTS)
    assert {row["detection_n_failed"] for row in study.rows} == {0}


def test_order_repeats_and_other_runs_lines_change_nothing(planted, by_server, tmp_path):
    def shaken(lines):
        other = {**lines[0], "custom_id": "another-run-17"}
        error = {**lines[1], "response": None, "error": {"code": "x", "message": "lost"}}
        lines = [*lines, *lines[:9], other, error]
        random.Random(0).shuffle(lines)
        return lines

    study, n_asked = by_file(planted, tmp_path, shaken)
    assert len(n_asked) == 2 and comparable(study) == comparable(by_server)


def test_what_is_missing_is_asked_again_alone(planted, by_server, tmp_path):
    study, n_asked = by_file(planted, tmp_path, lambda lines: lines[: len(lines) // 2 + 1])
    assert n_asked[:4] == [8, 3, 1, n_asked[3]] and len(n_asked) > 5
    assert comparable(study) == comparable(by_server)


def test_an_answer_that_fits_no_schema_is_asked_for_once_more(planted, tmp_path):
    def spoilt(lines):
        if len(lines) > 20:
            lines[0]["response"]["body"]["choices"][0]["message"]["content"] = "maybe"
        return lines

    study, n_asked = by_file(planted, tmp_path, spoilt)
    assert n_asked[2:] == [1] and all(row["detection_n_failed"] == 0 for row in study.rows)


def test_a_detection_request_is_one_for_a_latent_and_its_control(planted, tmp_path):
    by_file(planted, tmp_path)
    requests = lines_of(tmp_path / "asked")
    asked = [r["body"] for r in requests if "Description" in r["body"]["messages"][-1]["content"]]
    assert len(asked) == 2 * len(LATENTS) + SCORES.directions, "any text gets one grade for all"
    for body in asked:
        assert body["messages"][-1]["content"].count("\nText ") == SCORES.windows
        assert "0, surely not; 5, as likely as not; 10, surely" in body["messages"][0]["content"]
        schema = body["response_format"]["json_schema"]["schema"]["properties"]["grades"]
        assert schema["minItems"] == schema["maxItems"] == SCORES.windows
        assert schema["items"] == {"type": "integer", "minimum": 0, "maximum": 10}
        assert (body["model"], body["temperature"]) == ("m", 0)


def test_the_protocol_of_the_paper_goes_by_file_too(planted, tmp_path):
    asked = ScoreArguments((), "paper", directions=2)
    with LoopbackJudge() as server:
        server.always = by_oracle
        sound = studied(planted, Remote(JudgeArguments(model="m", base_url=server.url)), asked)
    study, n_asked = by_file(planted, tmp_path, asked=asked)
    assert len(n_asked) == 2 and comparable(study) == comparable(sound)


def test_detection_by_file_is_what_scikit_learn_makes_of_the_grades(planted, tmp_path):
    """From the answers' files alone: AUC of the grades, with ties as one half, and balanced
    accuracy of those above 5, against where the latent fires."""
    rng = random.Random(1)

    def guessing(lines):
        for line in lines:
            message = line["response"]["body"]["choices"][0]["message"]
            if message["content"].startswith('{"grades"'):
                grades = [rng.choice((0, 4, 5, 6, 9)) for _ in range(12)]
                message["content"] = json.dumps({"grades": grades})
        return lines

    study, _ = by_file(planted, tmp_path, guessing)
    answers = {
        line["custom_id"]: json.loads(line["response"]["body"]["choices"][0]["message"]["content"])
        for path in tmp_path.glob("back-*.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
    }
    for row in study.rows:
        word, name = f"w{row['latent'] - 12}", row["explanation"]
        found = []
        for request in lines_of(tmp_path / "asked"):
            first, *texts = request["body"]["messages"][-1]["content"].split("\n")
            truth = [word in WORD.findall(text) for text in texts]
            if first == f'Description: "{name}"' and sum(truth) == 6:
                found.append((truth, answers[request["custom_id"]]["grades"]))
        ((truth, grades),) = found
        is_yes = [grade > 5 for grade in grades]
        assert row["detection_auc"] == pytest.approx(roc_auc_score(truth, grades))
        balanced = balanced_accuracy_score(truth, is_yes)
        assert row["detection_balanced_accuracy"] == pytest.approx(balanced)
    assert any(r["detection_auc"] != r["detection_balanced_accuracy"] for r in study.rows)


def _read_for_ever(folder: Path) -> None:
    """Answers are read, one after the other, until the process is killed."""
    ids = [line["custom_id"] for line in lines_of(folder / "asked")]
    back = written(folder / "back.jsonl", [of_openai(key, key[:4]) for key in ids])
    asking = judge(folder, back)
    for question in ASKED:
        asking.answer([question])
        (folder / "one").touch()
        time.sleep(60 if question is ASKED[1] else 0)


def test_a_process_killed_between_rounds_has_kept_what_it_read(tmp_path):
    ids = keys(tmp_path)
    child = forked.start(_read_for_ever, tmp_path)
    calls = tmp_path / "calls.jsonl"
    while not calls.exists() or calls.read_bytes().count(b"\n") < 2:
        assert child.is_alive()
        time.sleep(0.01)  # leave the processor to the child
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    asking = judge(tmp_path)
    answers = asking.answer(ASKED)
    assert [answer.text for answer in answers] == [ids[0][:4], ids[1][:4], None]
    with pytest.raises(PendingAnswers, match="1 request waits"):
        asking.settle("names")


ASKED = [Question((("user", f"prompt {i}"),), 20, {"type": "object"}) for i in range(3)]


def judge(folder: Path, *answers, **more) -> BatchFileJudge:
    args = {"model": "m", "requests": str(folder / "asked"), "answers": answers, **more}
    return BatchFileJudge(JudgeArguments(**args), folder / "calls.jsonl")


def completion(text, **choice):
    """A body as OpenAI's reference has it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1711652795,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                **choice,
            }
        ],
        "usage": {"prompt_tokens": 22, "completion_tokens": 2, "total_tokens": 24},
        "system_fingerprint": "fp_1",
    }


def of_openai(key, text):
    response = {"status_code": 200, "request_id": "req_1", "body": completion(text)}
    return {"id": "batch_req_1", "custom_id": key, "response": response, "error": None}


def of_openai_failed(key, text):
    told = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    response = {"status_code": 500, "request_id": "req_2", "body": {"error": told}}
    return {"id": "batch_req_2", "custom_id": key, "response": response, "error": None}


def of_openai_expired(key, text):
    error = {"code": "batch_expired", "message": text}
    return {"id": "batch_req_3", "custom_id": key, "response": None, "error": error}


def of_vllm(key, text):
    response = {"status_code": 200, "request_id": "vllm-batch-1", "body": completion(text)}
    return {"id": "vllm-1", "custom_id": key, "response": response, "error": None}


def of_vllm_failed(key, text):
    told = {"object": "error", "message": text, "type": "BadRequestError", "code": 500}
    response = {"status_code": 500, "request_id": "vllm-batch-2", "body": None}
    return {"id": "vllm-2", "custom_id": key, "response": response, "error": {"error": told}}


def of_together(key, text):
    return {"custom_id": key, "response": {"status_code": 200, "body": completion(text)}}


def keys(folder: Path) -> list[str]:
    """The ids of `ASKED`, which are written as requests."""
    with pytest.raises(PendingAnswers, match="3 requests wait for m to answer, for names"):
        asking = judge(folder)
        asking.answer(ASKED)
        asking.settle("names")
    return [line["custom_id"] for line in lines_of(folder / "asked")]


@pytest.mark.parametrize("shape", [of_openai, of_vllm, of_together])
def test_answers_have_the_shapes_that_services_document(tmp_path, shape):
    ids = keys(tmp_path)
    back = written(tmp_path / "back.jsonl", [shape(key, f"{key[:4]}") for key in ids])
    asking = judge(tmp_path, back)
    assert [answer.text for answer in asking.answer(ASKED)] == [key[:4] for key in ids]
    asking.settle("names")
    assert (asking.usage.n_calls, asking.usage.n_tokens_in, asking.usage.n_tokens_out) == (3, 66, 6)
    again = judge(tmp_path)
    assert [answer.text for answer in again.answer(ASKED)] == [key[:4] for key in ids]
    assert (again.usage.n_calls, again.usage.n_repeated) == (0, 3), "kept in calls.jsonl"


@pytest.mark.parametrize("shape", [of_openai_failed, of_openai_expired, of_vllm_failed])
def test_an_error_is_asked_again_and_counts_as_failed_after_three_times(tmp_path, shape):
    ids = keys(tmp_path)
    sound = written(tmp_path / "back.jsonl", [of_openai(key, "yes") for key in ids[1:]])
    lines = [{**shape(ids[0], "out of luck"), "id": f"batch_{n}"} for n in range(3)]
    twice = written(tmp_path / "twice.jsonl", [*lines[:2], lines[0]])
    asking = judge(tmp_path / "other", sound, twice)
    asking.answer(ASKED)
    with pytest.raises(
        PendingAnswers, match=rf"1 request waits .*\(1 came back .*{ids[0]} \(.*luck"
    ):
        asking.settle("names")
    errors = written(tmp_path / "errors.jsonl", lines)
    asking = judge(tmp_path, sound, errors)
    first, *others = asking.answer(ASKED)
    assert first.text is None and "out of luck" in first.failure
    assert [answer.text for answer in others] == ["yes", "yes"] and asking.usage.n_failed == 1
    (note,) = asking.notes()
    assert note.startswith(f"requests that count as failed (1): {ids[0]} (")
    asking.settle("names")  # without its file it is asked again
    asking = judge(tmp_path, sound)
    asking.answer(ASKED)
    with pytest.raises(PendingAnswers, match="1 request waits"):
        asking.settle("names")


GRADED = list_question("Grade each text.", ("texts", [1]), "Text 1: ...", "grades", 3, 10)


@pytest.mark.parametrize(
    "text, why",
    [
        ('{"grades": [1, 2]}', '"grades" is to have 3 whole numbers, 0 to 10, and has 2'),
        ('{"grades": [1, 2, 11]}', "and has '11'"),
        ("all of them", "and is no list"),
        ("", "an empty answer"),
    ],
)
def test_an_answer_that_cannot_be_read_is_told_with_its_id_and_gives_way_to_one_that_can(
    tmp_path, text, why
):
    asking = judge(tmp_path)
    asking.answer([GRADED])
    with pytest.raises(PendingAnswers):
        asking.settle("detection")
    (request,) = lines_of(tmp_path / "asked")
    key = request["custom_id"]
    lines = [of_openai(key, text) | {"id": f"batch_{n}"} for n in range(3)]
    bad = written(tmp_path / "bad.jsonl", [lines[0], of_openai("7", "another run's")])
    asking = judge(tmp_path, bad)
    assert asking.answer([GRADED])[0].text is None and asking.usage.n_failed == 0
    assert [*asking.notes()] == ["answers that belong to no request here (1): 7"]
    with pytest.raises(PendingAnswers) as waits:
        asking.settle("detection")
    assert f"(1 came back without an answer that can be read: {key} (" in str(waits.value)
    assert why in str(waits.value) and len(lines_of(tmp_path / "asked")) == 1, "the same request"
    mended = written(tmp_path / "mended.jsonl", [of_openai(key, '{"grades": [1, 2, 3]}')])
    assert (
        judge(tmp_path / "other", bad, mended).answer([GRADED])[0].text == '{"grades": [1, 2, 3]}'
    )
    thrice = judge(tmp_path, written(tmp_path / "thrice.jsonl", lines))
    assert why in str(thrice.answer([GRADED])[0].failure) and thrice.usage.n_failed == 1
    assert next(thrice.notes()).startswith(f"requests that count as failed (1): {key} (")
    assert judge(tmp_path, mended).answer([GRADED])[0].text == '{"grades": [1, 2, 3]}'


def test_what_a_service_does_not_take_is_left_out_of_the_next_file(tmp_path):
    ids = keys(tmp_path)
    refusal = of_openai_failed(ids[0], "Unsupported parameter: 'max_tokens'")
    refusal["response"]["status_code"] = 400
    others = [{**refusal, "custom_id": key} for key in ids[1:]]
    asking = judge(tmp_path, written(tmp_path / "errors.jsonl", [refusal, *others]))
    asking.answer(ASKED)
    with pytest.raises(PendingAnswers):
        asking.settle("names")
    bodies = [line["body"] for line in lines_of(tmp_path / "asked")]
    assert len(bodies) == 6, "the first file stays"
    newest = [body for body in bodies if "max_tokens" not in body]
    assert [body["max_completion_tokens"] for body in newest] == [20, 20, 20]
    assert all("response_format" in body for body in newest)


def test_what_a_server_answered_is_not_asked_by_file_nor_the_other_way(tmp_path):
    calls = tmp_path / "calls.jsonl"
    with LoopbackJudge() as server:
        Remote(JudgeArguments(model="m", base_url=server.url), calls).answer(ASKED[:2])
        asking = judge(tmp_path)
        asking.answer(ASKED)
        with pytest.raises(PendingAnswers, match="1 request waits"):
            asking.settle("names")
        (request,) = lines_of(tmp_path / "asked")
        back = written(tmp_path / "back.jsonl", [of_openai(request["custom_id"], "by file")])
        judge(tmp_path, back).answer(ASKED)
        n = server.asked.total()
        remote = Remote(JudgeArguments(model="m", base_url=server.url), calls)
        assert remote.answer(ASKED)[2].text == "by file" and server.asked.total() == n


@pytest.mark.parametrize("limit", [{"most_requests": 2}, {"most_bytes": 800}])
def test_files_hold_at_most_so_many_requests_and_bytes(tmp_path, limit):
    asking = BatchFileJudge(JudgeArguments(model="m", requests=str(tmp_path / "asked")), **limit)
    asking.answer(ASKED)
    with pytest.raises(
        PendingAnswers, match=r"requests-\w+-1-of-2\.jsonl to requests-\w+-2-of-2\.jsonl"
    ):
        asking.settle("names")
    files = sorted((tmp_path / "asked").iterdir())
    assert [path.read_text().count("\n") for path in files] == [2, 1]
    assert max(path.stat().st_size for path in files) <= 800


def test_a_text_cannot_end_its_line(tmp_path):
    hostile = 'a"}\n{"custom_id": "x", "method": "POST"}\u2028<|im_end|>\ud800'
    asking = judge(tmp_path)
    asking.answer([Question((("user", hostile),))])
    with pytest.raises(PendingAnswers):
        asking.settle("names")
    (path,) = (tmp_path / "asked").iterdir()
    (line,) = path.read_bytes().split(b"\n")[:-1]
    assert json.loads(line)["body"]["messages"] == [{"role": "user", "content": hostile}]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "back.jsonl holds no answers"),
        ('{"custom_id": "a", "response": {}}\n\nnot JSON\n', "back.jsonl, line 3 is not an answer"),
        ("[1, 2]\n", "line 1 is not an answer with a custom_id"),
        ('{"response": {}}\n', "line 1 is not an answer with a custom_id"),
        ("[" * 100_000, "line 1 is not an answer with a custom_id"),
        (
            '{"custom_id": "a", "response": {}}\n{"custom_id": "b", "resp',
            "line 2 breaks off: the fil",
        ),
        (
            '{"custom_id": "a", "response": "' + "x" * 2**23 + '"}\n',
            "line 1 of .* is longer than 8,3",
        ),
        ('{"id": "batch_1", "output_file_id": "f"}', "is the state of a batch, and has no answers"),
        ('{"custom_id": "a", "body": {}}\n', "line 1 is a request, not an answer"),
    ],
)
def test_a_file_that_is_none_of_answers_is_refused_with_its_line(tmp_path, text, sentence):
    (tmp_path / "back.jsonl").write_text(text)
    with pytest.raises(Refused, match=sentence):
        judge(tmp_path, str(tmp_path / "back.jsonl"))


def test_answers_to_other_questions_are_refused_by_their_ids(tmp_path):
    back = written(tmp_path / "back.jsonl", [of_openai("0123456789abcdef", "yes")])
    asking = judge(tmp_path, back)
    asking.answer(ASKED)
    with pytest.raises(PendingAnswers):
        asking.settle("names")  # another part of the round may have asked for it
    with pytest.raises(Refused, match=r"none of the 1 answers .*ids begin with 0123456789ab"):
        asking.refuse_unused()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "mine.txt").write_text("")
    with pytest.raises(Refused, match=r"asked holds mine\.txt; give an empty folder"):
        judge(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="file is a file; give a folder"):
        judge(tmp_path, requests=str(tmp_path / "file"))


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--judge", "m", "--requests", "r", "--base_url", "http://h/v1"], "both a server"),
        (["--judge", "m", "--answers", "a.jsonl"], "answers are given without requests"),
        (["--requests", "r"], "requests is given without a model"),
        (
            ["--judge", "m", "--requests", "r", "--answers", "no.jsonl"],
            "answers no.jsonl: there is no",
        ),
    ],
)
def test_bad_options_are_one_sentence(options, sentence, folder, loads, capsys):
    said = refused(["explain", str(folder), "--scores", "detection", *options], capsys)
    assert sentence in said and not loads


@pytest.fixture
def n_read(monkeypatch):
    """How often a text was read for windows."""
    calls = []
    read = study_module.read
    monkeypatch.setattr(study_module, "read", lambda *a, **k: calls.append(1) or read(*a, **k))
    return lambda: len(calls)


def test_the_verb_asks_by_file_reads_the_text_once_and_writes_names_before_their_scores(
    folder, loads, n_read, tmp_path, capsys
):
    assert main(verb(folder, "--latents", *map(str, range(16)))) == 0
    asked, back = tmp_path / "asked", tmp_path / "back.jsonl"
    options = ["--latents", *map(str, range(16)), "--explainer", "lm", "--scores", "detection"]
    options += ["--judge", "m", "--requests", str(asked), "--judged_windows", "4"]
    n_answered, about, more = (0, 5, None), ("explanations", "explanations", "detection"), []
    for n, what in zip(n_answered, about, strict=True):
        if n != 0:
            written(back, answered(lines_of(asked), in_turn)[:n])
            more = ["--answers", str(back)]
        capsys.readouterr()
        assert main(verb(folder, *options, *more)) == 0
        said = capsys.readouterr().out
        assert f"to answer, for {what}: " in said and "The explanations are" not in said
        named = [i for i, name in read_names(folder).items() if name.startswith("by a model: ")]
        assert (f"{len(named)} names are there, without scores" in said) == (n != 0)
        assert len(named) == 5 if n == 5 else (len(named) > 9) == (n is None)
    written(back, answered(lines_of(asked), in_turn))
    assert n_read() == 2, "for the names by template, and for these"
    view = feature(open_subject(Choice(str(folder)), with_lm=False), named[0])["auto"]
    assert view["note"].startswith("Named by m, 70% certain, from ")
    assert view["note"].endswith("windows; not tested")
    assert main(verb(folder, *options, "--answers", str(back))) == 0
    assert "The explanations are" in capsys.readouterr().out
    assert n_read() == 2 and not [*asked.glob("found*")]
    record = json.loads((folder / "features/explanations.json").read_text())
    plan = json.loads((asked / "plan.json").read_text())
    assert record["plan_sha256"] == plan["plan_sha256"]
    assert record["judge"] == {"model": "m", "address": "files"}
    assert record["scores"]["detection"]["n_failed"] == 0
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert {row["source"] for row in rows} == {"lm"} and {row["sure"] for row in rows} == {0.7}
    view = feature(open_subject(Choice(str(folder)), with_lm=False), rows[0]["latent"])["auto"]
    assert view["note"].startswith("Named by m, 70% certain, from ")
    most = rows[0]["token_ceiling_pearson"]
    assert f"all tokens of the documents that the windows are from, {most:.2f}" in view["note"]
    own, other = rows[0]["detection_auc"], rows[0]["shuffled_detection_auc"]
    assert f"an AUC of {own:.2f}; given another latent's name, {other:.2f}" in view["note"]
    assert view["doubtful"] and own <= other, "a name that does no better than another latent's"
    assert main(verb(folder, *options, "--seed", "9")) == 2
    assert "is the plan" in capsys.readouterr().err.splitlines()[-1]


def test_what_a_pass_found_is_the_same_to_the_bit_and_made_again_where_it_may_not_be(
    planted, tmp_path
):
    reading = read_planted(planted, LATENTS)
    selection = select(reading, ARGS)
    path = tmp_path / "found.safetensors"
    assert StudyFile(path, {"weights": 1}).content is None
    StudyFile(path, {"weights": 1}).save(reading, selection)
    again = StudyFile(path, {"weights": 1}).content
    assert again is not None
    reading_again, again = again
    assert again.left_out == selection.left_out
    for one, other in zip(selection[:2], again[:2], strict=True):
        assert str(one) == str(other) and len(one) > 1
        for ours, theirs in zip(one, other, strict=True):
            assert all(map(np.array_equal, ours.trace, theirs.trace))
            assert ours.trace.value.dtype == theirs.trace.value.dtype
    for name in ("ids", "half", "start", "stop", "computed", "n_firings", "order"):
        assert np.array_equal(getattr(reading, name), getattr(reading_again, name))
    assert reading_again.n_documents == reading.n_documents
    assert StudyFile(path, {"weights": 2}).content is None
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert StudyFile(path, {"weights": 1}).content is None


def test_one_latent_can_be_named_and_judged_by_file_without_a_verdict(folder, loads, tmp_path):
    asked, back = tmp_path / "asked", tmp_path / "back.jsonl"
    options = ["--latents", "5", "--explainer", "lm", "--scores", "detection", "--judge", "m"]
    options += ["--requests", str(asked), "--judged_windows", "4"]
    for _ in range(2):
        assert main(verb(folder, *options)) == 0
        written(back, answered(lines_of(asked), in_turn))
        options += [] if "--answers" in options else ["--answers", str(back)]
    assert main(verb(folder, *options)) == 0
    (row,) = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    assert (row["latent"], row["explanation"]) == (5, "a thing")
    assert 0 <= row["detection_auc"] <= 1 and row["shuffled_detection_auc"] is None
    assert row["shuffled_pearson"] is None
    record = json.loads((folder / "features/explanations.json").read_text())
    assert record["scores"]["detection"]["headline"] is None
    assert "of one latent: no other" in (folder / "features/explanations.md").read_text()


def in_turn(handler, body):
    """A name, or grades in turn."""
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    answer = {"name": "a thing", "sure": 7}
    if "grades" in properties:
        answer = {"grades": [8, 1, 6, 3][: properties["grades"]["minItems"]]}
    handler.complete(body, json.dumps(answer))


def test_names_of_all_and_re_drawn_weights_are_asked_for_in_the_same_rounds(
    folder, loads, tmp_path, capsys
):
    """The judge names all latents; twenty are judged, as many as of re-drawn weights."""
    assert main(["collect", str(folder), "--collect_tokens", "2500"]) == 0
    capsys.readouterr()
    asked, back = tmp_path / "asked", tmp_path / "back.jsonl"
    options = ["--n_latents", "all", "--explainer", "lm", "--scores", "detection", "--judge", "m"]
    options += ["--requests", str(asked), "--judged_windows", "4", "--judged_latents", "20"]
    options += ["--judged_directions", "3", "--controls", "untrained"]
    n_asked = []
    for about in ("explanations", "detection"):
        more = ["--answers", str(back)] if n_asked else []
        assert main(verb(folder, *options, *more)) == 0
        assert f"to answer, for {about}: " in capsys.readouterr().out
        lines = lines_of(asked)
        n_asked.append(len(lines))
        assert len({line["custom_id"] for line in lines}) == len(lines), "nothing twice"
        written(back, answered(lines, in_turn))
    assert main(verb(folder, *options, "--answers", str(back))) == 0
    rows = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    record = json.loads((folder / "features/explanations.json").read_text())
    plan = json.loads((asked / "plan.json").read_text())
    assert record["n_named_untested"] > 0 == record["n_stored_names"]
    n_named = record["n_latents"] + record["n_named_untested"]
    assert {row["source"] for row in rows} == {"lm"} and len(rows) == n_named
    named = {row["latent"] for row in rows}
    store = FeatureStore.load(folder)
    assert named == {*plan["latents"]} | {i for i in range(len(store)) if store[i].examples}
    assert {r["latent"] for r in rows if r["detection_auc"] is not None} == {*plan["judged"]}
    assert len(plan["judged"]) == record["scores"]["detection"]["n_latents"] == 20
    drawn = record["untrained"]
    assert drawn["n_latents"] == 20 and len(drawn["detection"]["auc"]["untrained"]) == 3
    assert n_asked[0] <= n_named + 3 + 20 and n_asked[1] <= n_asked[0] + 3 + 6 * 20
    assert "| detection auc |" in (folder / "features/explanations.md").read_text()
    card = (folder / "README.md").read_text()
    assert "by m, which saw the windows" in card
    check_headline(folder, card, record, capsys)


def test_names_that_stand_are_tested_again_and_the_judge_names_the_controls_alone(
    folder, loads, tmp_path
):
    """Those of latents that are too rare for a test stay, too."""
    assert main(["collect", str(folder), "--collect_tokens", "2500"]) == 0
    asked, back, names = (tmp_path / name for name in ("asked", "back.jsonl", "names.jsonl"))
    rows = [{"latent": i, "explanation": f"name {i}", "sure": i / 100} for i in range(48)]
    written(names, rows)
    options = ["--n_latents", "all", "--explainer", "lm", "--file", str(names), "--judge", "m"]
    options += ["--scores", "detection", "--requests", str(asked), "--judged_windows", "4"]
    options += ["--judged_directions", "3", "--judged_latents", "20", "--controls", "untrained"]
    more, n_names = [], []
    for _ in range(3):
        assert main(verb(folder, *options, *more)) == 0
        lines, more = lines_of(asked), ["--answers", str(back)]
        n_names.append(sum("Name in at most" in json.dumps(line["body"]) for line in lines))
        written(back, answered(lines, in_turn))
    assert n_names[0] == n_names[2] <= 3 + 20
    kept = pq.read_table(folder / "features/explanations.parquet").to_pylist()
    record = json.loads((folder / "features/explanations.json").read_text())
    assert record["n_named_untested"] > 0 and len(kept) > record["n_latents"] >= 20
    for row in kept:
        text, sure = f"name {row['latent']}", pytest.approx(row["latent"] / 100)
        assert (row["explanation"], row["sure"], row["source"]) == (text, sure, "lm")
    assert record["standing"]["n"] == 48 and len(record["untrained"]["detection"]["auc"]) >= 3


def check_headline(folder, card, record, capsys):
    """Card, page and `hfsae show` have the judge's result, beside all controls; each mean beside
    the one that is weighted by how often latents fire, and AUC beside balanced accuracy."""
    of, drawn = record["scores"]["detection"], record["untrained"]
    means, weighted = of["uniform"]["auc"], of["by_frequency"]["auc"]
    own, other, difference = (means[key][0] for key in ("own", "shuffled", "difference"))
    own_weighted, other_weighted = (weighted[key][0] for key in ("own", "shuffled"))
    sentence = (
        f"Given a latent's own name, m tells texts in which it fires from others with an AUC of "
        f"{own:.3f} ({own_weighted:.3f} with latents weighted by how often they fire); given "
        f"another latent's name, of {other:.3f} ({other_weighted:.3f}): {difference:.3f} ["
    )
    assert main(["show", str(folder)]) == 0 and sentence in capsys.readouterr().out
    said = html.unescape(card).replace("\\", "")
    shown = "" if means["difference"][1] > 0 else ": this judge cannot tell them apart"
    assert sentence in said and f", over 20 latents{shown}.**" in said
    controls = (means["direction"], drawn["detection"]["auc"]["untrained"])
    cells = ["{:.3f}, {:.3f} to {:.3f}".format(*interval) for interval in controls]
    assert f"| {' | '.join(cells)} |" in card
    page = overview_panel(health(open_subject(Choice(str(folder)), with_lm=False)))
    own, by_firing = ("{:.3f}, {:.3f} to {:.3f}".format(*m["own"]) for m in (means, weighted))
    assert f"with the latent's own name: {own}" in html.unescape(page)
    assert f"<td>{own}</td><td>{by_firing}</td>" in page
    told = "{:.3f}, {:.3f} to {:.3f}".format(*of["by_frequency"]["balanced_accuracy"]["own"])
    balanced = next(x for x in card.splitlines() if x.startswith("| detection, balanced accuracy"))
    assert balanced.split(" | ")[2] == told and f"<td>{told}</td>" in page
    report = (folder / "features/explanations.md").read_text()
    shown = ("{:.3f} [{:.3f}, {:.3f}]".format(*m["own"]) for m in (means, weighted))
    assert (
        "**detection**: auc {}, or {} with latents weighted by how often".format(*shown) in report
    )
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_a_judge_that_fails_for_a_moment_leaves_no_result_of_the_control(folder, loads):
    placed = of_run(folder)
    loaded = load_lm_for(placed)

    def away(shown):
        raise Refused("the server is away")

    args, asked = ExplainArguments(n_tokens=2500), ScoreArguments(("detection",))
    limits, inquiry = limits_of(placed, loaded), ScoringRequest(asked, Oracle())
    how = {"explainer": away, "inquiry": inquiry}
    with pytest.raises(Refused, match="the server is away"):
        shuffled_weights(placed.recipe, loaded, placed.sae, args, limits, **how)
    none_fits = replace(args, min_density=1.0, max_density=1.0)
    too_few = shuffled_weights(placed.recipe, loaded, placed.sae, none_fits, limits, **how)
    assert "qualifies; scores need 20" in str(too_few)
