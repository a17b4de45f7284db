"""Which SAEs there are to compare with, and which may be read."""

import json
import shutil
from dataclasses import replace
from functools import partial

import gradio as gr
import pytest

import hfsae
from hfsae.demo import Choice, open_subject
from hfsae.demo.actions import Actions
from hfsae.demo.health_actions import PACKAGED, place_of, sae_choices
from hfsae.demo.pages import ComparePage
from hfsae.packaged import SHIPPED_SAE


@pytest.fixture
def suite(sae_folder, tmp_path, monkeypatch):
    """runs/ with a run of one SAE and a suite of two, and one that reads wider vectors."""
    monkeypatch.chdir(tmp_path)
    for name in ("single", "suite/a", "suite/b", "wider"):
        shutil.copytree(sae_folder, tmp_path / "runs" / name)
    config = tmp_path / "runs" / "wider" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"d_in": 17}))
    return tmp_path / "runs" / "suite"


def test_runs_and_siblings_of_the_same_width_are_offered_and_not_the_sae_itself(suite, sae_folder):
    subject = open_subject(Choice("runs/suite", subfolder="a"), with_lm=False)
    assert sae_choices(subject) == ["runs/single", "runs/suite/b"]  # the packaged one is wider
    suite.rename(suite.with_name("elsewhere"))
    shutil.rmtree(suite.parent / "single")
    subject = open_subject(Choice("runs/elsewhere", subfolder="b"), with_lm=False)
    assert sae_choices(subject) == ["runs/elsewhere/a"]
    assert Actions(subject).compare_saes("runs/elsewhere/a")["rows"]


def test_a_choice_is_compared_at_a_click(suite, subject):
    with gr.Blocks():
        page = ComparePage(Actions(subject))
    first = page.first()
    assert 'data-to="runs/suite/b"' in page.choices.value
    address = page._choose("other", "", "runs/suite/b", *page.values(first))
    drawn = page.render(address)
    assert address.text == first.text and "cosine of the two" in drawn[page.result]


def test_the_packaged_sae_is_offered_to_those_of_its_width_and_found_by_a_word(tmp_path):
    shutil.copytree(SHIPPED_SAE, tmp_path / "sae")
    subject = open_subject(Choice(str(tmp_path / "sae")), with_lm=False)
    assert sae_choices(subject)[-1] == PACKAGED
    assert place_of(subject, PACKAGED) == Choice(str(SHIPPED_SAE))
    shipped = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    assert PACKAGED not in sae_choices(shipped)


def test_where_only_this_machine_reaches_the_app_any_saes_folder_is_read(
    sae_folder, tmp_path, monkeypatch
):
    elsewhere, here = shutil.copytree(sae_folder, tmp_path / "elsewhere"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    subject = open_subject(Choice(str(sae_folder)), with_lm=False)
    with pytest.raises(
        ValueError, match="folder of an SAE below the one that the app was started in, as others"
    ):
        place_of(subject, str(elsewhere))
    subject.only_here = True
    assert place_of(subject, str(elsewhere)) == Choice(str(elsewhere))
    with pytest.raises(ValueError, match="name the folder of an SAE, or a repository on the Hub"):
        place_of(subject, str(tmp_path))
    monkeypatch.setenv("SPACE_ID", "me/space")
    space = open_subject(Choice(str(sae_folder)), with_lm=False)
    space.only_here = True
    with pytest.raises(ValueError, match="read from here; name a repository on the Hub"):
        place_of(space, str(elsewhere))
    assert sae_choices(space) == []


def test_a_path_below_a_folder_here_is_told_at_once_with_what_is_here(suite, subject, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("hfsae.demo.health_actions.list_files", asked)
    actions = Actions(replace(subject, only_here=True))
    sentence = (
        r"'runs/singel' is not an SAE that can be read from here; name the folder of an SAE, or a "
        r"repository on the Hub as name/repository; these are here: runs/single, runs/suite/a"
    )
    for call in (actions.compare_saes, partial(actions.side_by_side, text="the cat")):
        with pytest.raises(ValueError, match=sentence):
            call(other="runs/singel")
    assert place_of(subject, "me/sae") == Choice("me/sae")
    (suite.parent.parent / "me").mkdir()
    assert place_of(subject, "me/sae") == Choice("me/sae")  # others learn nothing of folders
    with pytest.raises(ValueError, match="'me/sae' is not an SAE that can be read from here"):
        place_of(replace(subject, only_here=True), "me/sae")


def test_a_folder_in_another_librarys_format_is_offered_and_compared(suite, subject):
    hfsae.save_as(subject.sae, suite.parent / "lens", "gemma_scope_2")
    assert "runs/lens" in sae_choices(subject)
    view = Actions(subject).side_by_side("runs/lens", "the cat sat")
    assert view["second"]["fvu"] == pytest.approx(view["first"]["fvu"], abs=1e-5)
    command = "lens has no evaluation.*`hfsae evaluate .*lens --lm.name .* --text.dataset TEXTS"
    with pytest.raises(ValueError, match=command):
        Actions(subject).compare_saes("runs/lens")


def test_an_sae_of_a_suite_on_the_hub_is_named_by_its_path(subject):
    assert place_of(subject, "me/suite/layers.1/width_8k") == Choice(
        "me/suite", "layers.1/width_8k"
    )
    with pytest.raises(ValueError, match="not an SAE that can be read"):
        place_of(subject, "me/suite/../../etc")


def test_a_page_without_saes_to_choose_from_offers_no_choice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject = open_subject(Choice(str(SHIPPED_SAE)), with_lm=False)
    with gr.Blocks():
        page = ComparePage(Actions(subject))
    assert not page.choices.value.strip()
    assert "Name another SAE." in page.result.value
    assert "Name another SAE." in page.render(page.first())[page.result]


def test_metrics_that_are_damaged_are_told(sae_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(sae_folder, tmp_path / "other")
    actions = Actions(open_subject(Choice(str(sae_folder)), with_lm=False))
    for content in ("{", "[]"):
        (folder / "evaluation.json").write_text(content)
        notes = open_subject(Choice(str(folder)), with_lm=False).notes
        assert notes[0].startswith("its evaluation.json is left out: ") and "evaluate" in notes[0]
        with pytest.raises(ValueError, match=r"evaluation\.json of other is damaged"):
            actions.compare_saes("other")


def test_metrics_come_in_one_order_whatever_that_of_their_file(sae_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(sae_folder, tmp_path / "other")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    actions = Actions(open_subject(Choice(str(folder)), with_lm=False))
    for rows in (actions.health()["metrics"], actions.compare_saes(str(folder))["rows"]):
        assert [row["name"] for row in rows][:2] == ["l0", "fvu"]
