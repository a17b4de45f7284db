"""What only reads a command line imports no torch; sites and folders follow what is typed."""

import subprocess
import sys

import pytest

from hfsae.cli.recipes import parse_recipe, recipe_parser
from hfsae.recipe import read_recipe

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "accelerate", "gradio"}
RUN = """\
import sys
from hfsae.cli import main
for command in sys.stdin.read().splitlines():
    code = main(command.split())
    print(code, *sorted({*%r} & {*sys.modules}), sep=" ", file=sys.stderr)
"""
REFUSED = {
    "trian": "closest: 'train'",
    "train quickstart --nonsense 3": "no option '--nonsense'",
    "train quikstart": "closest: 'quickstart'",
    "train nothing.yaml": "there is no recipe 'nothing.yaml'",
    "train quickstart --training.n_tokens x": "must be a whole number, got 'x'",
    "train quickstart --training.learning_rate -1": "positive and finite, got -1",
    "train quickstart --training.output_dir no --lm.name nobody/nothing": "it is not in the cache",
    "train quickstart --training.output_dir no --lm.name ./nowhere": "holds no 'nowhere'",
    "harvest quickstart --nonsense 3": "no option '--nonsense'",
    "compare nothing.yaml": "there is no comparison nothing.yaml",
    "compare --arm.x 3": "no option '--arm.x'",
    "tune quickstart --trails 8": "closest: '--trials'",
    "tune quickstart --trials 1": "trials is 1; it must be 2 or more",
    "explain runs/mine --scores detction": "must be one of 'lexical', 'detection'",
    "explain runs/mine --judged_windows 1": "windows is 1; it must be 2 or more",
    "evaluate runs/mine --evaluation.n_token 5": "closest: '--evaluation.n_tokens'",
    "collect runs/mine --collect.top x": "must be a whole number, got 'x'",
    "study make runs/mine --nonsense 3": "no option '--nonsense'",
    "demo --nonsense": "no option '--nonsense'",
    "demo --port 99999999": "it can be 1 to 65535",
    "list a/b --nonsense": "no option '--nonsense'",
    "verify": "hfsae verify needs SOURCE",
}


def test_a_mistake_in_a_command_is_told_before_torch_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", RUN % HEAVY],
        input="\n".join(["recipes", *REFUSED]),
        capture_output=True,
        text=True,
    )
    assert "quickstart  " in done.stdout
    first, *rest = done.stderr.splitlines()
    assert first == "0", "of `hfsae recipes`"
    for (command, sentence), said, code in zip(REFUSED.items(), rest[::2], rest[1::2], strict=True):
        assert said.startswith("hfsae: error: ") and sentence in said, command
        assert code == "2", command


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
