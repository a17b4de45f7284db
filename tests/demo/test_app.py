"""The app as programs meet it: endpoints, many at once, people who leave, agents."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from inspect import getdoc, signature
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import gradio as gr
import pytest
from gradio_client import Client

from hfsae.demo import address as at
from hfsae.demo.actions import INSTRUCTIONS, LATENT, Actions
from hfsae.demo.address import SETTINGS
from hfsae.demo.app import SESSIONS, app_hosts, build, pages_of
from hfsae.demo.inspect_actions import BY
from hfsae.demo.pages.page import Visit
from hfsae.demo.why import summary
from hfsae.steering import MODES

from .conftest import ARGUMENTS, D_SAE, assert_ended_early

_POLICY, _JSON = "content-security-policy", {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(app_url) -> Client:
    return Client(app_url, verbose=False)


@pytest.fixture(scope="module")
def functions(subject) -> dict[str, Callable]:
    """What the events of the app call, by name."""
    return {function.name: function.fn for function in build(subject).fns.values()}


def test_every_action_is_an_endpoint_and_nothing_else_is(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name.strip("/") for name in named} == {*ARGUMENTS, "hooks", "writing", "sessions"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_endpoint_answers(client, sae_folder, name):
    given = dict(ARGUMENTS[name])
    if name in ("compare_saes", "side_by_side"):
        given["other"] = str(sae_folder)
    if name == "check_ablation":
        given["latent"] = client.predict("the c", api_name="/inspect")["ranking"][0]["latent"]
    assert isinstance(client.predict(**given, api_name=f"/{name}"), dict)


def test_an_answer_by_name(client):
    view = client.predict(latent=3, api_name="/feature")
    assert view["latent"] == 3 and view["collected"]


def test_steering_streams_both_texts(client):
    job = client.submit(
        prompt="the cat", latents="3:6", max_new_tokens=6, temperature=0.0, api_name="/steer"
    )
    final = job.result(timeout=60)
    assert final["done"] and final["plain"] != final["steered"]
    assert len(job.outputs()) >= 2 and not job.outputs()[0]["done"]


def test_twenty_at_once_get_their_own_answers(app_url, client):
    def ask(i: int) -> tuple[str, dict]:
        mine = Client(app_url, verbose=False)
        options = {"max_new_tokens": 4, "seed": i, "api_name": "/steer"}
        steered = mine.predict(prompt=f"user {i} says", latents=f"{i}:3", **options)
        texts = mine.predict(prompt=f"number {i}", api_name="/inspect")["tokens"]
        return "".join(t["text"] for t in texts), steered

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    for i, (text, steered) in enumerate(answers):
        assert text == f"<bos>number {i}"
        alone = client.predict(
            prompt=f"user {i} says",
            latents=f"{i}:3",
            max_new_tokens=4,
            seed=i,
            api_name="/steer",
        )
        assert steered == alone
    assert client.predict(api_name="/hooks") == 0


def test_who_leaves_in_the_middle_of_steering_leaves_nothing_behind(app_url, client):
    leaving = Client(app_url, verbose=False)
    job = leaving.submit(prompt="the cat", latents="3:4", max_new_tokens=230, api_name="/steer")
    next(iter(job))
    job.cancel()
    leaving.close()
    assert_ended_early(client)
    after = client.predict(prompt="the", latents="3:0", max_new_tokens=3, api_name="/steer")
    assert after["plain"] == after["steered"]


def test_programs_are_forgotten_and_leave_no_memory_behind(app_url, client):
    """Each comes as a new caller; Gradio would remember 10,000, at some 0.4 MB each."""
    address = f"{app_url}gradio_api/call/random_latent"
    for i in range(SESSIONS + 10):
        with urlopen(Request(address, b'{"data": [%d, null]}' % i, _JSON)) as asked:
            event = json.load(asked)["event_id"]
        with urlopen(f"{address}/{event}") as answer:
            assert b"event: complete" in answer.read()
    assert client.predict(api_name="/sessions") <= SESSIONS


@pytest.mark.parametrize("query", ["page=nonsense", "tab=xyz&latent=abc", "deep_link=x", "view=x"])
def test_the_app_opens_whatever_its_link_says(app_url, query):
    with urlopen(f"{app_url}?{query}") as answer:
        assert answer.status == 200 and "hfsae: tiny-sae" in answer.read().decode()
        policy = dict(rule.split(" ", 1) for rule in answer.headers[_POLICY].split("; "))
    assert policy.pop("form-action") == policy.pop("object-src") == "'none'"
    assert all(
        sources.startswith("'self'") and "http" not in sources for sources in policy.values()
    )


@pytest.mark.parametrize(
    "host, origin, path",
    [
        ("evil.example", None, ""),
        ("evil.example:7860", "http://evil.example:7860", "gradio_api/call/save_label"),
        ("127.0.0.1.evil.example", None, "gradio_api/mcp/"),
        ("localhost", "https://evil.example", "gradio_api/call/save_label"),
        ("localhost", "null", "gradio_api/mcp/"),
    ],
)
def test_pages_of_other_sites_do_not_reach_an_app_that_listens_on_loopback(
    app_url, host, origin, path
):
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    data = b'{"data": [3, "taken over"]}' if path else None
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{app_url}{path}", data, headers | _JSON)).close()
    assert refused.value.code == 403


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:7860", "LOCALHOST"])
def test_this_machine_reaches_its_app_by_any_of_its_names_and_through_any_port(app_url, host):
    headers = {"Host": host, "Origin": f"http://{host}"}
    data = b'{"data": [3]}'
    with urlopen(Request(f"{app_url}gradio_api/call/feature", data, headers | _JSON)) as answer:
        assert answer.status == 200


def test_an_app_that_others_may_reach_answers_under_any_name(monkeypatch):
    assert app_hosts(None) == app_hosts("localhost") == {"localhost", "127.0.0.1", "::1"}
    assert app_hosts("0.0.0.0") == app_hosts("192.168.0.7") == frozenset()
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # as on Spaces
    assert app_hosts(None) == frozenset()
    monkeypatch.setenv("GRADIO_SHARE", "True")
    assert app_hosts("127.0.0.1") == frozenset()


def test_a_page_holds_each_field_of_its_address_once_and_begins_with_what_it_shows_first(subject):
    with gr.Blocks():
        pages = [page(Actions(subject)) for page in pages_of(subject).values()]
    for page in pages:
        names = [field.name for field in fields(page.state) if field.name != "run"]
        assert page.names == names and len({*page.inputs}) == len(names)
        assert page.address(*(component.value for component in page.inputs)) == page.first()


@pytest.mark.parametrize(
    "address",
    [
        at.Inspect("a", latent=3, token=1, chat=True, versus="b"),
        at.Feature(3, "a"),
        at.Search("a", "promotes"),
        at.Steer("a", {3: 2.0}, "clamp", "raw", "prompt", False, True, 0.5, 30, 1.5, 7, ("b",)),
        at.Why("a", "b", "c"),
        at.Health("a"),
        at.Map("a"),
        at.Compare("a", "b"),
        at.About(),
    ],
)
def test_an_address_fills_the_fields_that_give_it_back(subject, address):
    with gr.Blocks():
        page = pages_of(subject)[address.tab](Actions(subject))
    filled = page.fill(address)
    assert page.address(*(filled[component] for component in page.inputs)) == address


@pytest.mark.parametrize(
    "query, by, unit, number",
    [
        ("e", "word", "match", r"\d\.\d\d"),
        ("the cat", "fires on", "share of largest", r"\d+ %"),
        ("e", "promotes", "logit a unit", r"\d+\.\d{3}"),
        ("img", "label", "words in common", r"\d+\.\d\d"),
        ("3", "similar to", "cosine", r"-?\d\.\d\d"),
    ],
)
def test_a_search_names_the_unit_of_its_column_and_writes_all_numbers_alike(
    subject, query, by, unit, number
):
    with gr.Blocks():
        page = pages_of(subject)["search"](Actions(subject))
    (drawn,) = page.render(at.Search(query, by)).values()
    assert f"<span>latent</span><span>{unit}</span>" in drawn
    numbers = re.findall(r'<b title="[^"]*">(.*?)</b>', drawn)
    assert numbers and all(re.fullmatch(number, written) for written in numbers)


def test_the_steer_endpoint_has_an_argument_for_each_setting_with_default_and_words(
    subject,
):
    steer = Actions(subject).steer
    prompt, latents, *settings = signature(steer).parameters.values()
    assert (prompt.name, latents.name) == ("prompt", "latents")
    assert [(p.name, p.default) for p in settings] == [
        (n, getattr(at.Steer(), n)) for n in SETTINGS
    ]
    for name in SETTINGS:
        assert f"\n    {name}: " in getdoc(steer)


@pytest.mark.parametrize(
    "address, panels",
    [(a(), []) for a in (at.Feature, at.Search, at.Steer, at.Why, at.Health, at.About)]
    + [(at.Health(text="the cat"), ["health-measured"])],
)
def test_opening_a_page_leaves_alone_what_its_link_does_not_name(
    subject, functions, address, panels
):
    """Else an answer to somebody who presses a button at once could be wiped by the opening."""
    if address == at.Steer():  # an empty one opens with the first preset
        with gr.Blocks():
            address = pages_of(subject)["steer"](Actions(subject)).first()
    link, *drawn = functions["restore"](Visit(opened=address))
    assert link.elem_id == "link" and [part.elem_id for part in drawn] == panels


def test_a_strength_that_is_found_late_takes_nothing_back(functions):
    settings = ("add", "max", "all", True, False, 0.7, 40, 1.1, 16, ())
    found = (at.Steer("the", {3: 1.0}), {3: 2.5})

    def takes(found, prompt: str, latents: dict[int, float]) -> bool:
        drawn = functions["_take"](Visit(strength=found), prompt, latents, *settings)
        return {3: 2.5} in drawn.values()

    assert takes(found, "the", {3: 1.0})
    for latents in ({3: 4.0}, {3: 1.0, 5: 1.0}, {}):
        assert not takes(found, "the", latents)
    assert not takes(found, "a dog", {3: 1.0}) and not takes(None, "the", {3: 1.0})


def test_a_check_that_comes_late_is_not_put_into_another_answer(functions):
    asked = at.Why("the c")
    drawn = functions["restore"](Visit(opened=asked)).values()
    view = next(part for part in drawn if isinstance(part, dict) and "rows" in part)
    latent = view["rows"][-1]["latent"]
    _, checked = functions["_note_check"]((asked, latent, 0.5), view).values()
    rows = [*view["rows"][:-1], view["rows"][-1] | {"ablation": 0.5}]
    assert checked == {**view, "rows": rows, "sentence": summary({**view, "rows": rows})}
    assert checked["sentence"] != view["sentence"]
    (left,) = functions["_note_check"]((at.Why("the d"), latent, 0.5), view).values()
    assert "rows" not in left


MALFORMED = [
    ("/feature", {"latent": D_SAE}, f"there is no latent {D_SAE}"),
    ("/feature", {"latent": -1}, "there is no latent -1"),
    ("/feature", {"latent": "NaN"}, "a latent is a whole number"),
    ("/feature", {"latent": None}, "no latent is chosen"),
    ("/feature", {"latent": {"a": 1}}, "a latent is a whole number"),
    ("/inspect", {"prompt": "x" * 100_000}, "the prompt has 100,000 characters; at most 8,000"),
    ("/inspect", {"prompt": 7}, "the prompt must be text, got a int"),
    ("/inspect", {"prompt": ["the"]}, "the prompt must be text, got a list"),
    ("/inspect", {"prompt": "the", "chat": "yes"}, "chat must be true or false"),
    ("/inspect", {"prompt": "the", "token": 1.5}, "token is 1.5; it must be a whole number"),
    ("/steer", {"prompt": "the", "latents": "3:nan"}, "the strength of latent 3 is nan"),
    ("/steer", {"prompt": "the", "latents": {"3": "inf"}}, "the strength of latent 3 is inf"),
    ("/steer", {"prompt": "the", "latents": [3]}, "latents must be text such as 12:1.5"),
    ("/steer", {"prompt": "the", "latents": "3:1", "temperature": "hot"}, "temperature must be"),
    ("/steer", {"prompt": "the", "latents": "3:1", "seed": -1}, "seed is -1"),
    ("/save_label", {"latent": 3, "label": "x" * 201}, "at most 200 characters"),
    ("/save_label", {"latent": 3, "label": 5}, "the label must be text"),
    ("/save_label", {"latent": 3000, "label": "x"}, "there is no latent 3000"),
    ("/search", {"query": {}, "by": "label"}, "the search must be text"),
    ("/search", {"query": "x", "by": []}, "by is []; it can be word"),
    ("/why", {"prompt": "the", "target": "<b>x</b>"}, "'<b>x</b>' is 8 tokens"),
]


def test_malformed_input_gets_a_sentence_and_the_app_goes_on(running_command):
    """Of the command as people start it, without the type checks of these tests."""
    client = Client(running_command, verbose=False)
    before = client.predict(latent=3, api_name="/feature")["label"]
    for name, arguments, sentence in MALFORMED:
        with pytest.raises(Exception) as error:
            client.predict(**arguments, api_name=name)
        assert sentence in str(error.value), (name, arguments)
    assert client.predict(latent=3, api_name="/feature")["label"] == before


@pytest.mark.parametrize("path", ["gradio_api/call/feature", "gradio_api/mcp/"])
def test_a_deeply_nested_body_is_refused_and_the_app_goes_on(running_command, path):
    body = b'{"data": [%s]}' % (b"[" * 100_000 + b"]" * 100_000)
    headers = _JSON | {"Accept": "application/json, text/event-stream"}
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{running_command}{path}", body, headers)).close()
    assert refused.value.code in (400, 500)
    with urlopen(f"{running_command}config") as answer:
        assert answer.status == 200


def test_view_api_describes_every_argument_and_every_answer(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name in ARGUMENTS:
        view = named[f"/{name}"]
        assert view["description"] and view["returns"][0]["python_type"]["description"]
        for parameter in view["parameters"]:
            assert parameter["python_type"]["description"], (name, parameter)
            assert parameter["label"] == parameter["parameter_name"]
    by = next(p for p in named["/search"]["parameters"] if p["label"] == "by")
    assert by["python_type"]["type"].count("'") == 2 * len(BY) and by["parameter_default"] == "word"
    words = client.view_api(return_format="str", print_info=False)
    assert "'orthogonal'" in words and "a token that their direction makes likelier" in words


def _as_an_agent(url: str, talk: Callable[[Any], Awaitable[Any]]) -> Any:
    """What `talk` returns, which is given a session with the app's tools."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def connected() -> Any:
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            begun = await session.initialize()
            assert begun.instructions == INSTRUCTIONS
            return await talk(session)

    with ThreadPoolExecutor(1) as apart:  # the browser's tests leave a loop in this thread
        return apart.submit(asyncio.run, connected()).result()


def test_the_actions_are_tools_that_agents_can_use_from_their_list_alone(running_command):
    async def talk(session: Any) -> Any:
        return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in _as_an_agent(running_command, talk)}
    assert set(tools) == set(ARGUMENTS)
    named = set(
        re.findall(r"[a-z]+(?:_[a-z]+)+|(?<=with )[a-z]+(?=:|,)", INSTRUCTIONS.partition(LATENT)[0])
    )
    assert named and named <= set(tools)
    for tool in tools.values():
        hints = tool.annotations
        assert tool.title and tool.description.endswith(".") and "Returns: " in tool.description
        assert hints.readOnlyHint == (tool.name != "save_label") == (not hints.destructiveHint)
        assert hints.idempotentHint
        for schema in tool.inputSchema["properties"].values():
            assert schema["description"].endswith("."), (tool.name, schema)
    schemas = tools["steer"].inputSchema["properties"]
    assert schemas["mode"]["enum"] == [*MODES] and schemas["error_term"]["default"] is True
    assert (schemas["temperature"]["minimum"], schemas["temperature"]["maximum"]) == (0, 5)
    assert "or cap" not in schemas["mode"]["description"]  # the last words of the second line
    assert (
        '"similar to" (the index of another'
        in (tools["search"].inputSchema["properties"]["by"]["description"])
    )


def test_tools_answer_in_json(running_command, sae_folder):
    async def talk(session: Any) -> Any:
        first = await session.call_tool("inspect", {"prompt": "the c"})
        given = {name: dict(arguments) for name, arguments in ARGUMENTS.items()}
        given["compare_saes"]["other"] = given["side_by_side"]["other"] = str(sae_folder)
        latent = first.structuredContent["ranking"][0]["latent"]
        given["check_ablation"]["latent"] = latent
        return {name: await session.call_tool(name, given[name]) for name in given}

    answers = _as_an_agent(running_command, talk)
    for name, answer in answers.items():
        assert not answer.isError, (name, answer.content[0].text)
        assert json.loads(answer.content[0].text) == answer.structuredContent, name
        assert "-0.0" not in re.split(r"[ ,\]}]", answer.content[0].text), name
    groups = answers["feature"].structuredContent["groups"]
    examples = [example for group in groups for example in group["examples"]]
    assert examples and all(t["activation"] > 0 for e in examples for t in e["tokens"])
    assert answers["steer"].structuredContent["likelier"] is not None


def test_an_agent_that_wants_to_see_progress_gets_the_same_answer(running_command):
    given = {"prompt": "the", "latents": "3:6", "max_new_tokens": 3}

    async def talk(session: Any) -> Any:
        told = []

        async def progress(*how_far: Any) -> None:
            told.append(how_far)

        plain = await session.call_tool("steer", given)
        return plain, await session.call_tool("steer", given, progress_callback=progress), told

    plain, shown, told = _as_an_agent(running_command, talk)
    assert shown.structuredContent == plain.structuredContent and told


@pytest.mark.parametrize(
    "name, arguments, sentence",
    [
        ("feature", {"latent": 999}, "there is no latent 999"),
        ("feature", {"latent": "three"}, "latent: 'three' is not of type 'integer'"),
        ("steer", {"prompt": "the", "latents": "3:1", "mode": "shake"}, "mode: 'shake' is not one"),
        ("steer", {"prompt": "the", "latents": "3:1", "seed": -1}, "seed: -1 is less than the min"),
        ("steer", {"prompt": "the"}, "'latents' is a required property"),
        ("about", {"prompt": "the"}, "'prompt' was unexpected"),
    ],
)
def test_an_agent_that_errs_is_told_what_and_where(running_command, name, arguments, sentence):
    async def talk(session: Any) -> Any:
        return await session.call_tool(name, arguments)

    answer = _as_an_agent(running_command, talk)
    assert answer.isError and sentence in answer.content[0].text
    assert "Traceback" not in answer.content[0].text
