"""The state of the app as a link."""

import pytest

from hfsae.demo import address as at
from hfsae.demo import pages


@pytest.mark.parametrize(
    "address, query",
    [
        (at.Inspect("a & b", latent=3, chat=True), "tab=inspect&prompt=a+%26+b&latent=3&chat=1"),
        (at.Feature(17, "é"), "tab=feature&latent=17&text=%C3%A9"),
        (at.Search("war", "fires on"), "tab=search&query=war&by=fires+on"),
        (
            at.Steer("p", {12: 1.5, 7: -2.0}, temperature=0.0, error_term=False, run=True),
            "tab=steer&prompt=p&latents=12%3A1.5%2C7%3A-2&error_term=0&temperature=0&run=1",
        ),
        (
            at.Steer("how?", chat=True, turns=("é, [1]", "so")),
            "tab=steer&prompt=how%3F&chat=1&turns=%5B%22%C3%A9%2C+%5B1%5D%22%2C%22so%22%5D",
        ),
        (at.Why("p", " Paris", "#12"), "tab=why&prompt=p&target=+Paris&contrast=%2312"),
        (at.Health("a b"), "tab=health&text=a+b"),
        (at.About(), "tab=about"),
    ],
)
def test_a_link_leads_back_to_where_it_was_made(address, query):
    from urllib.parse import parse_qsl

    assert at.to_query(address) == query
    assert at.from_query(dict(parse_qsl(query))) == address


def test_an_emptied_number_is_not_in_the_link():
    assert at.to_query(at.Inspect("a", latent=None)) == "tab=inspect&prompt=a"


def test_every_page_has_a_tab_and_an_address_of_its_own():
    states = [page.state for page in pages.ALL]
    assert len({*states}) == len(states) and {*states} == {*at.Address.kinds.values()} - {at.Query}


def test_without_a_page_it_is_the_first_and_other_keys_are_left_alone():
    assert at.from_query({"prompt": "a", "__theme": "dark"}) == at.Inspect("a")


@pytest.mark.parametrize("key", ["tab", "page"])
def test_a_page_that_there_is_not_is_told(key):
    with pytest.raises(ValueError, match="there is no page 'nonsense'; known: inspect, picture"):
        at.from_query({key: "nonsense", "latent": "abc"})
    with pytest.raises(ValueError, match=r"no page 'nope'; known: search, map$"):
        at.from_query({key: "nope"}, ["search", "map"])
    assert at.from_query({key: "feature", "latent": "3"}) == at.Feature(3)


@pytest.mark.parametrize(
    "query",
    [
        {"tab": "feature", "latent": "x"},
        {"tab": "steer", "latents": "3"},
        {"tab": "inspect", "chat": "maybe"},
        {"tab": "steer", "temperature": "hot"},
        {"tab": "steer", "turns": "[1]"},
        {"tab": "steer", "turns": "[" * 5000},
    ],
)
def test_a_damaged_link_says_so(query):
    with pytest.raises(ValueError, match="this link is damaged"):
        at.from_query(query)


def test_a_text_that_no_page_takes_is_not_in_the_link():
    assert at.to_query(at.Inspect("x" * 100_000)) == "tab=inspect"
