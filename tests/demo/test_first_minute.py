"""What a new visitor meets in a headless browser: pages that open with something, and the tour."""

import re

import pytest
from playwright.sync_api import expect

from .conftest import texts

pytestmark = pytest.mark.browser

OPENS = {
    "Feature": "#feature-main h2:has-text('Latent')",
    "Search": "#search-found .hf-id",
    "Why": "#why-effects .hf-id",
    "Steer": "#steer-chips [data-chip]",
}


def test_every_page_opens_with_something_and_a_preset_runs_at_a_click(visit):
    page = visit()
    for title, drawn in OPENS.items():
        page.get_by_role("tab", name=title).click()
        page.wait_for_selector(drawn)
    page.locator("#steer-examples button").first.click()
    texts(page)
    page.wait_for_url(re.compile("tab=steer.*run=1"))


def test_the_tour_leads_from_a_word_to_a_steered_text_and_stays_hidden(visit):
    page = visit()
    steps = page.locator("#tour li button")
    for i, drawn in enumerate(["#inspect-latents h2:has-text('token')", "#feature-main h2"]):
        steps.nth(i).click()
        page.wait_for_selector(drawn)
    steps.nth(2).click()
    texts(page)
    assert page.locator("#tour li.hf-done").count() == 3
    page.get_by_role("button", name="Hide this").click()
    page.reload()
    page.wait_for_selector("#header .hf-top")
    expect(page.locator("#tour")).to_be_hidden()
    page.get_by_role("button", name="show the tour").click()
    expect(page.locator("#tour")).to_be_visible()


def test_on_a_phone_what_a_tap_leads_to_is_in_sight(visit):
    page = visit(width=390)
    page.locator("#tour li button").nth(2).click()
    texts(page)
    expect(page.locator("#steer-output h2").first).to_be_in_viewport()
    page.get_by_role("button", name="Make a picture to share").click()
    expect(page.locator("#steer-share img")).to_be_in_viewport()


def test_a_latent_from_elsewhere_takes_the_place_of_a_preset_and_its_texts_are_written(visit):
    page = visit("tab=steer")
    page.wait_for_selector("#steer-chips [data-chip='0']")
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector("#map-all .hf-ready")  # what the page opens with is there
    page.get_by_label("Highlight", exact=True).fill("e")
    page.get_by_role("button", name="Highlight").click()
    page.locator("#map-found button[data-do=steer]:not([data-at='0'])").first.click()
    page.wait_for_selector("#steer-chips [data-chip]:not([data-chip='0'])")
    assert page.locator("#steer-chips [data-chip]").count() == 1
    texts(page)
    page.wait_for_url(re.compile("run=1"))


def test_enter_in_the_second_text_compares(visit):
    page = visit("tab=inspect&prompt=the+cat")
    page.wait_for_selector("#inspect-text button.hf-token")  # the opening's answer fills boxes
    page.get_by_text("Compare with another text, or set options").click()
    page.get_by_label("Compare with", exact=True).fill("a dog")
    page.get_by_label("Compare with", exact=True).press("Enter")
    page.wait_for_selector("#inspect-comparison .hf-versus li")


def test_enter_runs_and_shift_enter_breaks_the_line(visit):
    page = visit()
    box = page.get_by_label("Text", exact=True).first
    box.fill("the")
    box.press("Shift+Enter")
    box.press_sequentially("cat")
    expect(box).to_have_value("the\ncat")
    box.press("Enter")
    page.wait_for_url(re.compile("prompt=the%0Acat"))
    expect(box).to_have_value("the\ncat")


def test_a_search_for_presets_tells_how_it_ended(visit):
    page = visit("tab=steer")
    page.wait_for_selector("#steer-chips [data-chip]")
    page.get_by_role("button", name="Find presets that work").click()
    page.wait_for_selector("[role=status]:has-text('nothing is written')")
    expect(page.get_by_role("button", name="Find presets that work")).to_be_visible()
