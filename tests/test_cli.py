"""The command as a person meets it: what it prints, and its one sentence for bad input."""

import gc
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from transformers import CONFIG_MAPPING, MODEL_MAPPING

import hfsae
from hfsae.cards import misgivings
from hfsae.cli import main, verbs
from hfsae.cli.recipes import VerbParser, parse_recipe, recipe_parser, verb_parser
from hfsae.cli.table import VERBS
from hfsae.convert import save_as
from hfsae.io.files import read_json
from hfsae.models import variants
from hfsae.runs import (
    as_plain,
    inputs,
    load_trained,
    make_configs,
    preset_search,
    read_recipe,
    run,
)

from .helpers import held_elsewhere, refused, run_python
from .tiny import tiny_recipe

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "scripts" / "recipes" / "quickstart.yaml")


def test_help_names_every_verb_with_what_it_does(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\S", text, re.MULTILINE) for verb in VERBS)
    assert "examples:" in text


def help_of(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_all_of_train_explains_fields_with_units_and_sources(capsys):
    text = " ".join(help_of(["train", "--help_all"], capsys).split())
    assert "--training.warm_start_steps" in text and "BatchTopK" in text
    assert (
        "--sae.l0_coefficient (jumprelu_clt, jumprelu_sae, matryoshka_jumprelu_sae) lambda." in text
        and "--sae.site" in text
    )
    assert "--harvest.max_norm_ratio" in text and "Attention sinks" in text


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_each_verb_is_a_screen_with_what_it_does(verb, capsys):
    text = help_of([verb, "--help"], capsys)
    own = re.sub(r"^variants, by .*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    assert text.startswith(f"usage: hfsae {verb}") and own.count("\n") <= 62
    assert max(map(len, text.splitlines())) <= 100
    everything = help_of([verb, "--help_all"], capsys)
    assert set(re.findall(r"^  (--[\w.]+)", text, re.MULTILINE)) <= {*everything.split()}
    assert help_of([verb, "-h"], capsys) == text


def test_help_of_train_lists_the_variants_with_their_formulas(capsys):
    text = help_of(["train", "--help"], capsys)
    for variant in variants():
        assert re.search(rf"^  {variant.model_type} +\w+ = ", text, re.MULTILINE)
    assert "--help_all" in text and "examples:" in text


class Walk(NamedTuple):
    n_steps: int = 3
    """steps, at most"""
    ways: Sequence[str] = ("up", "left")
    """where to go"""
    is_fast: bool = False
    """run"""


def test_options_of_a_class_have_its_types_defaults_and_explanations():
    parser, ways = VerbParser("walk", "", "Walk."), ["up", "left", "right"]
    named = {"renamed": {"n_steps": "steps"}, "choices": {"ways": ways}}
    parser.add_fields(Walk, "n_steps", "ways", "is_fast", **named)
    assert [" ".join(line.split()) for line in parser.help().splitlines()[-3:]] == [
        "--steps steps, at most (default: 3)",
        "--ways where to go: up, left, right (default: up left)",
        "--is_fast run",
    ]
    options = parser.parse(["--ways", "right", "up", "--steps", "5", "--is_fast"])
    given = parser.take(Walk, options)
    assert given == {"n_steps": 5, "ways": ["right", "up"], "is_fast": True} and options == {}
    assert parser.take(Walk, parser.parse([])) == {}
    with pytest.raises(ValueError, match="--steps must be a whole number, got 'x'"):
        parser.parse(["--steps", "x"])


@pytest.mark.parametrize(
    "verb, others",
    [("evaluate", ["collect.top", "training.n_tokens", "sae.site"]), ("collect", ["shuffle.seed"])],
)
def test_a_verb_explains_only_the_fields_that_it_takes(verb, others, capsys):
    text = help_of([verb, "--help_all"], capsys)
    assert "--text.dataset" in text and not any(f"--{name}" in text for name in others)


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["push", "a"], "hfsae push needs REPO; usage: hfsae push SOURCE NAME/REPOSITORY"),
        (["convert"], "hfsae convert needs SOURCE and DESTINATION and --to; usage: hfsae convert"),
        (["convert", "a", "b", "--to", "c"], "--to must be one of 'hfsae', 'gemma_scope', "),
        (["list", "a", "--jsn"], "hfsae list has no option '--jsn'; closest: '--json'"),
        (["list", "a", "b"], "hfsae list takes no argument 'b'; usage: hfsae list SOURCE"),
        (["verify", "a", "--layer", "x"], "--layer must be a whole number, or null, got 'x'"),
        (["space", "a", "--output"], "--output needs a value"),
        (["demo", "--port", "x"], "--port must be a whole number, or null, got 'x'"),
        (["show", "a", "b"], "LATENTS must be a whole number, got 'b'"),
        (["explain", "a", "--price_in", "x"], "--price_in must be a number, or null, got 'x'"),
        (
            ["explain", "a", "--protocol", "x"],
            "must be one of 'ours', 'paper', got 'x'",
        ),
    ],
)
def test_every_verb_refuses_a_mistake_in_one_sentence(argv, sentence, capsys):
    assert sentence in refused(argv, capsys)


@pytest.mark.parametrize("name", ["quickstart", "gemma2_2b_16k"])
def test_any_recipe_is_trained_as_any_variant(name, tiny_lm, caplog):
    path = ROOT / "scripts" / "recipes" / f"{name}.yaml"
    parser, at = recipe_parser("train"), ["--sae.site", "layers.1", "--sae.target_l0", "7"]
    caplog.set_level("INFO")
    for variant in (v.model_type for v in variants() if not v.is_causal):
        recipe, _ = parse_recipe(parser, [str(path), *at, "--sae.model_type", variant])
        recipe.saes = {}  # at sites that the tiny language model lacks
        caplog.clear()
        (config,) = make_configs(recipe, tiny_lm).values()
        assert config.model_type == variant
        assert (config.k if hasattr(config, "k") else config.target_l0) == 7
        dropped = {"bandwidth", "log_threshold"} & {*recipe.sae} - {*config.to_dict()}
        assert all(name in caplog.text for name in dropped), "what is left out is named"


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["trian"], "unknown verb 'trian'; closest: 'train'"),
        (["train", "quickstrat"], "no recipe 'quickstrat'; closest: 'quickstart'; give"),
        (["train", "nowhere.yaml"], "there is no recipe 'nowhere.yaml'"),
        (["train", RECIPE, "--training.bach_size", "5"], "closest: '--training.batch_size'"),
        (["train", RECIPE, "--training.learning_rat", "1"], "closest: '--training.learning_rate'"),
        (["train", RECIPE, "--training.lr", "1"], "closest: '--training.learning_rate'"),
        (["train", RECIPE, "--training.qqq", "1"], "--training.qqq'; `--help_all` lists all"),
        (["train", RECIPE, "--trainning.seed", "5"], "no option '--trainning.seed'"),
        (["train", RECIPE, "--sae.k", "5"], "a jumprelu_sae has no field 'k'; with sae.model_type"),
        (["train", RECIPE, "--training.n_tokens", "many"], "must be a whole number, got 'many'"),
        (["train", RECIPE, "--training.save_total_limit", "x"], "a whole number, or null, got 'x'"),
        (
            ["train", RECIPE, "--training.learning_rate", "-1"],
            "must be positive and finite, got -1",
        ),
        (["train", RECIPE, "--training.warm_start_steps", "2.5"], "fraction of all steps"),
        (["train", RECIPE, "--evaluation.n_tokens", "-5"], "n_tokens is -5; it must be 0 or more"),
        (["train", RECIPE, "--collect_tokens", "-5"], "collect_tokens must be 0 (to leave"),
        (["train", RECIPE, "--training.n_tokens", "5"], "less than one batch"),
        (["train", RECIPE, "--text.bos", "sometimes"], "text.bos must be 'row' or 'document' or"),
        (["evaluate"], "name the folder or repository of an SAE"),
        (["evaluate", "/nowhere"], "there is no folder /nowhere"),
        (["show", "/nowhere"], "there is no folder /nowhere"),
        (["show", "nope"], "there is no folder nope; a repository on the Hub is named as name/"),
        (["show"], "hfsae show needs SOURCE; usage: hfsae show SOURCE [LATENT ...]"),
        (["card"], "hfsae card needs SOURCE; usage: hfsae card SOURCE"),
        (["train", RECIPE, "--lm.name", str(ROOT / "tests")], "holds no model: it has no config"),
        (["train", RECIPE, "--sae.d_sea", "5"], "closest: 'd_sae'"),
        (["train", RECIPE, "--dry_run", "--sae.d_sea", "5"], "closest: 'd_sae'"),
        (["train", RECIPE, "--shuffle.device", "cuda:99"], "is not here; this machine has 'cpu'"),
        (["train", RECIPE, "--dry_run", "--text.dataset", "no.txt"], "file is at 'no.txt'"),
        (["train", RECIPE, "--training.learning_rate", ".inf"], "positive and finite, got inf"),
        (["train", RECIPE, "--training.adam_epsilon", "-1"], "adam_epsilon must be positive and"),
        (
            ["train", RECIPE, "--training.dead_after_tokens", "0"],
            "dead_after_tokens is 0; it must be 1",
        ),
        (["train", RECIPE, "--collect.top", "0"], "collect.top is 0; it must be 1 or more"),
        (["train", RECIPE, "--shuffle.passes", "0"], "shuffle.passes (0) must be 1 or more"),
        (["train", RECIPE, "--harvest.max_norm_ratio", ".nan"], "harvest.max_norm_ratio is nan"),
        (["train", RECIPE, "--harvest.cache", f"{RECIPE}/below"], "cannot be made or written to"),
        (["train", RECIPE, "--sae.l0_coefficient", ".nan"], "l0_coefficient must be a finite"),
        (["train", RECIPE, "--sae.model_type", "llama"], "model_type 'llama' is unknown"),
        (["train", RECIPE, "--sae.d_sae", "1e12"], "of main memory needed, but this machine has"),
        (["train", RECIPE, "--training.output_dir", str(ROOT)], "something else"),
        (["train", RECIPE, "--text.dataset", ""], "text.dataset is ''; name a file, a folder"),
        (
            ["train", RECIPE, "--sae.model_type", "mine"],
            "import the module of a variant of your own first",
        ),
        (["show", "a", "--import", "not_there"], "--import not_there: ModuleNotFoundError"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(argv, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not where a quickstart may have left its runs/
    assert sentence in refused(argv, capsys)


@pytest.mark.parametrize("verb", ["show", "list", "verify", "evaluate", "card"])
def test_a_mistyped_folder_gets_the_names_beside_it(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    assert refused([verb, "rums"], capsys).startswith("there is no folder rums; closest: 'runs'; a")
    near = "(not a local folder; closest: 'runs/quickstart')"
    assert near in refused([verb, "runs/quikstart"], capsys)
    assert refused([verb, "./rums"], capsys) == "there is no folder ./rums; closest: 'runs'"


def test_lists_of_arguments_may_stand_behind_options():
    parser = verb_parser("show", "SOURCE [LATENT ...]")
    parser.add("source", type=str)
    parser.add("latents", type=int, nargs="*", default=[])
    parser.add("--width", type=str | None)
    parser.add("--shift", type=float, default=0.0)
    parser.add("--all", action="store_true")
    argv = ["--all", "a", "--width", "256", "17", "--shift", "-3", "18", "--import=json"]
    expected = {"source": "a", "latents": [17, 18], "width": "256", "shift": -3.0, "all": True}
    assert parser.parse(argv) == expected
    assert parser.given(["a", "--width", "16k", "7"])["latents"] == [7]
    with pytest.raises(ValueError, match="hfsae show has no option '--wide'"):
        parser.parse(["a", "--wide", "256", "17"])


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("training: {n_token: 5}", "section training has no field 'n_token'; closest: 'n_tok"),
        ("training: [1, 2]", "section training of"),
        ("{", "cannot read the recipe"),
        ("42", "has no sections"),
        ("trainings: {}", "no section 'trainings'; closest: 'training'"),
        ("5: {}", "no section 5; known: lm"),
    ],
)
def test_a_bad_recipe_file_is_named(tmp_path, text, sentence, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert sentence in refused(["train", str(path)], capsys)


def test_a_recipe_that_is_not_text_is_refused(tmp_path, capsys):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00binary")
    assert "cannot read the recipe" in refused(["train", str(tmp_path / "r.yaml")], capsys)


def test_an_unreachable_model_says_what_to_do(tmp_path, capsys):
    argv = ["train", RECIPE, "--lm.name", "nobody/nothing", "--training.output_dir", str(tmp_path)]
    sentence = (
        "model 'nobody/nothing' (not a local folder) cannot be loaded: it is not in the cache"
    )
    assert refused(argv, capsys).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_plan_of_what_the_output_folder_would_refuse(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["train", RECIPE, "--dry_run", "--training.output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "memory" in printed and "it would be refused: the folder" in printed


def test_a_run_with_one_other_setting_is_refused_with_the_option_that_goes_on(tmp_path, capsys):
    fields = ["--training.output_dir", str(tmp_path), "--lm.source", "packaged"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.pt").touch()
    recipe = read_recipe("quickstart")
    recipe.training.output_dir, recipe.lm.source = str(tmp_path), "packaged"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(as_plain(recipe)))
    said = refused(["train", RECIPE, *fields[:2]], capsys)
    assert "give --lm.source 'packaged' to go on with it, or another training.output_dir" in said
    said = refused(["train", RECIPE, *fields[:2], "--seed", "1"], capsys)
    assert "give another training.output_dir, or delete the folder" in said


def test_an_output_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    argv = ["train", RECIPE, "--training.output_dir", str(tmp_path)]
    assert "holds something else" in refused(argv, capsys)


def test_without_arguments_the_command_prints_its_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for word in ("--help", "-h", "help"):
        assert main([word]) == 0 and capsys.readouterr().out == printed
    assert printed.startswith("usage: hfsae VERB")


def test_help_of_a_verb_may_be_asked_for_in_both_orders(capsys):
    printed = []
    for argv in (["help", "verify"], ["verify", "--help"]):
        with pytest.raises(SystemExit):
            main(argv)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "usage: hfsae verify" in printed[0]
    assert "unknown verb 'colect'" in refused(["help", "colect"], capsys)


def test_each_verb_has_its_function():
    for verb in VERBS:
        assert getattr(verbs, f"{verb}_verb").__doc__.startswith(f"`hfsae {verb}`")


def test_without_the_train_extra_the_command_names_it():
    block = (
        "import sys; sys.modules['jsonargparse'] = None; from hfsae.__main__ import main; "
        "sys.exit(main(['card', 'x']))"
    )
    done = run_python(block)
    assert done.returncode == 2 and "pip install 'hfsae[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_numbers_may_be_written_with_an_exponent(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("training: {n_tokens: 2e6, batch_size: 1e3, learning_rate: 1e-3}")
    argv = [str(path), "--shuffle.bucket_tokens", "1e5"]
    recipe, _ = parse_recipe(recipe_parser("train"), argv)
    assert (recipe.training.total_steps, recipe.shuffle.bucket_tokens) == (2000, 100_000)
    assert recipe.training.learning_rate == 1e-3
    assert "n_tokens" in refused(["train", str(path), "--training.n_tokens", "1.5"], capsys)


def test_a_trained_folder_goes_through_the_verbs_that_look_at_it(tmp_path, loads, capsys):
    (folder,) = run(tiny_recipe(tmp_path / "out"))
    made = {name: folder / name for name in ("README.md", "evaluation.json", "features/meta.json")}
    made["README.md"].unlink()
    assert main(["card", str(folder)]) == 0 and "JumpReLU" in made["README.md"].read_text()
    before = {name: path.stat().st_mtime_ns for name, path in made.items()}
    assert main(["collect", str(folder), "--collect_tokens", "300"]) == 0
    after = {name: path.stat().st_mtime_ns for name, path in made.items()}
    assert after["evaluation.json"] == before["evaluation.json"]
    assert after["features/meta.json"] > before["features/meta.json"]
    assert read_json(made["features/meta.json"])["n_tokens"] < 400
    capsys.readouterr()
    assert main(["show", str(folder), "3"]) == 0
    shown = capsys.readouterr().out
    assert "latent 3: " in shown and "promotes" in shown
    assert "there is no latent 99999" in refused(["show", str(folder), "99999"], capsys)


def test_a_comparison_is_made_from_its_file(tmp_path, loads, capsys):
    plain = as_plain(tiny_recipe(tmp_path / "out", sae={"target_l0": 4}, collect_tokens=0))
    del plain["saes"], plain["sae"]["target_l0"]
    arms = {"jumprelu": {"sweep": {"target_l0": [3]}}}
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump({**plain, "arms": arms, "seeds": [0], "at_l0": [3.0]}))
    assert main(["compare", str(path)]) == 0
    report = tmp_path / "out" / "report" / "report.md"
    assert str(report) in capsys.readouterr().out
    assert f"hfsae compare {path}" in report.read_text()
    assert "'relu' is not an arm" in refused(["compare", str(path), "--only", "[relu]"], capsys)


def stopped_at(folder):
    def load(path):
        return 1 / 0 if path == folder else load_trained(path)

    return load


def test_other_settings_for_one_sae_of_several_are_for_all(tmp_path, loads, capsys, monkeypatch):
    """Else recipe.yaml, which is of them all, would be wrong of the others."""
    saes = {"a": {"target_l0": 3}, "b": {"target_l0": 5}}
    folders = run(tiny_recipe(tmp_path / "out", saes=saes, collect_tokens=0))
    n_tokens = [read_json(folder / "evaluation.json")["n_tokens"] for folder in folders]
    assert main(["evaluate", str(folders[1])]) == 0
    assert "all 2 SAEs" not in capsys.readouterr().out
    assert main(["evaluate", str(folders[1]), "--evaluation.n_tokens", "600"]) == 0
    assert f"all 2 SAEs of {tmp_path / 'out'}" in capsys.readouterr().out
    more = [read_json(folder / "evaluation.json")["n_tokens"] for folder in folders]
    assert more[0] == more[1] > n_tokens[0] == n_tokens[1]
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    with monkeypatch.context() as patched:
        patched.setattr("hfsae.runs.stages.load_trained", stopped_at(folders[0]))
        with pytest.raises(ZeroDivisionError):  # when one has its new result, and the other not
            main(["evaluate", str(folders[1]), "--evaluation.n_tokens", "300"])
    assert (tmp_path / "out" / "recipe.yaml").read_text() == recipe, "nobody's settings are lost"
    assert main(["collect", str(folders[0]), "--collect_tokens", "200"]) == 0
    assert main(["evaluate", str(folders[1])]) == 0
    mended = [read_json(folder / "evaluation.json")["n_tokens"] for folder in folders]
    assert mended == more, "the recipe's, of both"


def test_showing_an_sae_alone_says_what_it_is_and_what_to_run(tmp_path, capsys):
    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=1024, site="layers.1", model_name="m")
    hfsae.JumpReLUSAE(config).save_pretrained(tmp_path)
    assert main(["show", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "jumprelu_sae, 1,024 latents, layers.1 of m" in text
    for verb in ("evaluate", "collect"):
        assert f"`hfsae {verb} {tmp_path} --text.dataset TEXT` makes it" in text
    assert "holds no examples" in refused(["show", str(tmp_path), "3"], capsys)


@pytest.mark.parametrize(
    "fields, asked",
    [
        ({"site": "h.1", "model_name": "openai-community/gpt2"}, " --text.dataset TEXT"),
        ({}, " --lm.name MODEL --text.dataset TEXT --site SITE"),
    ],
)
def test_an_sae_of_another_library_is_asked_only_for_what_its_config_leaves_out(
    fields, asked, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sae = hfsae.JumpReLUSAE(hfsae.JumpReLUSAEConfig(d_in=4, d_sae=32, **fields))
    save_as(sae, tmp_path / "saes" / "layer_1", "saelens")
    assert main(["show", "saes", "--layer", "1"]) == 0
    assert f"`hfsae evaluate saes --layer 1{asked}` makes it" in capsys.readouterr().out
    assert f"`hfsae collect saes{asked}` makes it" in refused(["show", "saes", "3"], capsys)


def test_a_damaged_file_is_named_with_what_makes_it_anew(tmp_path, capsys):
    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=32, site="layers.1", model_name="m")
    hfsae.JumpReLUSAE(config).save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("lm: {name: m}")
    for name, remedy in (
        ("evaluation.json", f"`hfsae evaluate {tmp_path}` makes it again"),
        ("training.json", "restore an intact copy"),
        ("config.json", "restore an intact copy"),
    ):
        (tmp_path / name).write_text('{"metrics": {"l0": ')
        said = refused(["show", str(tmp_path)], capsys)
        assert f"{tmp_path / name} is damaged" in said and remedy in said


def test_damaged_weights_are_told_before_the_language_model_is_loaded(tmp_path, capsys):
    config = hfsae.JumpReLUSAEConfig(d_in=4, d_sae=32, site="layers.1", model_name="m")
    hfsae.JumpReLUSAE(config).save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("lm: {name: nobody/nothing}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for verb in ("evaluate", "collect"):
        assert "model.safetensors is damaged" in refused([verb, str(tmp_path)], capsys)
    for verb, field in (("evaluate", "evaluation.n_tokens"), ("collect", "collect_tokens")):
        said = refused([verb, str(tmp_path), f"--{field}", "0"], capsys)
        assert f"{field} is 0, so `hfsae {verb}` would do nothing" in said


def test_verbs_that_write_leave_a_folder_alone_that_another_process_works_in(tmp_path, capsys):
    hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=4, d_sae=8)).save_pretrained(tmp_path / "sae")
    (tmp_path / "recipe.yaml").write_text("lm: {name: nobody/nothing}")
    with held_elsewhere(tmp_path):
        for verb in ("evaluate", "collect", "card"):
            said = refused([verb, str(tmp_path / "sae")], capsys)
            assert f"the folder {tmp_path} is in use by process" in said
    assert not (tmp_path / "sae" / "README.md").exists()


@pytest.mark.parametrize("text", ["{", "- a list"])
def test_a_damaged_recipe_in_the_output_folder_is_one_sentence(tmp_path, text, capsys):
    hfsae.ReLUSAE(hfsae.ReLUSAEConfig(d_in=4, d_sae=8)).save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    said = refused(["train", RECIPE, "--training.output_dir", str(tmp_path)], capsys)
    assert f"{tmp_path / 'recipe.yaml'} is damaged" in said
    assert str(tmp_path / "recipe.yaml") in refused(["evaluate", str(tmp_path)], capsys)


def test_an_unfinished_training_says_how_to_go_on(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000005.pt").write_bytes(b"")
    (tmp_path / "recipe.yaml").write_text("{}")
    said = refused(["show", str(tmp_path)], capsys)
    assert f"is not finished; `hfsae train {tmp_path / 'recipe.yaml'}` resumes it" in said


@pytest.mark.parametrize(
    "values, sentences",
    [
        ({"l0": 51.0, "fvu": 0.2, "dead_share": 0.1}, []),
        ({"l0": 51.0, "side": "validation"}, ["settings may have been chosen"]),
        ({"l0": 57.0, "fvu": 0.2, "dead_share": 0.1}, ["L0 is 57.0, +14% off its target of 50"]),
        ({"l0": 7.0, "fvu": 112.4, "dead_share": 0.986}, ["-86%", "FVU is 112", "99% of latents"]),
    ],
)
def test_what_speaks_against_an_sae_is_said(tmp_path, values, sentences):
    side = values.pop("side", "test")
    metrics = {name: {"value": value} for name, value in values.items()}
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": metrics, "side": side}))
    (tmp_path / "config.json").write_text(json.dumps({"target_l0": 50}))
    found = misgivings(tmp_path)
    assert len(found) == len(sentences)
    assert all(part in said for part, said in zip(sentences, found, strict=True))


@pytest.mark.parametrize(
    "config, l0, sentences",
    [
        (
            {"k": 32, "threshold_rate": 0.01},
            118.0,
            ["+269% off its k of 32: its threshold follows"],
        ),
        ({"k": 32, "threshold_rate": 0.01}, 33.0, ["FVU is 0.3, 3.0 times that at the end"]),
        ({"k": 32}, 20.0, ["off its k of 32: fewer pre-activations than k are above 0"]),
    ],
)
def test_an_l0_far_off_k_is_told_and_the_text_is_not_blamed_for_it(tmp_path, config, l0, sentences):
    metrics = {"l0": {"value": l0}, "fvu": {"value": 0.3}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": metrics, "side": "test"}))
    (tmp_path / "training.json").write_text(json.dumps({"fvu_in_training": 0.1}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = misgivings(tmp_path)
    assert len(found) == 1 and sentences[0] in found[0]


@pytest.mark.parametrize(
    "read, cause",
    [
        (None, "may fit the 8,051 activations it has seen too closely; train on more"),
        ("mine.jsonl", "may fit the 8,051 activations it has seen too closely; train on more"),
        ("other.jsonl", "this text is unlike the training text, so the metrics are not"),
    ],
)
def test_a_far_higher_fvu_is_put_down_to_the_text_only_where_that_is_another(tmp_path, read, cause):
    evaluation = {"metrics": {"fvu": {"value": 0.3}}, "side": "test"}
    if read:
        evaluation["measured_with"] = {"text": {"dataset": read}}
    training = {"fvu_in_training": 0.1, "harvested": {"kept": 8_051}}
    training["text"] = {"dataset": "mine.jsonl"}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "training.json").write_text(json.dumps(training))
    (tmp_path / "config.json").write_text("{}")
    (found,) = misgivings(tmp_path)
    assert cause in found


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_sentence():
    command = [sys.executable, "-u", "-m", "hfsae", "help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr and "make room there" in done.stderr


def test_ctrl_c_says_that_the_same_command_goes_on(own_module, capsys):
    stops = own_module("stops", "raise KeyboardInterrupt\n")  # SIGINT itself may be ignored
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["train", RECIPE, "--import", stops]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # which main() leaves ignored, as it is to end
    assert "run the same command to resume" in capsys.readouterr().err


@pytest.mark.lm
@pytest.mark.slow
@pytest.mark.renders
def test_the_real_model_from_recipe_to_shown_latents(
    tmp_path, packaged_lm, capsys, caplog, monkeypatch
):
    """What scripts/quickstart.sh runs, smaller: the real language model, text and command line.

    In this process, where the language model is at hand: reading it takes seconds.
    """
    monkeypatch.setattr(inputs, "load", lambda args, device=None: packaged_lm)
    short = partial(preset_search.PresetArguments, n_tokens=4)  # of texts that presets are tried on
    monkeypatch.setattr(preset_search, "PresetArguments", short)
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    small = {
        "training.output_dir": folder,
        "training.n_tokens": 10240,
        "sae.d_sae": 1024,
        "training.calibration_tokens": 1024,
        "harvest.rows": 4,
        "shuffle.bucket_tokens": 5120,
        "evaluation.n_tokens": 400,
        "collect_tokens": 2000,
        "explain_tokens": 1500,
        "preset_seconds": 2,
        "lm.source": "packaged",
    }
    argv = ["train", RECIPE, *(str(x) for k, v in small.items() for x in (f"--{k}", v))]
    assert main(argv) == 0
    first = capsys.readouterr()
    for part in ("loss_recovered_mean", "95 % interval", "promotes", "«", "Next:", "hfsae show"):
        assert part in first.out, part
    assert "tok/s" in first.err
    values = {
        line.split()[0]: line.split()[1] for line in first.out.splitlines() if line.split()[1:]
    }
    assert float(values["fvu"]) < 0.6 and float(values["loss_recovered_mean"]) > 0.6
    assert 20 < float(values["l0"]) < 100
    assert main(argv) == 0
    assert capsys.readouterr().out == first.out
    assert "nothing to do" in caplog.text
    assert main(["show", str(folder), "3"]) == 0
    assert "latent 3: fires on" in capsys.readouterr().out
    assert main([*argv, "--dry_run"]) == 0
    planned = capsys.readouterr().out
    assert "memory" in planned and "disk" in planned and "not predicted" in planned


def test_a_folder_of_another_kind_of_model_is_told_from_an_sae(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "holds no SAE in a known format" in refused(["show", str(tmp_path)], capsys)


@pytest.fixture
def forgets_variants():
    """Leave no variant of a test's own behind: other tests go through all there are."""
    yield
    CONFIG_MAPPING._extra_content.pop("shifted_sae", None)
    for config_class in [c for c in MODEL_MAPPING._extra_content if "Shifted" in c.__name__]:
        del MODEL_MAPPING._extra_content[config_class]
    gc.collect()


@pytest.mark.usefixtures("forgets_variants")
def test_a_recipe_names_a_variant_in_a_module_of_ones_own(
    tmp_path, own_module, loads, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own_module(
        "my_variants",
        "import hfsae\n"
        "class ShiftedSAEConfig(hfsae.ReLUSAEConfig):\n"
        "    model_type = 'shifted_sae'\n"
        "class ShiftedSAE(hfsae.ReLUSAE):\n"
        "    config_class = ShiftedSAEConfig\n",
    )
    plain = as_plain(tiny_recipe(tmp_path / "out", collect_tokens=0))
    plain["sae"] = {"model_type": "shifted_sae", "site": "layers.1", "d_sae": 32}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain))
    assert "import the module of a variant of your own first" in refused(
        ["train", "recipe.yaml"], capsys
    )
    assert main(["train", "recipe.yaml", "--import", "my_variants.py"]) == 0
    assert type(load_trained(tmp_path / "out")).__name__ == "ShiftedSAE"
    assert "--import my_variants.py" in read_json(tmp_path / "out" / "training.json")["command"]
