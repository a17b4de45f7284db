"""A study on a Space: no file of it tells what is rated, answers reach the data set, and a
restarted Space resumes."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("uvicorn")

from studies import hosted
from studies.__main__ import main
from studies.answers import ledgers
from studies.plan import Plan, Refused
from studies.report import close
from studies.space import push_space

from ..demo.conftest import free_port
from ..loopback_hub import LoopbackHub
from .conftest import NAMES, ROOT, a_plan, answer_all, call, choice_of, first_page, serving

SPACE, ANSWERS, WRITE = "alice/rating", "alice/answers", "hf_write"
WORDS = ("sae", "latent", "densit", "control", "direction", "intruder", "sparse", "random")


@pytest.fixture
def pushed(hub: LoopbackHub, study: Path) -> Path:
    push_space(study, SPACE, ANSWERS, token=WRITE, print_fn=lambda text: None)
    return study


def answer_one(url: str) -> str:
    """Ada's answer to her next item; the item."""
    _, page = call(f"{url}item?rater=ada", **{"X-Code": "word"})
    body = {"rater": "ada", "item": page["item"], "answer": choice_of(page)}
    assert call(f"{url}answer", body, **{"X-Code": "word"})[0] == 200
    return page["item"]


def answered(hub: LoopbackHub) -> list[str]:
    """Ada's items in the data set."""
    text = hub.read_file(ANSWERS, "answers/ada.jsonl", kind="datasets").decode()
    return re.findall(r'"item": "(\w+)"', text)


def test_a_spaces_files_hold_nothing_of_the_plan_and_a_private_data_set_has_it(
    hub, study, capsys, monkeypatch
):
    plan = Plan.load(study)
    answer_all(study, plan, "bob", lambda item: 0 if item.question == "intruder" else "no")
    monkeypatch.setenv("HF_TOKEN", WRITE)
    assert main(["space", str(study), SPACE, "--answers", ANSWERS]) == 0
    names = [name for name in hub.list_files(SPACE, kind="spaces") if name != ".gitattributes"]
    assert names == ["Dockerfile", "README.md", "app.py", "requirements.txt"]
    files = {name: hub.read_file(SPACE, name, kind="spaces").decode() for name in names}
    text = "\n".join(files.values())
    hidden = [*NAMES, plan.hash[:16], *(item.id for item in plan.items)]
    hidden += [window.tokens[1] for item in plan.items for window in item.windows]
    assert not [word for word in hidden if word in text]
    assert not [word for word in WORDS if word in text.lower().replace("hfsae", "")]
    front = yaml.safe_load(files["README.md"].split("---\n")[1])
    assert front["sdk"] == "docker" and front["app_port"] == hosted.PORT
    assert len(front["short_description"]) <= 60
    assert "starlette" in files["requirements.txt"]
    compile(files["app.py"], "app.py", "exec")
    assert f"from studies.hosted import host\n\nhost({ANSWERS!r})" in files["app.py"]
    assert hub.repos["spaces", SPACE].private and hub.repos["datasets", ANSWERS].private
    page = {f"studies/{name}" for name in hosted.PAGE}
    assert page < {*hub.list_files(ANSWERS, kind="datasets")}
    for name in ("plan.json", "answers/bob.jsonl"):
        assert hub.read_file(ANSWERS, name, kind="datasets") == (study / name).read_bytes()
    printed = capsys.readouterr().out
    assert f"new private dataset {ANSWERS}, visible to nobody but those" in printed
    assert f"hf download {ANSWERS} --repo-type dataset --include 'answers/*' --local-dir" in printed
    assert "raters open https://alice-rating.hf.space/?rater=NAME" in printed


def test_answers_reach_the_data_set_and_a_restarted_space_resumes(hub, pushed, tmp_path):
    with hosted.kept(ANSWERS, tmp_path / "a", WRITE) as scheduler:
        with serving(tmp_path / "a", code="word") as url:
            first = answer_one(url)
            scheduler.trigger().result()
            assert answered(hub) == [first]
            second = answer_one(url)
        assert answered(hub) == [first]
    assert answered(hub) == [first, second]  # the last ones, as the Space stops
    # the Space's files and the data set may be sent again: no answer is lost
    push_space(pushed, SPACE, ANSWERS, token=WRITE, print_fn=lambda text: None)
    with hosted.kept(ANSWERS, tmp_path / "b", WRITE), serving(tmp_path / "b", code="word") as url:
        third = answer_one(url)
    order = [item.id for item in Plan.load(pushed).order("ada")]
    assert [first, second, third] == order[:3] == answered(hub)
    # what `hf download` puts into the study's folder is what the report reads
    shutil.copytree(tmp_path / "b" / "answers", pushed / "answers")
    assert len(ledgers(pushed, Plan.load(pushed))["ada"].latest) == 3


def test_a_space_that_is_stopped_sends_the_last_answers(hub, pushed, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    program = hub.read_file(SPACE, "app.py", kind="spaces").decode()
    program = program.replace(f"host({ANSWERS!r})", f"host({ANSWERS!r}, port={port})")
    environment = hub.environment(tmp_path, WRITE) | {hosted.CODE: "word"}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)
    try:
        first_page(url, process)
        item = answer_one(url)
        process.terminate()  # as the Hub stops a Space
        assert process.wait(60) == 0 and answered(hub) == [item]
    finally:
        process.kill()
        process.wait(20)


def test_a_dry_run_sends_nothing(hub, study):
    lines: list[str] = []
    push_space(study, SPACE, ANSWERS, token=WRITE, dry_run=True, print_fn=lines.append)
    assert lines[0].endswith("Dockerfile, README.md, app.py, requirements.txt")
    assert lines[1:] == ["dry run: nothing was sent"]
    assert hub.repos == {} and hub.seen("POST") == []


def test_what_is_wrong_with_a_push_is_one_sentence_and_nothing_is_sent(hub, study, capsys):
    def refused(sentence: str, space: str = SPACE, answers: str = ANSWERS, **options) -> None:
        with pytest.raises(Refused, match=sentence):
            push_space(study, space, answers, **({"token": WRITE} | options))

    assert main(["space", str(study), SPACE, "--answers", ANSWERS]) == 2
    assert "no token to write to the Hub; `hf auth login`, or set HF" in capsys.readouterr().err
    refused("must be written as 'name/repository', got 'rating'", space="rating")
    refused("cannot push to alice/a b: Repo id must use alphanumeric chars", answers="alice/a b")
    hub.add_repo("alice/open", kind="datasets")
    refused("alice/open is public: raters could read the plan", answers="alice/open")
    a_plan(seed=1).save(study.parent / "other")
    plan = (study.parent / "other" / "plan.json").read_bytes()
    hub.add_repo("alice/other", kind="datasets", private=True)
    hub.add_file("alice/other", "plan.json", plan, kind="datasets")
    refused("alice/other holds another study, plan", answers="alice/other")
    hub.add_file("alice/app", "app.py", b"", kind="spaces")
    refused("alice/app holds something else", space="alice/app")
    answer_all(study, Plan.load(study), "ada", lambda i: 0 if i.question == "intruder" else "no")
    close(study)
    refused("is closed: it takes no more answers")
    assert hub.seen("POST") == []


@pytest.fixture
def own_handler() -> Iterator[None]:
    """SIGTERM does after the test what it did before."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("own_handler")
def test_a_space_refuses_what_would_lose_or_show_answers(hub, pushed, tmp_path, monkeypatch):
    def refused(sentence: str) -> None:
        with pytest.raises(SystemExit, match=sentence):
            hosted.host(ANSWERS, port=free_port())

    monkeypatch.delenv(hosted.CODE, raising=False)
    refused("the secret HF_TOKEN is not set; set it in the Space's settings")
    monkeypatch.setenv(hosted.TOKEN, "hf_read")
    refused("the secret STUDY_CODE is not set")
    monkeypatch.setenv(hosted.CODE, "word")
    refused(f"cannot keep answers in {ANSWERS}: .*rights to write")
    hub.repos["datasets", ANSWERS].private = False
    refused(f"{ANSWERS} is public")
