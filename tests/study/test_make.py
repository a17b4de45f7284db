"""What a study shows of latents: windows where they fire, marks by strength, true intruders."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from studies.__main__ import main
from studies.make import items_of, shown_token, visible_marks
from studies.plan import Item, Plan, Refused, StudyArguments

from hfsae.explanations.corpus import CorpusActivations, read
from hfsae.runs import names_apart, run

from ..conftest import every_lm_is
from ..planted_tokens import Planted, plant
from ..tiny import letters_recipe

N_TOKENS, CTX, N_ROWS = 64, 33, 300
ARGS = StudyArguments(n_latents=20, windows=6, window=5, max_density=0.2)


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Latent i fires on token i alone, always as much."""
    rows = torch.randint(1, N_TOKENS - 2, (N_ROWS, CTX), generator=torch.Generator().manual_seed(3))
    rows[:, 0] = 0
    return plant(torch.diag(1.0 + torch.arange(N_TOKENS)), torch.zeros(CTX, N_TOKENS), 0.5, rows)


@pytest.fixture(scope="module")
def reading(planted) -> CorpusActivations:
    order = np.arange(N_TOKENS)
    settings = {"n_directions": 6, "keep_all": False, "seed": 0}
    return read(planted.lm, planted.sae, planted.batches(32), order, **settings)


@pytest.fixture(scope="module")
def items(planted, reading):
    return items_of(reading, ARGS, planted.tokenizer, 0, 2)


def marked(window) -> set[str]:
    return {t for t, m in zip(window.tokens, window.marks, strict=True) if m != "0"}


def test_the_marked_tokens_of_a_latent_are_those_it_fires_on(planted, items):
    latents = [item for item in items if item.kind == "latent"]
    assert len(latents) == len({item.latent for item in latents}) == 20
    for item in latents:
        assert len(item.windows) == 6
        token = planted.tokenizer.decode([item.latent])
        for window in item.windows:
            if item.latent >= len(planted.hostile):  # those are shown in escape sequences
                assert {t.strip() for t in marked(window)} == {token.strip()}
            assert {*window.marks} == {"0", "3"}  # always as much


def test_controls_are_as_many_windows_of_directions_and_others_for_each_sae(
    planted, reading, items
):
    directions = [item for item in items if item.kind == "direction"]
    assert len(directions) == ARGS.n_of("controls") == 2
    assert all(item.latent < 0 and len(item.windows) == 6 for item in directions)
    other = items_of(reading, ARGS, planted.tokenizer, 1, 2)
    theirs = {item.latent for item in other if item.kind == "direction"}
    assert theirs.isdisjoint(item.latent for item in directions)


def test_an_intruder_is_a_window_of_another_latent_where_this_one_is_silent(items):
    intruders = [item for item in items if item.kind == "intruder"]
    assert len(intruders) == 6
    for item in intruders:
        sets = [marked(window) for window in item.windows]
        odd = sets.pop(item.odd)
        assert len(sets) == 4 and all(s == sets[0] for s in sets) and odd != sets[0]
        assert item.other != item.latent
        assert not sets[0] & {*item.windows[item.odd].tokens}


def test_no_intruder_s_window_stands_in_an_earlier_item(planted, reading):
    """Who remembers it would know the answer."""
    args = replace(ARGS, intruders=0.6)
    items = items_of(reading, args, planted.tokenizer, 0, 2)
    intruders = [item for item in items if item.kind == "intruder"]
    assert len(intruders) == 12
    for n, item in enumerate(intruders):
        earlier = [window.tokens for other in intruders[:n] for window in other.windows]
        assert item.windows[item.odd].tokens not in earlier


def test_a_mark_stands_where_a_character_of_several_tokens_does():
    assert visible_marks(["a", "é", "", "b", ""], [0, 1, 3, 2, 0]) == [0, 3, 0, 2, 0]
    assert shown_token(" a\xa0b\n\u2009") == " a b↵ "


def test_too_little_text_is_refused_with_what_would_help(planted, reading):
    with pytest.raises(Refused, match=r"more --n_tokens, or fewer --windows|read more tokens"):
        items_of(reading, StudyArguments(n_latents=60, windows=6), planted.tokenizer, 0, 1)


def test_names_are_the_parts_of_paths_that_differ(tmp_path):
    folders = [tmp_path / arm / "seed_0" / "sae" for arm in ("jumprelu", "topk")]
    assert names_apart(folders) == ["jumprelu", "topk"]
    assert names_apart(folders[:1]) == ["sae"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_lm, tiny_tokenizer):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "sae"
    with pytest.MonkeyPatch.context() as patch:
        every_lm_is(tiny_lm, tiny_tokenizer, patch)
        run(letters_recipe(folder, collect_tokens=0, explain_tokens=0))
    return folder


def test_the_verb_makes_a_study_of_a_run_and_tells_how_it_goes_on(
    trained, tmp_path, tiny_lm, tiny_tokenizer, monkeypatch, capsys
):
    every_lm_is(tiny_lm, tiny_tokenizer, monkeypatch)
    study = tmp_path / "study"
    options = ["--n_latents", "8", "--windows", "4", "--n_tokens", "2500", "--max_density", "0.5"]
    command = ["make", str(trained), "--output_dir", str(study), *options]
    assert main(command) == 0
    plan = Plan.load(study)
    out = capsys.readouterr().out
    assert plan.hash in out and "next: python -m studies rate" in out
    assert [s["name"] for s in plan.saes] == ["sae"] and len(plan.saes[0]["weights_sha256"]) == 64
    assert json.loads((study / "folders.json").read_text()) == {"sae": str(trained)}
    assert main(command) == 2
    assert "holds a study already" in capsys.readouterr().err
    again = ["make", str(trained), "--output_dir", str(tmp_path / "again"), *options]
    assert main(again) == 0
    other = Plan.load(tmp_path / "again")
    assert [facts(item) for item in other.items] == [facts(item) for item in plan.items]
    assert {item.id for item in other.items}.isdisjoint(item.id for item in plan.items)
    assert main(["report", str(study)]) == 0
    assert "is open" in capsys.readouterr().out


def facts(item: Item) -> tuple:
    """What the seed decides of an item: not its id, nor where an intruder's odd window stands."""
    windows = [*item.windows]
    odd = None if item.odd is None else windows.pop(item.odd)
    return item.kind, item.sae, item.latent, item.block, item.other, odd, windows


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["make", "FOLDER", "FOLDER"], "a folder is named twice"),
        (["make", "FOLDER", "--output_dir", "FOLDER"], "is the folder of an SAE; give a study a f"),
        (["make", "FOLDER", "--explained"], "explanations.parquet is missing"),
        (["make", "nowhere"], "nowhere"),
        (["rate", "nowhere"], "no study in 'nowhere': `python -m studies make` makes one"),
    ],
)
def test_bad_input_is_one_sentence(
    argv, sentence, trained, tmp_path, tiny_lm, tiny_tokenizer, monkeypatch, capsys
):
    every_lm_is(tiny_lm, tiny_tokenizer, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main([*(str(trained) if a == "FOLDER" else a for a in argv)]) == 2
    assert sentence in capsys.readouterr().err
