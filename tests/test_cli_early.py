"""What only reads a command line imports no torch; sites and folders follow what is typed."""

import subprocess
import sys

import pytest
from docstring_parser import parse_from_object
from transformers import MODEL_MAPPING

from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.models import variants
from hfsae.models.config import own_fields
from hfsae.runs import read_recipe
from hfsae.runs.recipe import declared_variants

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "accelerate", "gradio"}
RUN = """\
import sys
from hfsae.cli import main
for command in sys.stdin.read().splitlines():
    try:
        code = main(command.split())
    except SystemExit as done:  # --help
        code = done.code
    print(code, *sorted({*%r} & {*sys.modules}), sep=" ", file=sys.stderr)
"""
TYPED = "HuggingFaceTB/SmolLM2-135M-Instrukt --training.output_dir no"
SOURCE_VERBS = ("evaluate", "collect", "explain", "probe", "show", "card", "list", "verify", "demo")
SOURCE_VERBS += ("presets", "space")
REFUSED = {
    "trian": "closest: 'train'",
    "train quickstart --nonsense 3": "no option '--nonsense'",
    "train quikstart": "closest: 'quickstart'",
    "train nothing.yaml": "there is no recipe 'nothing.yaml'",
    "train quickstart --training.n_tokens x": "must be a whole number, got 'x'",
    "train quickstart --training.learning_rate -1": "positive and finite, got -1",
    "train quickstart --training.output_dir no --lm.name nobody/nothing": "it is not in the cache",
    "train quickstart --training.output_dir no --lm.name ./nowhere": "holds no 'nowhere'",
    f"train quickstart --lm.name {TYPED}": "closest of those that come in packages: 'HuggingFace",
    f"train quickstart --lm.source packaged --lm.name {TYPED}": "closest: 'HuggingFaceTB/SmolLM2",
    "harvest quickstart --nonsense 3": "no option '--nonsense'",
    "compare nothing.yaml": "there is no comparison nothing.yaml",
    "compare --arm.x 3": "no option '--arm.x'",
    "tune quickstart --trails 8": "closest: '--trials'",
    "tune quickstart --trials 1": "trials is 1; it must be 2 or more",
    "explain runs/mine --scores detction": "must be one of 'lexical', 'detection'",
    "explain runs/mine --judged_windows 1": "windows is 1; it must be 2 or more",
    "evaluate runs/mine --evaluation.n_token 5": "closest: '--evaluation.n_tokens'",
    "collect runs/mine --collect.top x": "must be a whole number, got 'x'",
    "train quickstart --sae.d_saee 5": "sae has no field 'd_saee'; closest: 'd_sae'",
    "train quickstart --sae.nonsense 5": "sae has no field 'nonsense'; `--help_all` lists all",
    "train quickstart --sae.d_sae 4o96": "sae.d_sae must be a whole number, got '4o96'",
    "train quickstart --sae.d_sae -5": "sae.d_sae must be positive, got -5",
    "train quickstart --sae.target_l0 5000": "between 0 and d_sae (4096), got 5000",
    "train quickstart --training.output_dir no --text.dataset no.jsonl": "file is at 'no.jsonl'",
    "train quickstart --training.output_dir no --text.dataset packaged:wikki": "does not exist",
    "train quickstart --sae.k 32": "a jumprelu_sae has no field 'k'; with sae.model_type",
    "train quickstart --sae.model_type topk": "'topk' is unknown; closest: 'topk_sae'",
    "tune quickstart --sae.d_saee 5": "closest: 'd_sae'",
    "probe a/b --nonsense 3": "no option '--nonsense'",
    "probe a/b --n_texts 5": "n_texts is 5; it must be 100 or more",
    "diff runs/mine --nonsense 3": "no option '--nonsense'",
    "diff nowhere": "there is no folder nowhere",
    "presets a/b --nonsense 3": "no option '--nonsense'",
    "presets a/b --max_kl x": "--max_kl must be a number, got 'x'",
    "push a/b c/d --nonsense": "no option '--nonsense'",
    "push a/b mine": "repository must be written as 'name/repository', got 'mine'",
    "convert a/b new --to saelenz": "--to must be one of 'hfsae', 'gemma_scope'",
    **{f"{verb} nowhere": "there is no folder nowhere; a repository" for verb in SOURCE_VERBS},
    "push nowhere me/x": "there is no folder nowhere",
    "show gemma": "there is no folder gemma; `hfsae demo gemma` opens the SAE of that name",
    "convert nowhere new --to saelens": "there is no folder nowhere",
    "show a/b x7": "LATENTS must be a whole number, got 'x7'",
    "explain a/b --latents 17,18": "got '17,18'; leave spaces between several",
    "train quickstart -sae.d_sae 5": "options have two dashes, as '--sae.d_sae'",
    "demo gema": "there is no folder gema; closest: 'gemma'",
    "demo --nonsense": "no option '--nonsense'",
    "demo --port 99999999": "it can be 1 to 65535",
    "list a/b --nonsense": "no option '--nonsense'",
    "verify": "hfsae verify needs SOURCE",
}


def test_a_mistake_in_a_command_is_told_before_torch_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", RUN % HEAVY],
        input="\n".join(["recipes", "train --help", *REFUSED]),
        capture_output=True,
        text=True,
    )
    assert "quickstart  " in done.stdout and "--sae.target_l0" in done.stdout
    first, second, *rest = done.stderr.splitlines()
    assert first == second == "0", "of `hfsae recipes`, and of help"
    for (command, sentence), said, code in zip(REFUSED.items(), rest[::2], rest[1::2], strict=True):
        assert said.startswith("hfsae: error: ") and sentence in said, command
        assert code == "2", command


def docs_of(kind: type) -> list:
    """The texts under the fields that a class declares."""
    return parse_from_object(kind).params if "__annotations__" in vars(kind) else []


def test_fields_that_are_known_from_the_source_are_those_of_the_classes():
    classes = {config.model_type: config for config in variants()}
    for model_type, known in declared_variants().items():
        config = classes.pop(model_type)
        formula = (MODEL_MAPPING[config].__doc__ or "").partition("\n")[0]
        assert known.formula == formula and {*known.fields} == own_fields(config), model_type
        texts = {p.arg_name: p.description for b in config.mro()[::-1] for p in docs_of(b)}
        for name, (kind, default, text) in known.fields.items():
            # the type of "kernel" is an alias, of another room
            assert kind == config.__dataclass_fields__[name].type or name == "kernel", name
            assert default == getattr(config, name, None), name
            assert text == " ".join((texts.get(name) or "").split()), name
    assert not [c for c in classes.values() if c.__module__.startswith("hfsae.")]


@pytest.mark.parametrize(
    ("recipe", "given", "fields"),
    [
        ("quickstart", "--sae.sites layers.1,layers.2", {"sites": ["layers.1", "layers.2"]}),
        ("quickstart", "--sae.sites=layers.1,layers.2", {"sites": ["layers.1", "layers.2"]}),
        ("crosscoder", "--sae.site layers.3", {"site": "layers.3"}),
        ("clt", "--sae.site layers.3", {"site": "layers.3"}),
    ],
)
def test_sites_take_the_place_of_a_recipes_site_and_the_other_way_round(recipe, given, fields):
    argv = [recipe, *given.split(), "--sae.model_type", "jumprelu_sae"]
    sae = parse_recipe(recipe_parser("train"), argv)[0].sae_fields()[""]
    places = ("site", "sites", "target_site", "target_sites")
    assert {name: sae[name] for name in places if name in sae} == fields


def test_a_recipe_at_another_site_has_a_folder_of_its_own():
    def folder(*argv: str) -> str:
        return parse_recipe(recipe_parser("train"), [*argv])[0].training.output_dir

    assert (
        folder("quickstart", "--sae.d_sae", "64") == read_recipe("quickstart").training.output_dir
    )
    assert (
        folder("quickstart", "--sae.site", "layers.3.mlp:in") == "runs/quickstart-layers.3.mlp-in"
    )
    named = ("--training.output_dir", "runs/mine")
    assert folder("quickstart", "--sae.site", "layers.3", *named) == "runs/mine"
