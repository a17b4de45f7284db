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
