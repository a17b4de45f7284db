"""The verb `hfsae harvest`: activations to files."""

from pathlib import Path

from ..machine.refused import Refused
from .recipes import parse_recipe, recipe_parser, refuse_absent_models


def harvest_verb(argv: list[str]) -> None:
    """`hfsae harvest`: see `VERBS`."""
    parser = recipe_parser("harvest")
    parser.add("--out", type=Path | None, help="the folder to write to")
    recipe, options = parse_recipe(parser, argv)
    if options["out"] is None:
        raise Refused("hfsae harvest needs --out FOLDER, where the files go")
    refuse_absent_models(recipe)
    from ..recipe.harvesting import harvest_to

    written = harvest_to(recipe, options["out"])
    print(f"wrote {options['out']}; the same SAE from it: hfsae train {written}")
