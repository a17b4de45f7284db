"""The `hfsae` command: verbs over the library, one recipe file, errors in one sentence.

main      one command: its verb, its errors, its exit code
table     the list of verbs, with the file of each
source    the options of a verb that measures any SAE, and writes results
files     the verbs of SAEs in files and repositories; `add_source` and `add_choice` name any SAE
recipes   a recipe from a file and the command line
show      what is printed of a folder
parsing   one kind of parser for all verbs
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
