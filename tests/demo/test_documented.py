"""What programs and agents are told of the actions: words, schemas, and answers that fit them."""

import inspect

import jsonschema
import pytest

from hfsae.demo.actions import ENDPOINTS, Actions, Endpoint, docstring
from hfsae.demo.inspect_actions import BY
from hfsae.steering import MODES, SCOPES, UNITS

from .conftest import ARGUMENTS, assert_described

PUBLIC = [endpoint for endpoint in ENDPOINTS if endpoint.queue is not None]


@pytest.fixture(scope="module")
def actions(subject) -> Actions:
    return Actions(subject)


def _properties(name: str) -> dict:
    (endpoint,) = (endpoint for endpoint in PUBLIC if endpoint.name == name)
    return endpoint.input_schema["properties"]


def test_a_docstring_is_taken_apart_with_each_text_in_one_line():
    def action(first: str, second: str) -> dict:
        """One thing: and
        another.

        Args:
            first: a text that
                goes on: here.
            second: one.

        Returns:
            key (int | None, optional): a number
                of things.
        """

    summary, arguments, returns = docstring(action)
    assert summary == "One thing: and another."
    assert {name: words for name, (words, _) in arguments.items()} == {
        "first": "a text that goes on: here.",
        "second": "one.",
    }
    assert returns == {"key": ("a number of things.", "int | None, optional")}
    told = Endpoint(action).answer
    assert told == "an object of JSON with key (int | None, optional): a number of things."


# those that an SAE of text has; test_wordless.py has the others
OF_TEXT = [endpoint for endpoint in PUBLIC if endpoint.name in ARGUMENTS]


@pytest.mark.parametrize("endpoint", OF_TEXT, ids=lambda endpoint: endpoint.name)
def test_every_argument_and_every_key_of_an_answer_is_described(endpoint, actions, sae_folder):
    summary, arguments, _ = docstring(endpoint.function)
    assert summary and endpoint.title and list(arguments) == [*endpoint.signature.parameters]
    given = dict(ARGUMENTS[endpoint.name])
    if "other" in arguments:
        given["other"] = str(sae_folder)
    if endpoint.name == "check_ablation":
        given["latent"] = actions.inspect("the c")["ranking"][0]["latent"]
    answer = getattr(actions, endpoint.name)(**given)
    answer = list(answer)[-1] if inspect.isgenerator(answer) else answer
    assert_described(answer, endpoint)
    jsonschema.validate(given, endpoint.input_schema)


def test_allowed_values_are_in_the_schema_and_are_those_that_are_checked(actions):
    schemas = _properties("steer")
    allowed = {name: schema["enum"] for name, schema in schemas.items() if "enum" in schema}
    assert allowed == {"mode": [*MODES], "unit": [*UNITS], "scope": [*SCOPES]}
    assert _properties("search")["by"]["enum"] == [*BY]
    for name in ("temperature", "max_new_tokens", "repetition_penalty", "seed"):
        for end, beyond in (("minimum", -1), ("maximum", 1)):
            wrong = {name: schemas[name][end] + beyond}
            with pytest.raises(ValueError, match=name):
                list(actions.steer("the", "3:1", **wrong))


def test_only_saving_a_label_changes_anything():
    assert [endpoint.name for endpoint in PUBLIC if endpoint.writes] == ["save_label"]
