"""An SAE that comes with weights alone: what each page says, and the command that makes more."""

import shlex
import shutil

import gradio as gr
import pytest

from hfsae.cli import main
from hfsae.demo import Choice, address, open_subject
from hfsae.demo.actions import Actions
from hfsae.demo.inspect_actions import latent_map
from hfsae.demo.pages import FeaturePage, HealthPage, InspectPage, MapPage, SearchPage, SteerPage
from hfsae.demo.subject import Subject, how_to_make

from .conftest import TEXTS


@pytest.fixture
def bare(sae_folder, tmp_path) -> Subject:
    """The same SAE without anything beside its weights."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(sae_folder / name, tmp_path / name)
    return open_subject(Choice(str(tmp_path)))


def shown(page_class, subject: Subject, state=None) -> str:
    """All that a page shows at first, as HTML."""
    with gr.Blocks() as blocks:
        page = page_class(Actions(subject))
    drawn = page.render(state or page.first())
    parts = [drawn.get(b, b.value) for b in blocks.blocks.values() if isinstance(b, gr.HTML)]
    return "".join(map(str, parts))


def test_each_page_that_lacks_something_gives_the_whole_command(bare):
    command = how_to_make(bare, "collect")[0]
    lm = bare.sae.config.model_name
    assert command == f"hfsae collect {bare.folder} --lm.name {lm} --text.dataset TEXTS.jsonl"
    for page in (FeaturePage, MapPage, SteerPage):
        assert f"<code>{command}</code>" in shown(page, bare), page
    evaluate = how_to_make(bare, "evaluate")[0]
    assert evaluate == command.replace("collect", "evaluate", 1)
    assert f"<code>{evaluate}</code>" in shown(HealthPage, bare)
    with pytest.raises(ValueError, match=f"`{command}` makes them"):
        shown(SearchPage, bare, address.Search("rain", "word"))
    assert "drawn at random" in shown(SteerPage, bare)
    assert set(latent_map(bare)["points"].split()[2::3]) == {"50"}  # seen, and of no density
    assert "tokens that each latent fires on" not in shown(InspectPage, bare)


def test_the_command_that_is_shown_makes_what_was_how_to_make(bare, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    _, *argv = shlex.split(how_to_make(bare, "collect")[0])
    argv[argv.index("TEXTS.jsonl")] = str(tmp_path / "texts.txt")
    assert main([*argv, "--collect_tokens", "200"]) == 0
    filled = open_subject(Choice(str(tmp_path)), with_lm=False)
    assert how_to_make(filled, "collect") is None and filled.store is not None
    assert "TEXTS.jsonl" not in shown(FeaturePage, filled)


def test_promoted_tokens_are_computed_from_the_model_as_a_collection_has_them(subject, bare):
    collected, computed = Actions(subject).feature(3), Actions(bare).promoted(3)
    for name in ("promoted", "suppressed"):
        assert [t["token"] for t in computed[name]] == [t["token"] for t in collected[name]]
        expected = [pytest.approx(t["logit"], abs=1e-5) for t in collected[name]]
        assert [t["logit"] for t in computed[name]] == expected
    assert "more likely" in shown(FeaturePage, bare)


def test_without_a_model_the_page_says_why_promoted_tokens_are_not_computed(bare):
    bare.loaded = None
    assert "Not computed: this needs the language model" in shown(FeaturePage, bare)


def test_a_repositorys_command_picks_the_same_sae_and_names_what_its_config_lacks(bare):
    bare.choice = Choice("google/gemma-scope-2b-pt-res", layer=12, width="16k", l0=80)
    bare.folder, bare.lm_name, bare.sae.config.site = None, None, None
    command, notes = how_to_make(bare, "collect")
    assert command == (
        "hfsae collect google/gemma-scope-2b-pt-res --layer 12 --width 16k --l0 80 --site SITE "
        "--lm.name MODEL --text.dataset TEXTS.jsonl"
    )
    assert [note.split(":")[0] for note in notes[:3]] == ["SITE", "MODEL", "TEXTS.jsonl"]
    assert notes[-1].startswith("It prints the folder of its results")


def test_an_sae_of_a_run_needs_no_names(bare):
    (bare.folder / "recipe.yaml").write_text("{}\n")
    assert how_to_make(bare, "collect")[0] == f"hfsae collect {bare.folder}"
