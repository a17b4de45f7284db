"""The rating page as people meet it: by keyboard, resumed, several at once, on a phone."""

import re

import pytest
from playwright.sync_api import expect
from studies.answers import open_ledger
from studies.plan import Plan
from studies.report import close

from ..demo.conftest import WAIT
from .conftest import HOSTILE, NAMES, serving

pytestmark = pytest.mark.browser


@pytest.fixture
def visit(browser, study):
    """visit(query, width) -> a page in a context of its own, and all that it got from the server.

    At the end: no script failed, and nothing was refused by the page's policy."""
    contexts, wrong = [], []
    with serving(study) as url:

        def visit(query: str = "", width: int = 1280):
            contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
            page, got = contexts[-1].new_page(), []
            page.set_default_timeout(WAIT)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda m: "Content Security" in m.text and wrong.append(m.text))
            page.on("response", lambda r: got.append(r))
            page.goto(f"{url}{query}")
            return page, got

        yield visit
        for context in contexts:
            context.close()
    assert not wrong


def at(page, number: int) -> None:
    page.locator("#progress", has_text=re.compile(f"^item {number} of ")).wait_for()


def press(page, number: int, key: str = "1") -> None:
    """Answer the item of this number, and see the next one."""
    at(page, number)
    page.keyboard.press(key)
    at(page, number + 1)


def test_a_browser_that_refuses_storage_inside_another_site_rates_with_a_code(browser, study):
    refuse = "get() { throw new DOMException('no', 'SecurityError'); }"
    context = browser.new_context()
    context.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {{ {refuse} }})")
    with serving(study, code="word") as url:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{url}?rater=ada")
        page.locator("#code").fill("word")
        page.keyboard.press("Enter")
        press(page, 1)
        context.close()
    assert len(open_ledger(study, Plan.load(study), "ada").given) == 1


def test_twenty_items_by_keyboard_with_a_reload_and_a_second_rater(visit, study):
    plan = Plan.load(study)
    page, got = visit("?rater=ada")
    for number in range(1, 11):
        press(page, number, "3")
    got.clear()  # a browser forgets what came before a reload
    page.reload()
    other, _ = visit("?rater=bob")
    for number in range(11, 21):
        press(page, number, "2")
        if number < 14:
            press(other, number - 10)
    given = open_ledger(study, plan, "ada").given
    assert [a.item for a in given] == [item.id for item in plan.order("ada")[:20]]
    assert {a.answer for a in given} <= {"no", "maybe", 1, 2}
    assert len(open_ledger(study, plan, "bob").given) == 3
    expect(page.locator("#progress")).to_have_text(re.compile("20 answered"))
    assert (
        page.title() == "Rate windows of text" and HOSTILE in page.locator("#windows").inner_text()
    )

    everything = page.content() + "".join(
        r.text() for r in got if not r.url.endswith(("js", "css"))
    )
    everything += "".join(f"{r.url} {r.headers}" for r in got)
    everything = everything.replace(page.url.partition("?")[0], "")  # its port may hold any digits
    secrets = [
        *NAMES,
        "0.0123",
        "7000",
        "direction",
        "latent",
        "density",
        plan.hash[:16],
        'repeat"',
    ]
    assert not [secret for secret in secrets if secret in everything]


def test_undo_skip_arrows_and_words(visit, study):
    plan = Plan.load(study)
    page, _ = visit("?rater=ada")
    press(page, 1, "s")
    press(page, 2)
    page.keyboard.press("u")
    at(page, 2)
    page.keyboard.press("ArrowLeft")
    at(page, 1)
    page.keyboard.press("ArrowRight")
    at(page, 2)
    order = plan.order("ada")
    number = next(n for n, item in enumerate(order, 1) if n > 1 and item.question == "meaning")
    for before in range(2, number):
        press(page, before)
    page.keyboard.press("/")
    page.keyboard.type("1s us 3")  # keys are text there
    page.keyboard.press("Enter")
    press(page, number, "2")
    answer = open_ledger(study, plan, "ada").latest[order[number - 1].id]
    assert (answer.answer, answer.words) == ("maybe", "1s us 3")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Maybe")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label(re.compile("In a few words"))).to_have_value("1s us 3")


def test_on_a_phone_nothing_is_cut_off_and_a_name_begins(visit, study):
    page, _ = visit(width=390)
    page.get_by_label("Your name").fill("Ada")
    page.get_by_role("button", name="Begin").click()
    at(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#choices button").first.click()
    at(page, 2)
    heights = page.locator("#choices button").evaluate_all("all => all.map(b => b.offsetHeight)")
    assert min(heights) >= 44 and page.url.endswith("?rater=Ada")


def test_a_closed_study_says_so(visit, study):
    page, _ = visit("?rater=ada")
    press(page, 1)
    close(study)
    page.keyboard.press("1")
    expect(page.get_by_role("alert")).to_have_text(re.compile("this study is closed"))
    assert len(open_ledger(study, Plan.load(study), "ada").given) == 1
