"""Chat over several turns, unsteered and steered; strengths found for latents that are added."""

import re

import gradio as gr
import pytest
from playwright.sync_api import expect

from hfsae.demo import address as at
from hfsae.demo.actions import Actions
from hfsae.demo.pages.steer import SteerPage, same_turns
from hfsae.demo.steer_actions import check, write
from hfsae.demo.subject import MAX_TURNS

from .conftest import texts

CHAT = "tab=steer&prompt=hi&latents=3:6&chat=1&max_new_tokens=6&run=1"


def test_each_column_of_a_conversation_goes_on_from_its_own_answers(subject):
    earlier = [("hi", "one", "two")]
    plain, steered = ("".join(t.texts) for t in subject.conversations(earlier, "so"))
    assert plain == "<bos>user: hi<bos>user: one<bos>user: so"  # the template of these tests
    assert steered == "<bos>user: hi<bos>user: two<bos>user: so"


def test_the_unsteered_answer_is_that_of_the_unsteered_conversation(subject):
    def answers(earlier, latents):
        how = at.Steer(chat=True, max_new_tokens=8)
        *_, pair = write(subject, *check(subject, "so", latents, how, earlier))
        return pair["plain"], pair["steered"]

    plain, _ = answers([("hi", "one", "two")], "3:8")
    assert plain == answers([("hi", "one", "one")], "3:0")[1]


def test_a_conversation_that_is_too_long_is_refused(subject):
    with pytest.raises(ValueError, match=f"has {MAX_TURNS} turns already; begin another"):
        subject.conversations([("a", "b", "c")] * MAX_TURNS, "so")
    with pytest.raises(ValueError, match=r"the conversation has [\d,]+ tokens; at most 2,048"):
        subject.conversations([("a" * 3000, "b", "c")], "so")


def test_turns_are_written_again_only_under_other_settings_or_after_other_messages():
    exchanges = (("a", "1", "2"), ("b", "3", "4"))
    written = at.Steer("b", {3: 1.0}, chat=True, turns=("a",))
    ask = {"latents": {3: 1.0}, "chat": True}
    assert same_turns(written, exchanges, at.Steer("c", turns=("a", "b"), **ask)) == exchanges
    assert same_turns(written, exchanges, at.Steer("x", turns=("a",), **ask)) == exchanges[:1]
    assert same_turns(written, exchanges, at.Steer("c", turns=("a", "x"), **ask)) == ()
    assert same_turns(written, exchanges, at.Steer("c", turns=("a", "b"), seed=7, **ask)) == ()


def test_a_strength_for_one_latent_leaves_the_others(subject):
    found = Actions(subject).sweep("the cat", {3: 1.5, 5: 1.0}, at.Steer(), only=5)
    assert found["latents"]["3"] == 1.5
    assert found["latents"]["5"] == pytest.approx(found["strength"], abs=1e-3)


def steer_page(subject) -> SteerPage:
    with gr.Blocks():
        return SteerPage(Actions(subject))


def test_chat_is_off_beside_a_story_and_says_why_where_the_model_is_none_for_it(
    subject, monkeypatch
):
    def chat() -> tuple[str, bool]:
        page = steer_page(subject)
        assert not page.first().chat and not page.fields["chat"].value
        assert not page.preset(0, at.Steer(chat=True)).chat, "a preset's prompt is a story"
        return page.fields["chat"].label, page.fields["chat"].interactive

    named = "Chat: off for lm, as by its name it was not trained for conversations"
    assert chat() == (named, True)
    monkeypatch.setattr(subject, "lm_name", "me/tiny-instruct")
    assert chat() == ("Chat: the prompt is a message, answers go on turn by turn", True)
    monkeypatch.setattr(subject.tokenizer, "chat_template", None)
    assert chat() == ("Chat: off for tiny-instruct, as its tokenizer has no chat template", False)


@pytest.mark.browser
def test_a_conversation_goes_on_and_its_link_writes_it_again(visit):
    page = visit(CHAT)
    texts(page)
    for reply in ("so", "why"):
        page.get_by_label("Your next message").fill(reply)
        page.get_by_role("button", name="Send").click()
        page.wait_for_selector(f"#steer-output .hf-message:has-text('{reply}')")
        answers = texts(page)
    messages = page.locator("#steer-output .hf-message").all_inner_texts()
    assert messages == ["hi", "so", "why"] * 2 and len(answers) == 6
    page.wait_for_url(re.compile(r"prompt=why.*turns=%5B%22hi%22%2C%22so%22%5D&run=1"))

    other = visit(page.url.partition("?")[2])
    other.wait_for_selector("#steer-output .hf-message:has-text('why')")
    assert texts(other) == answers
    other.get_by_role("button", name="Begin anew").click()
    other.wait_for_url(re.compile("^(?!.*turns)"))
    expect(other.get_by_label("Prompt", exact=True)).to_have_value("")


@pytest.mark.browser
def test_a_latent_that_is_added_gets_a_strength_and_the_others_keep_theirs(visit):
    page = visit("tab=steer&prompt=the&latents=3:1.5")
    page.wait_for_selector("#steer-chips [data-chip='3']")
    page.get_by_label("Latent", exact=True).last.fill("5")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_selector("#steer-suggestion h2:has-text('latent 5')")
    page.wait_for_url(re.compile(r"latents=3%3A1\.5%2C5%3A(?!1&|1$)"))
