"""The app without a mouse: the focus is seen, is never lost, and every choice takes keys."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PAGE = "[role=tabpanel]:visible"
LISTS = "[role=listbox]:visible"


def test_the_focus_is_seen_and_goes_along_to_another_page(visit):
    page = visit("tab=inspect&prompt=the+cat&token=2")
    page.get_by_role("button", name="Show the whole text's").press("Enter")
    page.wait_for_selector("#inspect-latents h2:has-text('In the whole text')")
    expect(page.locator("#inspect-latents .hf-id").first).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_selector("#feature-main h2:has-text('Latent')")
    expect(page.locator(PAGE)).to_be_focused()
    shown = page.locator(PAGE)
    own = shown.get_by_label("Latent", exact=True), shown.get_by_role("button", name="Previous")
    for part in own:  # a box and a button of Gradio's
        page.keyboard.press("Tab")
        expect(part).to_be_focused()
        expect(part).to_have_css("outline-width", "2px")
        expect(part).to_have_css("outline-style", "solid")


def test_no_step_of_a_slider_is_lost_and_lists_and_panels_keep_the_focus(visit):
    """However fast the steps come; a list closes behind the focus; a button may be gone."""
    page = visit("tab=steer&prompt=the&latents=3:1,4:1")
    slider = page.get_by_label("strength of latent 3, slider")
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile(r"latents=3%3A1\.5"))
    expect(slider).to_be_focused()
    expect(slider).to_have_value("1.5")
    expect(page.get_by_label("strength of latent 3", exact=True)).to_have_value("1.5")

    page.get_by_role("button", name="How to steer").press("Enter")
    mode = page.get_by_label("Mode")
    mode.press("Tab")
    expect(page.get_by_label("Unit of strength")).to_be_focused()
    expect(page.locator(LISTS)).to_have_count(1)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("mode=clamp"))
    expect(mode).to_be_focused()
    expect(page.locator(LISTS)).to_have_count(0)

    page.get_by_role("button", name="remove latent 3").press("Enter")
    expect(page.get_by_role("button", name="remove latent 4")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_selector("#steer-chips .hf-empty")
    expect(page.locator("#steer-chips :focus")).to_have_count(1)
    page.get_by_role("button", name="Hide this").press("Enter")
    expect(page.get_by_role("button", name="show the tour")).to_be_focused()


def test_arrows_lead_from_tab_to_tab_and_from_choice_to_choice(visit):
    page = visit("tab=search&query=e")
    page.get_by_role("tab", name="About").press("ArrowRight")
    expect(page.get_by_role("tab", name="Inspect")).to_be_focused()
    page.get_by_label("a word or a subject").press("ArrowRight")
    choice = page.get_by_label("a token they make more likely")
    expect(choice).to_be_focused()
    expect(choice).to_be_checked()
