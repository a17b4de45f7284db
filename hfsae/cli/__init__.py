"""The `hfsae` command: verbs over the library, one recipe file, errors in one sentence.

main      one command: its verb, its errors, its exit code
table     the list of verbs
verbs     the function of each
recipes   the parser of every verb; a recipe, or an SAE with fields of one, from files and options
show      what is printed of a folder
"""

from typing import TYPE_CHECKING, Any

from .main import main as main

if TYPE_CHECKING:
    from .recipes import parse_recipe as parse_recipe
    from .recipes import recipe_parser as recipe_parser


def __getattr__(name: str) -> Any:
    """Import what scripts read recipes with at its first use: the command alone needs neither."""
    if name not in ("parse_recipe", "recipe_parser"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import recipes

    return getattr(recipes, name)
