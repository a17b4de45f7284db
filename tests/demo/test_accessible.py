"""Every page by the rules of axe-core, on a phone in the dark and on a desktop in the light; and
all pages are at hand on a phone."""

import json

import pytest

from hfsae.demo.app import pages_of

from .conftest import STILL, texts

pytestmark = pytest.mark.browser

# what a link opens, and what is there once it is drawn
PAGES = {
    "inspect&prompt=the+cat&token=3&versus=a+dog": "#inspect-comparison .hf-versus li",
    "feature&latent=3&text=the+rain": "#feature-list .hf-rows li",
    "search&query=e": "#search-found .hf-id",
    "map&query=e": "#map-found .hf-id",
    "steer&prompt=the&latents=3:4&max_new_tokens=4&run=1": "#steer-output [data-do=share]",
    "steer&prompt=so&latents=3:4&chat=1&max_new_tokens=4&run=1": "#steer-output .hf-message",
    "why&prompt=the+c&contrast=o": "#why-effects .hf-id",
    "health&text=the+cat+sat": "#health-measured dd",
    "compare&text=the+cat&other={sae}": "#compare-result .hf-beside-tokens",
    "about": "#about-card :text('A tiny SAE')",
}
UNFOLD = """() => {
    for (const part of document.querySelectorAll('details')) part.open = true;
    for (const label of document.querySelectorAll('.label-wrap:not(.open)')) label.click();
}"""


@pytest.mark.parametrize("width, theme", [(390, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious_on_any_page(visit, axe, sae_folder, width, theme):
    page = visit("tab=feature&latent=3", width=width)
    page.get_by_role("button", name="Keep latent 3").click()
    address, serious = page.url.partition("?")[0], {}
    for query, drawn in PAGES.items():
        page.goto(f"{address}?tab={query.format(sae=sae_folder)}&__theme={theme}")
        page.wait_for_selector(drawn)
        if "chat" not in query and page.locator("[data-do=share]").count():
            texts(page)
            page.get_by_role("button", name="Make a picture to share").click()
            page.wait_for_selector("#steer-share img")
        page.evaluate(UNFOLD)
        if violations := axe(page):
            serious[query] = violations
    assert not serious, json.dumps(serious, indent=1)


# Of tokens with every share, and of what stands in empty boxes, which axe-core leaves out.
CONTRASTS = """theme => {
    document.body.classList.toggle("dark", theme === "dark");
    const token = (i) => `<span class="hf-token${i > 60 ? " hf-hot" : ""}" style="--h:${i / 100}">
        <span>a</span></span>`;
    const special = "<span class='hf-token hf-special'><span>bos</span></span>";
    const strip = document.createElement("p");
    strip.className = "hf-strip";
    strip.innerHTML = [...Array(101).keys()].map(token).join("") + special;
    document.querySelector("#inspect-text .hf-panel").append(strip);
    const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const luminance = (colours) => {  // of colours from the back to the front
        for (const colour of ["white", ...colours]) {
            pixel.fillStyle = colour;
            pixel.fillRect(0, 0, 1, 1);
        }
        const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const style = (node, pseudo) => getComputedStyle(node, pseudo);
    const ground = (node) =>
        node ? [...ground(node.parentElement), style(node).backgroundColor] : [];
    const contrast = (node, pseudo) => {
        const behind = ground(node);
        const both = [[...behind, style(node, pseudo).color], behind].map(luminance);
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    };
    const boxes = [...document.querySelectorAll("[placeholder]")].map(
        (box) => [box.placeholder, contrast(box, "::placeholder")]);
    const tokens = [...strip.children].map((one, i) => [i, contrast(one.firstElementChild)]);
    return [...boxes, ...tokens].filter(([, ratio]) => ratio < 4.5);
}"""


def test_every_token_and_every_placeholder_has_enough_contrast(visit):
    page = visit("tab=inspect&prompt=the+cat")
    page.wait_for_selector("#inspect-text button.hf-token")
    page.wait_for_function(STILL)
    assert {theme: page.evaluate(CONTRASTS, theme) for theme in ("light", "dark")} == {
        "light": [],
        "dark": [],
    }


def test_on_a_phone_all_pages_are_at_hand_and_stop_stays_in_sight_while_a_text_grows(
    visit, subject
):
    page = visit("tab=steer", width=390)
    facts = page.locator("#header .hf-top > dl")
    assert facts.evaluate("e => e.scrollWidth <= e.clientWidth"), "nothing of the header is cut"
    tabs = page.get_by_role("tab")
    assert tabs.count() == len(pages_of(subject))
    for tab in tabs.all():
        box = tab.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24

    page.wait_for_selector("#steer-stop")
    page.evaluate("""() => {
        const caret = document.createElement("span");
        caret.className = "hf-caret";  // what a text that grows ends with
        document.querySelector("#steer-chips").append(caret);
        scrollTo(0, document.body.scrollHeight);
    }""")
    box = page.locator("#steer-stop").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"]
