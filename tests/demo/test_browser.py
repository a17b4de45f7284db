"""The app as people meet it: every screen in a headless browser."""

import contextlib
import re
from collections.abc import Callable

import pytest
from gradio_client import Client
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect

from .conftest import HOSTILE, SPIES, assert_ended_early, texts, unfold

pytestmark = pytest.mark.browser

# each page by its tab, and what is there once it is drawn
SCREENS = {
    "Inspect": "#inspect-text button.hf-token",
    "Feature": "#feature-main h2:has-text('Latent')",
    "Search": "#search-found .hf-id",
    "Map": "#map-found .hf-id",
    "Compare": "#compare-result .hf-empty",
    "Why": "#why-next button[data-do=target]",
    "Steer": "#steer-chips [data-chip]",
    "Health": "#health-main .hf-bars i",
    "About": "#about-card :text('A tiny SAE')",
}
# what an empty page shows first
OPENS = {"Search": "#search-found .hf-id", "Why": "#why-effects .hf-id"}
# An image that cannot be loaded says so after those that were there before it.
AFTER_ERRORS = """new Promise(done => {
    const image = new Image();
    image.onerror = done;
    image.src = "data:,none";
})"""


SHOWN = "[role=tabpanel]:visible"
WIDTHS = "nodes => nodes.map(node => node.offsetWidth)"


def value(page, label: str) -> str:
    return page.get_by_label(label, exact=True).first.input_value()


def insist(act: Callable, seen: Callable) -> None:
    """Act until it is seen: on a busy machine a click may come too early, or too late."""
    for _ in range(10):
        act()
        with contextlib.suppress(PlaywrightTimeout):
            seen()
            return
    raise AssertionError("it was never seen")


def see(page, selector: str, text: str = "") -> None:
    """Wait for what each token draws anew: a selector finds it and loses it, again and again."""
    there = "([s, t]) => [...document.querySelectorAll(s)].some(n => n.textContent.includes(t))"
    page.wait_for_function(there, arg=[selector, text])


def begin(page) -> None:
    """Generate a text that does not end by itself (see serve.py), and see that it has begun."""
    page.get_by_role("button", name="Generate").click()
    see(page, "#steer-output .hf-caret")


def test_from_a_token_to_its_latent_to_a_steered_text_to_a_link(visit):
    page = visit("tab=inspect&prompt=the+cat")
    page.locator("#inspect-text button.hf-token").nth(2).click()
    page.wait_for_selector("#inspect-latents h2:has-text('token 2')")
    row = page.locator("#inspect-latents .hf-id").first
    latent = row.inner_text()
    row.click()
    page.wait_for_selector(f"#feature-main h2:has-text('Latent {latent}')")
    page.wait_for_url(re.compile(f"tab=feature&latent={latent}"))
    page.get_by_role("button", name="Steer it").click()
    page.wait_for_url(re.compile("run=1"))  # the strength found for it is set by now
    chip = page.locator(f"#steer-chips [data-chip='{latent}']")
    chip.get_by_label(f"strength of latent {latent}", exact=True).fill("6")
    chip.get_by_label(f"strength of latent {latent}", exact=True).press("Enter")
    page.wait_for_url(re.compile(f"latents={latent}%3A6"))
    page.get_by_label("Prompt", exact=True).fill("the dog")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#steer-output .hf-text:has-text('the dog') >> nth=1")
    plain, steered = texts(page)
    assert plain.startswith("the dog") and steered.startswith("the dog") and plain != steered
    page.wait_for_url(re.compile("run=1"))

    other = visit(page.url.partition("?")[2])
    assert texts(other) == [plain, steered]
    assert value(other, "Prompt") == "the dog"
    assert value(other, f"strength of latent {latent}") == "6"


def test_settings_are_in_the_link_at_once_and_what_cannot_be_is_told_in_the_page(visit):
    """No answer undoes what is typed meanwhile."""
    page = visit("tab=steer&prompt=the&latents=3:-5")
    page.wait_for_selector("#steer-chips [data-chip='3']")
    unfold(page, "How to steer, and how to draw tokens", "Seed")
    for label, typed, sentence in (
        ("Latent", "1000000000", "there is no latent 1000000000; this SAE has 48"),
        ("Latent", "3", "latent 3 is steered already, with strength -5"),
        ("strength of latent 3", "1000", "the strength of latent 3 is 1000; it can be -20 to 20"),
        ("Seed", "-3", "seed is -3; it can be 0 to 2.14748e+09"),
    ):
        field = page.locator(SHOWN).get_by_label(label, exact=True).last
        field.fill(typed)
        field.press("Enter" if label == "Latent" else "Tab")
        if label == "Seed":
            page.get_by_role("button", name="Generate").click()
        page.wait_for_selector(f'[role=alert]:has-text("{sentence}")')
        expect(page.get_by_label("strength of latent 3", exact=True)).to_have_value("-5")
    page.get_by_label("Mode").click()
    page.get_by_role("option", name="clamp it to a value").click()
    page.get_by_label("number input for New tokens").fill("200")
    page.get_by_label("Seed").fill("7")
    page.wait_for_url(re.compile("mode=clamp&max_new_tokens=200&seed=7"))
    assert value(page, "number input for New tokens") == "200"


def test_two_prompts_are_compared_and_tokens_chosen_by_keyboard(visit):
    page = visit("tab=inspect&prompt=the+cat&versus=a+dog")
    page.wait_for_selector("#inspect-comparison .hf-versus li")
    token = page.locator("#inspect-text button.hf-token").nth(3)
    token.focus()
    token.press("Enter")
    page.wait_for_selector("#inspect-latents h2:has-text('token 3')")
    assert token.get_attribute("aria-pressed") == "true"
    page.go_back()
    page.wait_for_selector("#inspect-latents h2:has-text('In the whole text')")
    page.wait_for_selector("#inspect-comparison .hf-versus li")


def test_a_latents_page_shows_what_is_known_tries_a_text_and_gives_its_direction(visit):
    """The download begins at the first click, and is of the latent shown."""
    page = visit("tab=feature&latent=3&text=the+rain")
    page.wait_for_selector("#feature-tried .hf-token")
    for words in ("fires on", "largest activation", "threshold", "Strongest"):
        assert page.locator("#feature-main", has_text=words).count() == 1
    assert page.locator("#feature-aside .hf-bars i").count() > 0
    page.get_by_text("Use it in Python, or elsewhere").click()
    for latent in (3, 4):
        page.wait_for_selector(f"#feature-main h2:has-text('Latent {latent}')")
        with page.expect_download() as download:
            page.get_by_role("button", name="Its direction as .safetensors").click()
        assert download.value.suggested_filename == f"steering-{latent}.safetensors"
        page.get_by_role("button", name="Next").click()
    page.wait_for_selector("#feature-main h2:has-text('Latent 5')")

    box = page.get_by_label("Latent", exact=True).first
    box.fill("")
    box.press("Enter")
    page.wait_for_selector("#feature-main :text('Give a number')")
    expect(page.locator("#feature-aside .hf-bars")).to_have_count(0)
    for typed in ("", "abc", "99999"):  # Random needs no number
        box.fill(typed)
        page.get_by_role("button", name="Random", exact=True).click()
        expect(box).not_to_have_value(typed)
        page.wait_for_selector(f"#feature-main h2:has-text('Latent {box.input_value()}')")
        page.wait_for_url(re.compile(f"latent={box.input_value()}(&|$)"))


def test_a_text_that_cannot_be_tried_leaves_the_rest_of_the_page(visit):
    page = visit("tab=feature&latent=3&text=" + "the+" * 600)
    page.wait_for_selector("#feature-tried [role=alert]")
    page.get_by_role("button", name="Next").click()
    page.wait_for_selector("#feature-main h2:has-text('Latent 4')")


def test_steer_elsewhere_adds_to_what_is_set_up(visit):
    page = visit("tab=steer&prompt=the+dog&latents=3:2&mode=clamp&seed=7")
    page.wait_for_selector("#steer-chips [data-chip='3']")
    page.get_by_role("tab", name="Feature").click()
    page.wait_for_selector("#feature-main h2")  # a page opens with a latent
    box = page.get_by_label("Latent", exact=True).first
    box.fill("5")
    box.press("Enter")
    page.wait_for_selector("#feature-main h2:has-text('Latent 5')")
    page.get_by_role("button", name="Steer it").click()
    page.wait_for_selector("#steer-chips [data-chip='5']")
    page.wait_for_url(re.compile(r"prompt=the.dog&latents=3%3A2%2C5%3A[\d.]+&mode=clamp&seed=7"))
    assert value(page, "Prompt") == "the dog" and value(page, "strength of latent 3") == "2"


def test_a_label_is_saved_with_its_latent_and_one_that_is_too_long_is_refused(visit):
    page = visit("tab=feature&latent=9")
    page.wait_for_selector("#feature-main h2:has-text('Latent 9')")
    label = page.get_by_label("Label", exact=True)
    label.fill("rain")
    label.press("Enter")
    page.wait_for_selector("#feature-main h2:has-text('Latent 9: rain')")
    page.get_by_role("button", name="Next").click()
    expect(label).to_have_value("")
    page.get_by_role("button", name="Previous").click()
    expect(label).to_have_value("rain")
    label.fill("x" * 201)
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector("[role=alert]:has-text('a label has at most 200 characters')")
    label.fill("")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector("#feature-main h2:text-is('Latent 9')")


def test_nothing_in_a_card_acts_and_what_is_on_its_way_to_an_empty_panel_is_seen(visit):
    page, held = visit("tab=about"), []
    page.wait_for_selector("#about-card :text('A tiny SAE')")
    assert page.locator("#about-card td").all_inner_texts() == ["x", "1"]
    acting = "video, audio, form, input, button, iframe"
    assert page.locator("#about-card").locator(acting).count() == 0
    covering = page.locator("#about-card :text('covered')")
    assert covering.evaluate("node => getComputedStyle(node).position") == "static"

    page.route("**/queue/join*", lambda request: held.append(request))  # a slow machine's request
    page.get_by_role("tab", name="Why").click()
    turning = "n => getComputedStyle(n, '::before').animationName"
    wait = page.locator("#why-next > .wrap")
    expect(wait).to_be_visible()
    assert wait.evaluate(turning) == "hf-turn"
    assert page.locator("#why-next").bounding_box()["height"] >= 90
    page.unroute("**/queue/join*")  # which lets them go
    page.wait_for_selector("#why-effects .hf-id")
    expect(wait).to_be_hidden()


def test_a_button_without_a_text_says_so_and_a_search_leads_to_latents(visit):
    page = visit("tab=about")
    for name, button, sentence in (
        ("Health", "Measure", "there is no text; write a prompt"),
        ("Why", "Explain", "there is no text; write a prompt"),
        ("Search", "Search", "the search is empty; write what to find"),
    ):
        page.get_by_role("tab", name=name).click()
        if name in OPENS:
            page.wait_for_selector(OPENS[name])
            page.locator(f"{SHOWN} textarea").first.fill("")
        page.get_by_role("button", name=button, exact=True).click()
        page.locator(f"{SHOWN} [role=alert]", has_text=sentence).wait_for()
    page.get_by_label("a word or a subject").check()
    page.get_by_label("Search", exact=True).fill("e")
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_url(re.compile("query=e$"))
    page.locator("#search-found .hf-id").first.click()
    page.wait_for_selector("#feature-main h2:has-text('Latent')")


def test_a_label_is_saved_and_found_again(visit, app_url):
    page = visit("tab=feature&latent=9")
    page.wait_for_selector("#feature-main h2:has-text('Latent 9')")
    named = "#feature-main h2:has-text('falling water')"

    def save() -> None:
        page.get_by_label("Label", exact=True).fill("falling water")
        page.get_by_role("button", name="Save").click()

    insist(save, lambda: page.wait_for_selector(named, timeout=10_000))
    found = visit("tab=search&query=water&by=label")
    found.wait_for_selector("#search-found .hf-id:has-text('9')")
    Client(app_url, verbose=False).predict(latent=9, label="", api_name="/save_label")


def test_why_a_token_with_a_contrast_and_a_check(visit):
    page = visit("tab=why&prompt=the+c&target=a&contrast=o")
    page.wait_for_selector("#why-effects h2:has-text('rather than')")
    checks = page.locator("#why-effects button[data-do=ablate]")
    before = checks.count()
    checks.first.click()
    page.wait_for_function(
        "n => document.querySelectorAll('#why-effects button[data-do=ablate]').length < n",
        arg=before,
    )
    page.locator("#why-next button[data-do=target]").nth(2).click()
    page.wait_for_url(re.compile(r"target=(?!a(&|$))"))


def test_health_measures_a_text(visit):
    page = visit("tab=health")
    page.wait_for_selector("#health-main .hf-bars i")
    page.get_by_label("Measure it on your own text").fill("the cat sat on the mat")
    page.keyboard.press("Enter")
    page.wait_for_selector("#health-measured :text('loss on reconstructions')")


def test_what_gets_into_the_page_all_the_same_fetches_and_sends_nothing(browser, app_url):
    """The policy alone, without the sanitiser before it."""
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("requestfinished", lambda request: asked.append((request.url, None)))
    page.on("requestfailed", lambda request: asked.append((request.url, request.failure)))
    page.goto(app_url)
    page.wait_for_selector("#header .hf-top")
    page.evaluate(
        """spies => {
            window.refused = new Set();
            addEventListener("securitypolicyviolation", e => refused.add(e.effectiveDirective));
            document.body.insertAdjacentHTML("beforeend", spies);
            document.forms[document.forms.length - 1].submit();
            return fetch("https://spy.example/f").catch(() => null);
        }""",
        SPIES,
    )
    directives = ["media-src", "form-action", "connect-src", "style-src-elem"]
    # each is reported when the browser comes to it, which may be after the next call
    page.wait_for_function("names => names.every(name => refused.has(name))", arg=directives)
    page.evaluate(AFTER_ERRORS)
    context.close()
    assert {why for url, why in asked if "spy.example" in url} <= {"csp"}


def test_hostile_text_stays_text(visit):
    from urllib.parse import quote

    page = visit(f"tab=inspect&prompt={quote(HOSTILE)}")
    page.wait_for_selector("#inspect-text button.hf-token")
    assert_is_text(page)
    page = visit("tab=search&query=img&by=label")
    page.wait_for_selector("text=onerror >> visible=true")
    assert_is_text(page)
    page.locator("#search-found .hf-id").first.click()
    page.wait_for_selector("#feature-main h2:has-text('Latent 0')")
    page.wait_for_selector("#feature-main :text('onerror')")
    assert_is_text(page)
    page.get_by_role("tab", name="About").click()
    page.wait_for_selector("#about-card :text('A tiny SAE')")
    assert_is_text(page)


def assert_is_text(page) -> None:
    page.evaluate(AFTER_ERRORS)
    assert page.title() != "hit" and page.locator(".hf-panel img, .hf-card img").count() == 0


@pytest.mark.parametrize(
    "query, notice",
    [
        ("tab=feature&latent=x", "this link is damaged: latent is 'x'"),
        ("tab=steer&prompt=the&latents=999:1&run=1", "there is no latent 999"),
    ],
)
def test_what_cannot_be_is_told_in_the_page(visit, query, notice):
    page = visit(query)
    page.wait_for_selector(f'[role=alert]:has-text("{notice}")')


@pytest.mark.parametrize("first", [1280, 390])
def test_every_screen_fits_and_says_in_words_what_each_latent_is(visit, first):
    """Opened on a desktop and on a phone; at the widths between, the window is resized."""
    page = visit("tab=feature&latent=3", width=first)
    assert page.get_by_role("tab").count() == len(SCREENS)
    for tab, drawn in SCREENS.items():
        page.set_viewport_size({"width": first, "height": 900})
        page.get_by_role("tab", name=tab).click()
        if tab == "Map":  # a list stands there once something is highlighted
            page.wait_for_selector("#map-all .hf-ready")
            page.get_by_label("Highlight", exact=True).fill("e")
            page.get_by_role("button", name="Highlight").click()
        page.wait_for_selector(drawn)
        for width in (1280, 1024, 1000) if first == 1280 else (390,):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab, width)
            words = page.locator("li:visible > .hf-what").evaluate_all(WIDTHS)
            assert min(words, default=100) >= 100, (tab, width)


def test_what_is_stopped_says_so_and_another_text_takes_the_place_of_one_under_way(visit, app_url):
    """Stop ends a text on the server, too, and a closed tab leaves no hook."""
    client = Client(app_url, verbose=False)
    page = visit("tab=steer&prompt=the&latents=3:2&max_new_tokens=230")
    page.wait_for_selector("#steer-chips [data-chip='3']")

    begin(page)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("[role=status]:has-text('Stopped after')")
    page.wait_for_selector("text=KL from the model as it is")
    assert page.locator("#steer-output .hf-caret").count() == 0
    assert_ended_early(client)

    begin(page)
    page.get_by_label("Prompt", exact=True).fill("a dog")
    page.get_by_role("button", name="Generate").click()
    see(page, "#steer-output .hf-prompt", "a dog")
    page.get_by_role("button", name="Stop").click()
    assert all(text.startswith("a dog") for text in texts(page))

    begin(page)
    page.close()
    assert_ended_early(client)
    done = client.predict(prompt="the", latents="3:0", max_new_tokens=3, api_name="/steer")
    assert done["plain"] == done["steered"]
