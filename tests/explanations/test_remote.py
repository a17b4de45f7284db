"""Answers from servers, sound and faulty ones, over real HTTP on the loopback interface."""

import asyncio
import json
import math
import os
import random
import re
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from hfsae.explanations.judges import DryRunJudge, JudgeArguments, Question
from hfsae.explanations.judges.base import without_thoughts
from hfsae.explanations.judges.remote import Remote, base_of
from hfsae.io.checksums import unsealed
from hfsae.io.errors import Refused

from .. import forked
from .loopback_judge import (
    LoopbackJudge,
    content,
    cut_off,
    hang,
    raw,
    sound,
    sound_logprobs,
    sound_text,
    status,
    unless,
)

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}
KEY = "sk-loopback-0123456789"


@pytest.fixture
def server(monkeypatch, no_waits):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with LoopbackJudge() as server:
        yield server


@pytest.fixture
def provider(server, hub, monkeypatch):
    """One of Hugging Face's Inference Providers: their router is the loopback server."""
    monkeypatch.setattr("hfsae.explanations.judges.remote.ROUTER", server.url)
    monkeypatch.setenv("HF_TOKEN", KEY)
    return {"base_url": None, "provider": "together", "model": "org/m"}


@pytest.fixture(params=["address", "provider"])
def way(request):
    """Changes of a judge's arguments: either way to a server."""
    return {} if request.param == "address" else request.getfixturevalue("provider")


def judge_of(server, calls=None, **changes) -> Remote:
    args = JudgeArguments(**{"model": "m", "base_url": server and server.url} | changes)
    return Remote(args, calls)


def asked(n: int = 12, **changes) -> list[Question]:
    return [prompt(f"prompt {i}", **changes) for i in range(n)]


def prompt(text: str, **changes) -> Question:
    messages = (("system", "Answer in JSON."), ("user", text))
    return Question(messages, **{"schema": SCHEMA} | changes)


def texts(answers) -> list[str | None]:
    return [answer.text for answer in answers]


SOUND = [sound_text(f"prompt {i}") for i in range(12)]


def test_answers_come_in_the_order_of_the_questions_with_their_usage(server):
    judge, progress = judge_of(server), []
    answers = judge.answer(asked(), lambda n, usage: progress.append((n, usage.n_calls)))
    assert texts(answers) == SOUND
    assert progress == [(i, i) for i in range(1, 13)]
    assert judge.usage.n_tokens_in == server.usage["prompt_tokens"] == 12 * 19
    assert judge.usage.n_tokens_out == server.usage["completion_tokens"] > 0


def test_the_request_has_temperature_0_the_seed_the_schema_and_the_key(server):
    judge_of(server).answer([prompt("prompt 0", seed=7, max_tokens=50)])
    body = server.bodies[0]
    form = {"name": "answer", "strict": True, "schema": SCHEMA}
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Answer in JSON."},
            {"role": "user", "content": "prompt 0"},
        ],
        "max_tokens": 50,
        "temperature": 0,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": form},
    }
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert server.paths == ["/v1/chat/completions"]


def test_the_token_of_the_hub_does_not_go_to_other_servers(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    judge_of(server).answer(asked(1))
    assert "hf_secret" not in json.dumps(server.headers)


def test_no_more_than_eight_calls_run_at_once(server):
    all_eight = threading.Barrier(8)

    def held(handler, body):
        all_eight.wait(60)  # each call waits until eight are there: fewer would break the barrier
        sound(handler, body)

    server.always = held
    questions = [prompt(f"prompt {i}") for i in range(24)]
    assert None not in texts(judge_of(server, timeout=60).answer(questions))
    assert server.most_at_once == 8


CUT = content('{"answer": "4', "length")
PASSING = {
    "status 429": [status(429)] * 6,
    "status 500": [status(500), status(503)],
    "a hang": [hang],
    "a broken connection": [cut_off, cut_off],
    "an error inside a reply": [raw('{"error": {"code": 502, "message": "upstream"}}')],
    "a page in place of a reply": [raw("<html>please log in</html>")],
    "an empty answer": [content("")],
    "no content": [content(None)],
    "a refusal in words": [content("I'm sorry, but I can't help with that.")],
    "a refusal in its field": [content(None, refusal="I cannot do that")],
    "a filter": [content("par", "content_filter")],
    "a thought without an end": [content("<think>well, let me see")],
    "JSON that is cut": [CUT],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_after_faults_that_pass_the_answers_are_those_of_a_sound_server(server, faults):
    server.faults["prompt 3"] = [*faults]
    judge = judge_of(server, timeout=2.0 if hang in faults else 60)
    assert texts(judge.answer(asked(6))) == SOUND[:6]
    assert server.asked["prompt 3"] == len(faults) + 1 and judge.usage.n_failed == 0


LASTING = {
    "status 500": ([status(500)] * 7, "500: "),
    "empty answers": ([content(""), content("  ")], "an empty answer"),
    "refusals": ([content("As an AI, I won't")] * 2, "the model refused to answer"),
    "thoughts": ([content("<think>hm")] * 2, "a thought without an end within 200 tokens"),
    "cut JSON": ([CUT] * 2, "the answer was cut at 200 tokens"),
    "too long": ([status(400, "context length exceeded")] * 9, "400: "),
    "no completions": ([raw("<html>")] * 2, "the reply is not JSON"),
}


@pytest.mark.parametrize(("faults", "reason"), LASTING.values(), ids=LASTING)
def test_a_question_whose_faults_last_is_marked_failed_and_no_other(server, faults, reason):
    judge = judge_of(server, concurrency=1)
    server.faults["prompt 3"] = [*faults]
    answers = judge.answer(asked(6))
    assert texts(answers) == [*SOUND[:3], None, *SOUND[4:6]]
    assert answers[3].failure.startswith(reason) and judge.usage.n_failed == 1


def test_what_fails_is_asked_for_six_times_more(server):
    server.always = status(502)
    judge = judge_of(server)
    assert judge.answer(asked(1))[0].text is None and server.asked["prompt 0"] == 7


def test_thoughts_are_no_part_of_an_answer(server):
    server.always = content("<think>yes or no?\nno</think>\n\nyes")
    assert texts(judge_of(server).answer([prompt("prompt 0", schema=None)])) == ["yes"]
    assert without_thoughts("opened by the template</think> yes") == "yes"
    assert without_thoughts("<think>a</think>yes<think>b</think>, no") == "yes, no"
    assert without_thoughts("yes <think>and") is None


def test_a_text_of_a_million_tags_is_read_in_one_pass():
    """Each text takes milliseconds; searched again from each tag, it would take minutes."""
    assert without_thoughts("<think>" * 150_000) is None
    assert without_thoughts("a" * 10**6 + "\n" * 10**6) == "a" * 10**6
    assert without_thoughts("<think>" * 150_000 + "</think>yes") == "yes"
    assert without_thoughts("a</think>" * 150_000 + "yes") == "yes"


def test_thoughts_are_cut_out_as_by_two_expressions():
    """An independent way, whose time grows with the square of a text's length."""
    thought = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
    end = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
    pieces = ["a", "\n", "<think>", "</think>", "<THINKING>", "</thinking>", "<"]
    rng = random.Random(0)
    for _ in range(2000):
        text = " ".join(rng.choices(pieces, k=8))
        left = end.sub("", thought.sub("", text), count=1)
        expected = None if re.search("<think(ing)?>", left, re.IGNORECASE) else left.strip()
        assert without_thoughts(text) == expected


@pytest.mark.parametrize("code", [400, 422])
def test_a_schema_that_is_refused_is_not_sent_again(server, code):
    server.always = unless("response_format", status(code, "unknown parameter"))
    assert texts(judge_of(server, concurrency=1).answer(asked())) == SOUND
    assert ["response_format" in body for body in server.bodies] == [True] + [False] * 12


@pytest.mark.parametrize("name", ["seed", "temperature", "max_tokens"])
def test_a_parameter_that_the_server_names_is_left_out(server, name):
    server.always = unless(name, status(400, f"unsupported parameter: '{name}'"))
    assert texts(judge_of(server, concurrency=1).answer(asked(3))) == SOUND[:3]
    assert [name in body for body in server.bodies] == [True, False, False, False]
    assert all("response_format" in body for body in server.bodies)
    assert ("max_completion_tokens" in server.bodies[-1]) == (name == "max_tokens")


def test_log_probabilities_of_choices_sum_over_spellings(server):
    server.always = content("yes")
    question = prompt("prompt 0", schema=None, choices=("yes", "no"), max_tokens=1)
    (answer,) = judge_of(server).answer([question])
    p = {top["token"]: math.exp(top["logprob"]) for top in sound_logprobs("prompt 0")}
    expected = {"yes": math.log(p["yes"] + 0.15), "no": math.log(p["no"])}
    assert answer.log_probabilities == pytest.approx(expected) and answer.text == "yes"
    assert server.bodies[0]["top_logprobs"] == 20


@pytest.mark.parametrize("least, bound", [(0.02, 0.02), (0.04, 0.01)])
def test_a_choice_that_is_not_listed_has_at_most_what_is_left_and_the_least(server, least, bound):
    shares = {"yes": 0.9, "maybe": 0.05, "x": least}
    tops = [{"token": token, "logprob": math.log(p)} for token, p in shares.items()]
    first = {"token": "yes", "top_logprobs": tops}
    choice = {"message": {"content": "yes"}, "logprobs": {"content": [first]}}
    reply = json.dumps({"choices": [choice], "usage": {}})
    server.always = lambda handler, body: handler.reply(200, reply)
    (answer,) = judge_of(server).answer(asked(1, schema=None, choices=("yes", "no")))
    expected = {"yes": math.log(0.9), "no": math.log(bound)}
    assert answer.log_probabilities == pytest.approx(expected)


def test_a_server_without_log_probabilities_answers_in_words(server):
    server.always = unless("logprobs", status(400, "logprobs are not supported"))
    questions = asked(3, choices=("yes", "no"), schema=None)
    answers = judge_of(server, concurrency=1).answer(questions)
    assert texts(answers) == SOUND[:3] and {a.log_probabilities for a in answers} == {None}
    assert sum("logprobs" in body for body in server.bodies) == 1


def test_an_account_without_credit_and_an_unknown_model_are_known_by_their_words(server):
    server.always = status(429, "insufficient_quota")
    with pytest.raises(Refused, match="has no credit left"):
        judge_of(server).answer(asked(1))
    server.always = status(400, "model_not_found")
    with pytest.raises(Refused, match="has no model 'm'"):
        judge_of(server).answer(asked(1))


ENDING = {
    401: "does not accept the key in OPENAI_API_KEY",
    402: "the account of the key in OPENAI_API_KEY has no credit",
    403: "does not let the key in OPENAI_API_KEY use 'm'",
    404: "has no model 'm'",
}


@pytest.mark.parametrize("code", ENDING)
def test_what_no_other_call_can_change_ends_the_run_in_a_sentence(server, code, tmp_path):
    server.faults["prompt 5"] = [status(code, f"{KEY} is bad")]
    judge = judge_of(server, tmp_path / "calls.jsonl", concurrency=1)
    with pytest.raises(Refused, match=ENDING[code]) as error:
        judge.answer(asked())
    assert KEY not in str(error.value) and "\n" not in str(error.value)
    server.faults.clear()
    assert texts(judge_of(server, tmp_path / "calls.jsonl").answer(asked())) == SOUND
    assert {server.asked[f"prompt {i}"] for i in range(5)} == {1}


def test_a_server_that_is_not_there_is_named(no_waits):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(Refused, match=f"{url} cannot be reached"):
        judge_of(None, base_url=url).answer(asked(1))


def test_a_server_that_does_not_chat_is_named(server):
    for always in (raw("<html>hello</html>"), raw("[1, 2]"), raw('{"choices": [{}]}')):
        server.always = always
        with pytest.raises(Refused, match=f"{server.url} does not answer with chat completions"):
            judge_of(server).answer(asked())


def test_a_server_that_answers_nothing_any_more_ends_the_run(server):
    server.always = status(500)
    with pytest.raises(Refused, match=r"9 calls in a row to .* failed"):
        judge_of(server, retries=0, concurrency=1).answer(asked())


def test_a_call_that_was_answered_is_not_sent_again_and_one_that_failed_is(server, tmp_path):
    calls = tmp_path / "features" / "calls.jsonl"
    server.faults["prompt 3"] = [content("")] * 2
    assert texts(judge_of(server, calls).answer(asked()))[3] is None
    judge = judge_of(server, calls)
    assert texts(judge.answer(asked())) == SOUND
    assert server.asked["prompt 3"] == 3 and server.asked.total() == 14
    assert (judge.usage.n_calls, judge.usage.n_repeated) == (1, 11)
    judge_of(server, calls).answer([prompt("prompt 0", seed=1)])
    judge_of(server, calls, model="other").answer([prompt("prompt 0")])
    assert server.asked["prompt 0"] == 3


def test_one_question_twice_is_one_call(server):
    answers = judge_of(server).answer([*asked(2), *asked(2)])
    assert texts(answers) == SOUND[:2] * 2 and server.asked.total() == 2


def test_a_line_that_a_killed_run_left_unfinished_is_ignored(server, tmp_path):
    calls = tmp_path / "calls.jsonl"
    judge_of(server, calls, concurrency=1).answer(asked(3))
    calls.write_bytes(calls.read_bytes()[:-20])
    assert texts(judge_of(server, calls, concurrency=1).answer(asked(3))) == SOUND[:3]
    assert server.asked == {"prompt 0": 1, "prompt 1": 1, "prompt 2": 2}
    judge_of(server, calls).answer(asked(3))
    assert server.asked.total() == 4


def test_an_interrupt_keeps_what_was_answered(server, tmp_path):
    def interrupt(n, usage):
        if n == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_of(server, tmp_path / "calls.jsonl", concurrency=1).answer(asked(), interrupt)
    assert server.asked.total() < 12
    assert texts(judge_of(server, tmp_path / "calls.jsonl").answer(asked())) == SOUND
    assert server.asked.total() == 12


def _child(url: str, calls) -> None:
    judge = Remote(JudgeArguments(model="m", base_url=url, concurrency=4), calls)
    judge.answer([prompt(f"prompt {i}") for i in range(30)])


def test_after_kill_9_no_answered_call_goes_out_twice(server, tmp_path):
    """Ten calls are answered; when four others are on their way, the process is killed."""
    n_answered, n_held, lock = 0, 0, threading.Lock()
    in_flight = threading.Event()

    def ten(handler, body):
        nonlocal n_answered, n_held
        with lock:
            is_answered = n_answered < 10
            n_answered, n_held = n_answered + is_answered, n_held + (not is_answered)
            if n_held == 4:  # so each worker has kept its earlier answers
                in_flight.set()
        (sound if is_answered else hang)(handler, body)

    server.always = ten
    child = forked.start(_child, server.url, tmp_path / "calls.jsonl")
    assert in_flight.wait(300)
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    server.always = sound
    judge = judge_of(server, tmp_path / "calls.jsonl")
    questions = [prompt(f"prompt {i}") for i in range(30)]
    assert texts(judge.answer(questions)) == [sound_text(f"prompt {i}") for i in range(30)]
    assert judge.usage.n_repeated == 10
    assert sorted(server.asked.values()) == [1] * 26 + [2] * 4


def test_no_file_holds_a_key(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    port = server.server_address[1]
    url = f"http://user:pass-word-1@127.0.0.1:{port}/v1?api_key=query-key-1&api_key_2=query-key-2"
    secrets = [KEY, "hf_0123456789abcdef", "pass-word-1", "query-key-1", "query-key-2"]
    server.faults["prompt 1"] = [status(429, f"{secrets}")]
    server.faults["prompt 2"] = [status(400, f"{secrets}")] * 9
    server.faults["prompt 3"] = [content(f"the key is {secrets}")]
    judge = judge_of(server, tmp_path / "calls.jsonl", base_url=url, concurrency=1)
    assert judge.answer(asked(4))[2].text is None
    assert "api_key=query-key-1" in server.paths[0]
    kept = (tmp_path / "calls.jsonl").read_text() + caplog.text
    assert "[key]" in kept and f"http://127.0.0.1:{port}/v1" in kept
    assert not [secret for secret in secrets if secret in kept]


def test_a_key_that_a_server_echoes_is_in_no_answer_error_or_log(server, tmp_path, caplog):
    for client in ("httpx", "httpx2"):  # other tests may have silenced it
        caplog.set_level("INFO", logger=client)
    echoed = f"the key is {KEY}."
    server.faults["prompt 0"] = [content(f"so {echoed} on")]
    server.faults["prompt 1"] = [status(500, echoed), status(429, echoed), status(400, echoed)]
    server.faults["prompt 2"] = [raw(json.dumps({"error": {"code": 400, "message": echoed}}))] * 9
    judge = judge_of(server, tmp_path / "calls.jsonl", concurrency=1, retries=2)
    answers = judge.answer(asked(3, schema=None))
    server.always = status(500, echoed)
    with pytest.raises(Refused, match="calls in a row") as error:
        judge_of(server, retries=0, concurrency=1).answer(asked())
    chain = "".join(map(str, (error.value, error.value.__cause__, error.value.__context__)))
    for text in ((tmp_path / "calls.jsonl").read_text(), str(answers), chain):
        assert "[key]" in text and KEY not in text
    assert "HTTP Request" in caplog.text and KEY not in caplog.text


def test_a_key_in_the_answers_of_an_older_run_is_hidden_when_they_are_read(server, tmp_path):
    judge_of(server, tmp_path / "calls.jsonl").answer(asked(1, schema=None))
    line = unsealed(json.loads((tmp_path / "calls.jsonl").read_text()))
    text = json.dumps(line).replace('\\"answer\\": \\"', KEY)
    (tmp_path / "calls.jsonl").write_text(f"{text}\n")
    (answer,) = judge_of(server, tmp_path / "calls.jsonl").answer(asked(1, schema=None))
    assert "[key]" in answer.text and KEY not in answer.text


def test_a_redirection_is_not_followed(server, way):
    def redirects(handler, body):
        handler.reply(307, "elsewhere", Location=f"{server.url}/elsewhere")

    server.always = redirects
    with pytest.raises(Refused, match="it redirects, with status 307"):
        judge_of(server, concurrency=1, **way).answer(asked(1))
    assert set(server.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize("head", [True, False])
def test_a_call_ends_after_its_time_however_slowly_the_answer_comes(server, way, head):
    """A byte at a time, of the headers or of the body: each comes in time."""

    def slow(handler, body):
        if not head:
            handler.send_response(200)
            handler.end_headers()
        with suppress(OSError):
            while not handler.server.is_over.wait(0.02):
                handler.wfile.write(b"HTTP/1.1 200 OK"[:1] if head else b" ")
                handler.wfile.flush()
        handler.close_connection = True

    server.faults["prompt 3"] = [slow]
    answers = judge_of(server, concurrency=1, timeout=0.4, retries=0, **way).answer(asked(5))
    assert texts(answers) == [*SOUND[:3], None, SOUND[4]]
    assert answers[3].failure == "no whole answer within 0.4 s"


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1e999", "1e5"])
def test_numbers_that_no_float_holds_do_not_end_a_run(server, number):
    def with_number(handler, body):
        top = {"token": "yes", "top_logprobs": [{"token": "yes", "logprob": "NUMBER"}]}
        choice = {"message": {"content": "yes"}, "logprobs": {"content": [top]}}
        reply = {"choices": [choice], "usage": {"prompt_tokens": "NUMBER"}}
        handler.reply(200, json.dumps(reply).replace('"NUMBER"', number))

    server.always = with_number
    judge = judge_of(server, price_in=1.0)
    (answer,) = judge.answer(asked(1, schema=None, choices=("yes", "no")))
    assert answer.text == "yes" and judge.usage.price(judge._args) < 1
    assert all(value <= 0 for value in (answer.log_probabilities or {}).values())


def test_the_plan_counts_what_the_server_counts(server, tiny_tokenizer):
    args = JudgeArguments(model="m", base_url=server.url, price_in=1.5, price_out=6.0)
    server.n_tokens = lambda text: len(tiny_tokenizer(text)["input_ids"])
    questions = [prompt(f"Which of these {i} windows " + "fit it? " * i) for i in range(100)]
    counted = DryRunJudge(args, count=server.n_tokens)
    expected = [answer.text for answer in counted.answer(questions)]
    assert len(expected) == 100 and server.asked.total() == 0
    server.always = content(expected[0])
    judge = Remote(args)
    judge.answer(questions)
    plan = counted.plan()
    assert plan["n_calls"] == server.asked.total() == 100
    assert plan["n_tokens_in"] == pytest.approx(server.usage["prompt_tokens"], rel=0.1)
    assert plan["n_tokens_out"] == pytest.approx(server.usage["completion_tokens"], rel=0.1)
    assert plan["price"] == pytest.approx(judge.usage.price(args), rel=0.1)


def test_an_address_may_end_where_users_end_it():
    assert base_of("http://a:1") == base_of("http://a:1/") == ("http://a:1/v1", {})
    assert base_of("http://a/v1/") == base_of("http://a/v1/chat/completions") == ("http://a/v1", {})
    assert base_of("http://a/v1beta/openai?x=1") == ("http://a/v1beta/openai", {"x": "1"})
    assert base_of("http://a/chat/completions") == ("http://a", {})


def test_a_judge_in_a_notebook_whose_loop_runs_is_asked_too(server):
    async def cell():
        return judge_of(server).answer(asked(3))

    with ThreadPoolExecutor(1) as pool:  # tests of pages leave a loop in this thread
        assert texts(pool.submit(lambda: asyncio.run(cell())).result()) == SOUND[:3]


def test_a_missing_package_is_a_sentence(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(Refused, match=r"needs openai: pip install 'hfsae\[judge\]'"):
        judge_of(server)


def test_no_key_of_the_environment_goes_to_a_server_that_needs_none(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    judge = judge_of(server)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # which the client reads by itself
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    judge.answer(asked(1))
    assert KEY not in json.dumps(server.headers)
    assert "authorization" not in {name.lower() for name in server.headers[0]}


@pytest.mark.parametrize("name, model", [("together", "org/m:together"), ("auto", "org/m")])
def test_a_provider_is_asked_through_the_router(server, provider, name, model, tmp_path):
    server.faults["prompt 1"] = [status(500), content("")]
    judge = judge_of(server, tmp_path / "calls.jsonl", **provider | {"provider": name})
    assert texts(judge.answer(asked(3))) == SOUND[:3]
    assert judge.usage.n_tokens_in == server.usage["prompt_tokens"]
    body, headers = server.bodies[0], {k.lower(): v for k, v in server.headers[0].items()}
    assert (body["model"], body["temperature"]) == (model, 0)
    assert headers["authorization"] == f"Bearer {KEY}"
    (question,) = asked(1, choices=("yes", "no"), schema=None)
    server.always = content("yes")
    assert set(judge.answer([question])[0].log_probabilities) == {"yes", "no"}
    assert KEY not in (tmp_path / "calls.jsonl").read_text()


@pytest.mark.parametrize("code", ENDING)
def test_a_provider_ends_the_run_in_a_sentence(server, provider, code):
    server.always = status(code)
    sentence = ENDING[code].replace("OPENAI_API_KEY", "HF_TOKEN").replace("'m'", "'org/m'")
    with pytest.raises(Refused, match=sentence):
        judge_of(server, **provider).answer(asked())


def test_what_is_wrong_with_a_provider_is_a_sentence(server, provider, go_offline):
    server.always = status(400, "model_not_supported")
    with pytest.raises(Refused, match="provider nobody has no model 'org/m'"):
        judge_of(server, **provider | {"provider": "nobody"}).answer(asked())
    server.always = raw('{"choices": 3}', "application/json")
    with pytest.raises(Refused, match="provider together does not answer with chat completions"):
        judge_of(server, **provider).answer(asked())
    go_offline()
    with pytest.raises(Refused, match="HF_HUB_OFFLINE is set"):
        judge_of(server, **provider).answer(asked())
