"""The page that explains a token: its column adds up to the logit, and its fields hold tokens."""

import copy
import re
from dataclasses import replace

import gradio as gr
import pytest
import torch

import hfsae
from hfsae.demo import Choice, Subject, address, open_subject
from hfsae.demo.actions import Actions
from hfsae.demo.app import build
from hfsae.demo.pages.why import EXAMPLES, WhyPage, effects_panel
from hfsae.demo.why import ALONE, spelling, summary

PARTS = ("shown", "others", "error", "bias", "rest")


@pytest.fixture(scope="module")
def actions(subject: Subject) -> Actions:
    return Actions(subject)


@pytest.fixture
def page(actions: Actions) -> WhyPage:
    with gr.Blocks():
        return WhyPage(actions)


@pytest.mark.parametrize("contrast", [ALONE, "o"])
def test_all_parts_add_up_to_the_logit_and_none_is_counted_twice(actions, subject, contrast):
    view = actions.why("the c", target="a", contrast=contrast)
    ids = subject.tokens("the c", False).batch().input_ids
    logits = subject.exact_lm(input_ids=ids).logits[0, -1]
    value = logits[subject.token_id("a")] - (
        0 if contrast == ALONE else logits[subject.token_id("o")]
    )
    assert view["logit"] == view["total"] == pytest.approx(value.item(), rel=1e-4, abs=1e-5)
    assert sum(view[name] for name in PARTS) == pytest.approx(view["total"])
    effects = hfsae.attribute(
        subject.exact_lm,
        subject.sae,
        {"input_ids": ids},
        target=view["target"]["id"],
        contrast=view["contrast"] and view["contrast"]["id"],
        integration_steps=0,
        ablate=0,
    )
    rows = {row["latent"]: row["value"] for row in view["rows"]}
    assert view["n_others"] == len(effects.latents) - len(rows) > 0
    assert view["shown"] == pytest.approx(sum(rows.values()))
    apart = ~torch.isin(effects.latents, torch.tensor(list(rows)))
    assert view["others"] == pytest.approx(float(effects.gradient[apart].sum()), abs=1e-5)
    assert view["error"] == pytest.approx(effects.error) and view["error"] != 0


def test_without_a_contrast_it_is_the_likeliest_other_token(actions):
    view = actions.why("the c")
    assert view["target"]["id"] == view["next"][0]["id"]
    assert view["contrast"]["id"] == view["next"][1]["id"]
    second = view["next"][1]["token"]
    assert actions.why("the c", target=second)["contrast"]["id"] == view["next"][0]["id"]
    assert actions.why("the c", contrast=ALONE)["contrast"] is None


def test_one_sentence_says_what_speaks_for_it_and_what_against(actions):
    view = actions.why("the c", target="a", contrast="o")
    row = {"label": "", "auto": "", "source": "", "token": " c", "ablation": None}
    rows = [
        {**row, "latent": 1, "value": 0.5, "label": "the sea"},
        {**row, "latent": 2, "value": 0.1, "ablation": 0.9, "auto": '"a" 9%', "fires_on": ["a"]},
        {**row, "latent": 3, "value": -0.2, "auto": "ships", "source": "lm"},
        {**row, "latent": 4, "value": 0.3},
    ]
    view |= {"shown": 0.7, "others": 0.1, "total": 2.0}
    assert summary({**view, "rows": rows}) == (
        "“a” leads “o” by 2.00 logits: the parts of all latents add up to +0.80, the rest "
        "to +1.20. Most for it: latent 2 (fires on “a”) on “c”, +0.90 and latent 1 (the "
        "sea) on “c”, about +0.50. Most against it: latent 3 (ships) on “c”, about -0.20."
    )
    assert summary({**view, "total": -2.0, "rows": rows[2:3]}).startswith("“a” trails “o” by 2.00 ")
    assert summary({**view, "rows": rows[2:3], "contrast": None}) == (
        "“a” has a logit of 2.00: the parts of all latents add up to +0.80, the rest to "
        "+1.20. Most for it: hardly any latent. Most against it: latent 3 (ships) on “c”, about "
        "-0.20."
    )
    view = actions.why("the c", target="a", contrast="o")
    assert f"<p>{view['sentence']}</p>" in effects_panel(view)


def test_of_two_spellings_the_likelier_is_explained_and_said_and_level_tokens_are_told_as_such(
    subject, spaced_tokenizer
):
    lm = copy.deepcopy(subject.lm)
    there = replace(subject, loaded=subject.loaded._replace(lm=lm, tokenizer=spaced_tokenizer))
    actions, plain, spaced = Actions(there), there.token_id("a"), there.token_id(" a")
    assert spaced == 258 != plain
    head = copy.deepcopy(lm.get_output_embeddings().weight)
    lm.get_output_embeddings().weight = head
    ids = there.tokens("the c", False).batch().input_ids
    last = lm.model(ids).last_hidden_state[0, -1].detach()
    for logit, token in ((5.0, spaced), (1.0, plain), (5.05, there.token_id("o"))):
        head.data[token] += (logit - head.data[token] @ last) * last / (last @ last)
    view = actions.why("the c", target="a", contrast="o")
    assert view["target"] == {"token": " a", "id": spaced}
    assert view["sentence"].startswith(
        "“a” is read with a space in front, “␣a”: without it it is another token, 4.0 logits less "
        f"likely (#{plain}). “a” and “o” are about as likely (-0.05 logits): the parts of "
    )
    view = actions.why("the c", target="a", contrast=f"#{plain}")
    assert view["sentence"].split(". ")[1].startswith("“␣a” leads “a” by 4.00 logits")
    assert actions.check_ablation("the c", view["rows"][0]["latent"], "a", f"#{plain}")
    assert actions.why("the c", target=" a")["notes"] == []
    head.data[plain] += 9 * last / (last @ last)
    view = actions.why("the c", target="a", contrast="o")
    assert (view["target"]["id"], view["notes"]) == (plain, [])
    assert (spelling(there, plain), spelling(there, spaced)) == (f"#{plain}", " a")


def test_the_exact_copy_of_a_model_gives_no_warning_of_its_dtype(sae_folder, recwarn):
    subject = open_subject(Choice(str(sae_folder)))
    subject.lm.bfloat16()
    subject.sae.config.model_dtype = "bfloat16"
    Actions(subject).why("the c", target="a")
    assert subject.exact_lm.dtype == torch.float32
    assert not [w for w in recwarn if "dtype" in str(w.message)]


def test_where_a_link_opens_it_the_sign_of_work_is_not_that_which_its_tab_hides(subject):
    config = build(subject).get_config_file()
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    shown = [[names[i] for i in d["show_progress_on"] or []] for d in config["dependencies"]]
    opened = max(shown, key=len)  # all pages at once
    tab = next(on for on in shown if on == ["why-next"])
    assert "why-effects" in opened and not {*tab} & {*opened}


def test_the_figures_as_they_are_shown_add_up_to_the_last_digit(actions):
    text = effects_panel(actions.why("the c", target="a"))
    line, column = text.split('<ol class="hf-rows hf-effects">')
    *parts, total = [float(n) for n in re.findall(r"<b>=? ?([+-]?[\d.]+)</b>", line)]
    assert len(parts) == 5 and round(sum(parts), 2) == total
    rows = re.findall(r"<li>.*?<b>([+-][\d.]+)</b>", column, re.DOTALL)
    *others, below = re.findall(r'<li class="hf-part.*?<b>([+-]?[\d.]+)</b>', column, re.DOTALL)
    assert round(sum(float(n) for n in [*rows, *others]), 2) == float(below) == total


def test_a_token_is_spelt_as_it_is_typed_or_by_its_number(subject):
    spelt = {index: spelling(subject, index) for index in range(len(subject.tokenizer))}
    assert all(subject.token_id(text) == index for index, text in spelt.items())
    assert spelt[subject.token_id("a")] == "a"
    newline = subject.token_id("\n")
    assert spelt[newline] == f"#{newline}"


def test_a_chosen_token_fills_its_field_with_its_text(page, subject):
    a, o = str(subject.token_id("a")), str(subject.token_id("o"))
    chosen = page._choose("target", a, "", "the c", "", "o")
    assert chosen == address.Why("the c", "a", "o")
    assert page._choose("target", o, "", "the c", "a", "o") == address.Why("the c", "o", "")
    assert page._choose("contrast", o, "", "the c", "a", "") == address.Why("the c", "a", "o")
    alone = page._choose("alone", o, "", "the c", "a", "o")  # a second click takes it back
    assert alone == address.Why("the c", "a", ALONE)
    likely = page.actions.why("the c")["next"]
    drawn = page.render(address.Why("the c"))[page.next]
    assert f'data-do="alone" data-at="{likely[1]["id"]}" aria-pressed="true"' in drawn
    assert f'data-do="contrast" data-at="{likely[2]["id"]}" aria-pressed="false"' in drawn


def test_a_link_with_a_tokens_number_works(actions, page, subject):
    a, o = subject.token_id("a"), subject.token_id("o")
    numbered = address.Why("the c", f"#{a}", f"#{o}")
    drawn = page.render(numbered)[page.effects]
    assert drawn == page.render(address.Why("the c", "a", "o"))[page.effects]
    assert page.first() == address.Why(EXAMPLES[0])


@pytest.mark.browser
def test_on_a_phone_the_sum_is_above_the_rows_and_nothing_sticks_out(visit):
    page = visit("tab=why&prompt=the+c", width=390)
    line = page.locator("#why-effects .hf-sum")
    line.wait_for()
    assert "later blocks" in line.inner_text() and "of the two logits" in line.inner_text()
    tops = """() => ['.hf-sum', '.hf-id'].map(
        (part) => document.querySelector(`#why-effects ${part}`).getBoundingClientRect().top)"""
    above, below = page.evaluate(tops)  # of one moment: a page that is drawn moves
    assert above < below
    outside = """() => [...document.querySelectorAll('#why-effects *')].filter(
        (node) => node.getBoundingClientRect().right > innerWidth).length"""
    assert page.evaluate(outside) == 0
    button = page.locator("#why-next button[data-do=target]").nth(2)
    index = button.get_attribute("data-at")
    token = page.locator("#why-next li").nth(2).locator("q").inner_text()
    button.click()
    page.wait_for_selector(
        f"#why-next button[data-do=target][data-at='{index}'][aria-pressed=true]"
    )
    typed = page.get_by_label("Next token", exact=True).input_value()
    assert typed in (token, f"#{index}")
