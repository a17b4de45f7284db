"""The page's server: what it gives, what it refuses, and what a kill leaves."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn")

from studies.answers import open_ledger
from studies.plan import Plan, Refused
from studies.report import close
from studies.server import rate

from ..demo.conftest import free_port
from .conftest import NAMES, ROOT, call, choice_of, first_page, send, serving


def test_a_rater_goes_through_all_items_and_nothing_of_what_they_are_is_sent(study):
    plan = Plan.load(study)
    with serving(study) as url:
        _, page = call(f"{url}item?rater=Ada")
        sent = [page]
        while not page.get("done"):
            body = {"rater": "Ada", "item": page["item"], "answer": choice_of(page), "seconds": 9}
            status, page = call(f"{url}answer", body)
            assert status == 200
            sent.append(page)
    assert [p["item"] for p in sent[:-1]] == [item.id for item in plan.order("ada")]
    assert page["n_done"] == page["n"] == len(plan.items)
    assert sent[5]["seconds_left"] == 9 * (len(plan.items) - 5)
    own = {"rater", "n", "n_done", "skipped", "at", "seconds_left"}
    own |= {"item", "question", "windows", "done"}
    assert {key for p in sent for key in p} == own
    assert {key for p in sent for w in p.get("windows", ()) for key in w} == {"tokens", "marks"}
    text = json.dumps(sent)
    assert not any(name in text for name in [*NAMES, "latent", "direction", "0.0123", plan.hash])


def test_skip_undo_and_positions(study):
    with serving(study) as url:
        _, first = call(f"{url}item?rater=ada")
        _, second = call(f"{url}answer", {"rater": "ada", "item": first["item"], "answer": None})
        assert second["at"] == 1 and second["skipped"] == [0] and second["n_done"] == 1
        given = {"rater": "ada", "item": second["item"], "answer": choice_of(second)}
        _, third = call(f"{url}answer", given)
        assert third["at"] == 2
        _, undone = call(f"{url}undo", {"rater": "ada"})
        assert undone["item"] == second["item"] and "answer" not in undone
        _, back = call(f"{url}item?rater=ada&at=0")
        assert back["item"] == first["item"] and back["answer"] is None


def test_what_is_wrong_is_one_sentence(study):
    with serving(study) as url:
        assert call(f"{url}item?rater=../up")[0] == 400
        status, content = call(f"{url}answer", {"rater": "ada", "item": "x", "answer": "yes"})
        assert status == 400 and "is not in this study" in content["error"]
        assert call(f"{url}answer", {"rater": "ada"})[0] == 400
        form = {"Content-Type": "text/plain"}
        assert call(f"{url}answer", {"rater": "ada"}, **form)[0] == 400
        assert not (study / "answers").exists()
        assert urllib.request.urlopen(url).headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example", None),
        ("evil.example:7870", "http://evil.example:7870"),
        ("127.0.0.1.evil.example", None),
        ("localhost", "https://evil.example"),
        ("localhost", "null"),
    ],
)
def test_pages_of_other_sites_do_not_reach_a_study_on_loopback(study, host, origin):
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    with serving(study) as url:
        for path, body in (("item?rater=ada", None), ("undo", {"rater": "ada"}), ("", None)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                send(f"{url}{path}", body, **headers).close()
            assert refused.value.code == 403
        names = {"Host": "LOCALHOST:9", "Origin": "http://[::1]:7870"}
        assert call(f"{url}item?rater=ada", **names)[0] == 200


def test_a_study_that_is_opened_to_others_asks_any_machine_for_its_code(study):
    there = {"Host": "192.168.0.7:7870", "Origin": "http://192.168.0.7:7870"}
    with serving(study, code="word", host="0.0.0.0") as url:
        assert call(f"{url}item?rater=ada", **there)[0] == 401
        assert call(f"{url}item?rater=ada", **there, **{"X-Code": "word"})[0] == 200


def test_no_path_or_hash_of_the_plan_reaches_a_rater_whose_answers_are_damaged(study, caplog):
    (study / "answers").mkdir()
    (study / "answers" / "ada.jsonl").write_text('{"plan": "0000000000000000", "item": "x"}\n')
    with serving(study) as url:
        status, content = call(f"{url}item?rater=ada")
    assert status == 500 and "cannot be read" in content["error"]
    plan = Plan.load(study).hash[:16]
    assert str(study) not in content["error"] and plan not in content["error"]
    assert str(study / "answers") in caplog.text  # who runs the study is told


def test_a_code_is_asked_for(study):
    with serving(study, code="sésame") as url:
        assert call(f"{url}item?rater=ada") == (401, {"error": "code"})
        assert "the code is wrong" in call(f"{url}item?rater=ada", **{"X-Code": "no"})[1]["error"]
        assert call(f"{url}item?rater=ada", **{"X-Code": "s%C3%A9same"})[0] == 200


def test_a_closed_study_takes_no_answer(study):
    with serving(study) as url:
        _, page = call(f"{url}item?rater=ada")
        body = {"rater": "ada", "item": page["item"], "answer": choice_of(page)}
        assert call(f"{url}answer", body)[0] == 200
        close(study)
        status, content = call(f"{url}answer", body)
        assert status == 409 and content["error"].startswith("this study is closed")
        assert call(f"{url}undo", {"rater": "ada"})[0] == 409
    with pytest.raises(Refused, match="takes no more answers"):
        rate(study, host="127.0.0.1", port=1, code=None)


def test_killing_the_server_after_an_answer_loses_none(study):
    plan, port = Plan.load(study), free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "tests.study.serve", str(study), str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        page = first_page(url, process)
        for _ in range(3):
            body = {"rater": "ada", "item": page["item"], "answer": choice_of(page)}
            _, page = call(f"{url}answer", body)
    finally:
        process.kill()  # SIGKILL, at once after the answer
        process.wait(20)
    order = plan.order("ada")
    assert [a.item for a in open_ledger(study, plan, "ada").given] == [i.id for i in order[:3]]
    with serving(study) as again:
        assert call(f"{again}item?rater=ada")[1]["item"] == order[3].id
