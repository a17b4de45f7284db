"""What a new visitor meets in a headless browser: pages that open with something, and the tour."""

import re
from collections.abc import Callable
from functools import partial

import pytest
from playwright.sync_api import expect

from .conftest import texts, unfold

pytestmark = pytest.mark.browser

OPENS = {
    "Feature": "#feature-main h2:has-text('Latent')",
    "Search": "#search-found .hf-id",
    "Why": "#why-effects .hf-id",
    "Steer": "#steer-chips [data-chip]",
}


def test_every_page_opens_with_something_and_a_preset_runs_at_a_click_without_an_error(visit):
    opened, errors = visit(), []
    page = opened.context.new_page()
    page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
    page.goto(opened.url)
    for title, drawn in OPENS.items():
        page.get_by_role("tab", name=title).click()
        page.wait_for_selector(drawn)
    page.locator("#steer-examples button").first.click()
    texts(page)
    page.wait_for_url(re.compile("tab=steer.*run=1"))
    assert not errors


def test_the_tour_leads_from_a_word_to_a_steered_text_and_it_and_the_theme_are_remembered(visit):
    page = visit()
    steps = page.locator("#tour li button")
    for i, drawn in enumerate(["#inspect-latents h2:has-text('token')", "#feature-main h2"]):
        steps.nth(i).click()
        page.wait_for_selector(drawn)
    steps.nth(2).click()
    texts(page)
    assert page.locator("#tour li.hf-done").count() == 3
    page.get_by_role("button", name="Hide this").click()
    was_dark = page.evaluate("document.body.classList.contains('dark')")
    page.get_by_role("button", name="switch between light and dark").click()
    switched = f"document.body.classList.contains('dark') != {str(was_dark).lower()}"
    page.wait_for_function(switched)
    page.reload()
    page.wait_for_selector("#header .hf-top")
    page.wait_for_function(switched)
    expect(page.locator("#tour")).to_be_hidden()
    page.get_by_role("button", name="show the tour").click()
    expect(page.locator("#tour")).to_be_visible()


def top(page, selector: str) -> float:
    """How far below the screen's top it begins."""
    return page.locator(selector).first.bounding_box()["y"]


def test_on_a_phone_the_first_result_is_in_the_first_screen_and_the_next_visit_has_no_tour(visit):
    page = visit(width=390)
    page.wait_for_selector("#inspect-text section")
    assert top(page, "#inspect-text section") < 680
    later = page.context.new_page()  # the same browser
    later.set_viewport_size({"width": 390, "height": 844})
    later.goto(page.url.partition("?")[0] + "?tab=why&prompt=the+c")
    later.wait_for_selector("#why-effects h2")
    expect(later.locator("#tour")).to_be_hidden()
    assert top(later, "#why-next section") < 560 and top(later, "#why-effects section") < 800
    expect(later.locator("#why-next .hf-more li").first).to_be_hidden()  # but for the likeliest
    expect(later.get_by_role("button", name="show the tour")).to_be_visible()


def test_the_link_is_copied_and_enter_compares_and_a_chosen_word_leads_to_its_latent(visit):
    """Words are explained in place; the tour's second step opens the word's first latent."""
    page = visit("tab=inspect&prompt=the+cat")
    page.wait_for_selector("#inspect-text button.hf-token")  # the opening's answer fills boxes
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="copy link").click()
    page.wait_for_selector("button:has-text('Link copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    here = "It opens on this machine only, while this app runs."
    expect(page.locator("#header .hf-copied")).to_have_text(here)
    reach = "hfsae.reach('me-sae.hf.space')"
    assert page.evaluate(reach) == here.replace(
        "on this machine only", "wherever me-sae.hf.space can be reached"
    )
    page.get_by_text("What do these words mean?").click()
    for word in ("SAE", "latent", "L0", "FVU", "KL", "repetition"):
        expect(page.locator(f".hf-words dt:text-is('{word}')")).to_be_visible()

    unfold(page, "Compare with another text, or set options", "Compare with")
    page.get_by_label("Compare with", exact=True).fill("a dog")
    page.get_by_label("Compare with", exact=True).press("Enter")
    page.wait_for_selector("#inspect-comparison .hf-versus li")

    page.locator("#inspect-text button.hf-token:not([disabled])").nth(2).click()
    page.wait_for_selector("#inspect-latents h2:has-text('token')")
    first = page.locator("#inspect-latents [data-do=open]").first.get_attribute("data-at")
    page.locator("#tour li button").nth(1).click()
    page.wait_for_selector(f"#feature-main h2:has-text('Latent {first}')")


def test_a_preset_takes_the_place_of_one_whose_text_is_under_way(visit):
    page = visit("tab=steer&max_new_tokens=230")  # ends only where somebody ends it
    preset = page.locator("#steer-examples [data-do=example]").first
    preset.click()
    page.wait_for_function("() => document.querySelector('#steer-output .hf-caret') !== null")
    unfold(page, "How to steer, and how to draw tokens", "Seed")
    page.get_by_label("number input for New tokens").fill("20")
    page.get_by_label("number input for New tokens").press("Tab")
    page.wait_for_url(re.compile("max_new_tokens=20(&|$)"))
    preset.click()
    texts(page)


def test_quick_clicks_are_all_answered(visit):
    page = visit("tab=feature&latent=3")
    page.wait_for_selector("#feature-main h2:has-text('Latent 3')")
    page.get_by_role("button", name="Next").evaluate(
        "button => { for (let i = 0; i < 12; i++) button.click(); }"
    )
    page.wait_for_selector("#feature-main h2:has-text('Latent 15')")
    page.wait_for_url(re.compile("latent=15$"))
    page.evaluate("() => document.querySelectorAll('#tour li button').forEach(b => b.click())")
    texts(page)


def held_back(page, click: Callable[[], None]) -> Callable[[], None]:
    """Click; the request of its event leaves the browser when the returned function is called."""
    held: list = []

    def is_of_the_click(request) -> bool:
        """Its data have the number of the click; other events may still be under way."""
        return re.search(r'"\d+( [a-z]+"|","\d)', request.post_data or "") is not None

    def hold(route) -> None:
        if held or not is_of_the_click(route.request):
            route.continue_()
        else:
            held.append(route)

    page.route("**/queue/join*", hold)
    with page.expect_request(is_of_the_click):
        click()
    return lambda: held[0].continue_()


def assert_stays_on_search(page, release: Callable[[], None], tab: str, drawn: str) -> None:
    """Open the page Search: it stays open when an earlier click is answered, on another tab."""
    page.get_by_role("tab", name="Search").click()
    page.wait_for_selector("#search-found .hf-id")
    release()
    link = "document.querySelector('#link textarea, #link input').value"
    page.wait_for_function(f"() => {link}.startsWith('tab={tab.lower()}')")
    page.locator("#search-examples button").first.click()  # one more answer, on this page
    page.wait_for_url(re.compile("tab=search"))
    expect(page.get_by_role("tab", name="Search")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name=tab).click()
    page.wait_for_selector(drawn)


def test_a_late_answer_about_the_page_that_was_left_does_not_bring_it_back(visit):
    """Neither that to a latent's button, nor that to a button which was to lead elsewhere."""
    page = visit("tab=feature&latent=3")
    page.wait_for_selector("#feature-main h2:has-text('Latent 3')")
    release = held_back(page, page.get_by_role("button", name="Next").click)
    assert_stays_on_search(page, release, "Feature", "#feature-main h2:has-text('Latent 4')")
    release = held_back(page, page.get_by_role("button", name="Steer it").click)
    assert_stays_on_search(page, release, "Steer", "#steer-chips [data-chip='4']")


def test_a_click_on_a_tab_takes_the_place_of_a_click_that_was_to_lead_elsewhere(visit):
    page = visit("tab=inspect&prompt=the+cat")
    latent = page.locator("#inspect-latents [data-do=open]").first
    shown = f"#feature-main h2:has-text('Latent {latent.get_attribute('data-at')}')"
    assert_stays_on_search(page, held_back(page, latent.click), "Feature", shown)
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect-latents [data-do=open]").nth(1).click()  # the next click leads again
    page.wait_for_url(re.compile("tab=feature"))


def test_what_is_typed_early_stays_and_enter_runs_where_shift_enter_breaks_the_line(visit):
    page = visit()
    page.get_by_role("tab", name="Steer").click()
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("the dog")
    page.wait_for_url(re.compile("tab=steer"))
    page.get_by_role("tab", name="Search").click()
    page.wait_for_selector("#search-found .hf-id")
    page.get_by_role("tab", name="Steer").click()
    expect(prompt).to_have_value("the dog")

    page.get_by_role("tab", name="Inspect").click()
    box = page.get_by_label("Text", exact=True).first
    box.fill("the")
    box.press("Shift+Enter")
    box.press_sequentially("cat")
    expect(box).to_have_value("the\ncat")
    box.press("Enter")
    page.wait_for_url(re.compile("prompt=the%0Acat"))
    expect(box).to_have_value("the\ncat")


def test_a_typed_latent_takes_the_place_of_a_preset_and_old_texts_say_that_they_are(visit):
    page = visit("tab=steer")
    page.wait_for_selector("#steer-chips [data-chip='0']")
    page.locator("#steer-examples button").first.click()
    texts(page)
    stale = page.locator("#steer-output .hf-only-stale")
    expect(stale).to_be_hidden()
    new = page.locator("#tab-steer, [role=tabpanel] >> visible=true").get_by_label("Latent").last
    new.fill("5")
    new.press("Enter")
    page.wait_for_selector("#steer-chips [data-chip='5']")
    assert page.locator("#steer-chips [data-chip]").count() == 1
    page.wait_for_selector("#steer-suggestion .hf-best")
    page.wait_for_selector("#steer-output h2:has-text('Steered: latent 5 at')")
    texts(page)
    page.wait_for_url(re.compile("run=1"))
    expect(stale).to_be_hidden()
    page.get_by_label("strength of latent 5", exact=True).fill("3")
    page.get_by_label("strength of latent 5", exact=True).press("Tab")
    expect(stale).to_be_visible()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the link").click()
    page.wait_for_selector("button:has-text('Link copied')")
    link = page.evaluate("navigator.clipboard.readText()")  # of the texts, not of what is set now
    assert link.endswith("run=1") and "latents=5%3A3" not in link


def test_a_trial_is_the_beginning_of_the_text_at_its_strength(visit):
    page = visit("tab=steer&prompt=the&latents=3:0.5&max_new_tokens=30&seed=5")
    page.wait_for_selector("#steer-chips [data-chip='3']")
    page.get_by_role("button", name="Find a strength").click()
    page.wait_for_selector("#steer-suggestion :text('within the budget')")
    page.wait_for_url(re.compile(r"latents=3%3A(?!0\.5)"))
    expect(page.get_by_label("strength of latent 3", exact=True)).not_to_have_value("0.5")
    begun = page.locator("#steer-suggestion .hf-best .hf-text").inner_text()
    steered, ascii_of = texts(page)[1], partial(re.sub, r"[^ -~]", "")  # bytes are spelt otherwise
    assert len(ascii_of(begun)) > 8 and ascii_of(steered).startswith(ascii_of(begun))


def test_on_a_phone_what_a_tap_leads_to_is_in_sight(visit):
    page = visit(width=390)
    page.locator("#tour li button").nth(2).click()
    texts(page)
    expect(page.locator("#steer-output h2").first).to_be_in_viewport()
    page.get_by_role("button", name="Make a picture to share").click()
    expect(page.locator("#steer-share img")).to_be_in_viewport()
    page.evaluate("scrollTo(0, 0)")
    page.locator("#steer-examples [data-do=example]").first.click()
    expect(page.locator("#steer-output h2").first).to_be_in_viewport()


def test_a_command_finds_presets_and_a_latent_from_elsewhere_replaces_a_preset(visit):
    page = visit("tab=steer")
    page.wait_for_selector("#steer-chips [data-chip='0']")
    page.get_by_text("How to get presets that work").click()
    expect(page.locator("#steer-examples code")).to_contain_text("hfsae presets ")
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector("#map-all .hf-ready")  # what the page opens with is there
    page.get_by_label("Highlight", exact=True).fill("e")
    page.get_by_role("button", name="Highlight").click()
    page.locator("#map-found button[data-do=steer]:not([data-at='0'])").first.click()
    page.wait_for_selector("#steer-chips [data-chip]:not([data-chip='0'])")
    assert page.locator("#steer-chips [data-chip]").count() == 1
    texts(page)
    page.wait_for_url(re.compile("run=1"))
