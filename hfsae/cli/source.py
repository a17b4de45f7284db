"""The options of every verb that takes any SAE: the SAE, its language model and text, its folder.

`add_sae` adds them, `find` reads them; fields of a recipe come by `add_sections`.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.errors import refuse_absent_source
from ..io.files import printable
from ..runs import Sections
from .files import SOURCE, add_choice, add_site, add_source
from .parsing import VerbParser
from .recipes import add_output, add_sections

if TYPE_CHECKING:
    from ..runs import SAEInContext

_CHOICE = ("source", "subfolder", "layer", "width", "l0", "revision")


def add_sae(parser: VerbParser, *sections: str) -> None:
    """Add SOURCE, the options that choose one of its SAEs, the folder of results, and the fields of
    sections of a recipe."""
    add_source(parser)
    add_output(parser)
    add_site(parser)
    add_sections(parser, sections)


def add_saes(parser: VerbParser, *sections: str) -> None:
    """Add SOURCE ..., and the other options of `add_sae` without the folder of results."""
    parser.add("sources", type=str, nargs="+", help=f"each a {SOURCE}")
    parser.checks["sources"] = refuse_absent_source
    parser.add("--revision", type=str | None, help="branch, tag or commit of repositories")
    add_choice(parser)
    add_site(parser)
    add_sections(parser, sections)


def add_folders(parser: VerbParser) -> None:
    """Add --output_dir for the results of SAEs of several sources."""
    parser.add(
        "--output_dir",
        type=str | None,
        help="folder for an SAE from elsewhere and its results; of several, for a folder of each "
        "(default: runs/NAME)",
    )


def take_choice(options: dict[str, Any]) -> dict[str, Any]:
    """Which SAE: its options, taken out of all, as arguments of `hfsae.load`."""
    from ..runs import chosen  # takes seconds, as does `find_saes`

    return chosen(**{name: options.pop(name) for name in _CHOICE if name in options})


def command_of(verb: str, options: dict[str, Any], given: Sections) -> str:
    """The command that does the same as these options do with another verb."""
    choice = take_choice({**options})
    lm = {f"lm.{name}": value for name, value in given.get("lm", {}).items()}
    named = {**choice, "output_dir": options["output_dir"], "site": options["site"], **lm}
    source = named.pop("source")
    words = [word for k, v in named.items() if v is not None for word in (f"--{k}", str(v))]
    return shlex.join(["hfsae", verb, source, *words])


def find(options: dict[str, Any], given: Sections) -> "SAEInContext":
    """The SAE that the options of `add_sae` describe, which are taken out of all.

    Args:
        given: fields of a recipe.

    Raises:
        ValueError: as `hfsae.runs.find_sae`.
    """
    options["sources"] = [options.pop("source")]
    (placed,) = find_all(options, given, options.pop("output_dir"))
    return placed


def find_all(
    options: dict[str, Any], given: Sections, output_dir: str | None = None
) -> "list[SAEInContext]":
    """SAEs of several sources, each chosen by the same options: those of `add_saes`, which are
    taken out of all."""
    from ..runs import chosen, find_saes

    sources, site = options.pop("sources"), options.pop("site")
    which = {name: options.pop(name) for name in _CHOICE if name in options}
    choices = [chosen(source, **which) for source in sources]
    return find_saes(choices, given, site=site, output_dir=output_dir)


def tell_text(verb: str, placed: "SAEInContext", folder: Path | None = None) -> None:
    """Print, for an SAE from elsewhere, its text, the language model that reads it, and the folder
    of the results."""
    if placed.home is None:
        text, model = placed.recipe.text.dataset, placed.recipe.lm.name
        text = text if isinstance(text, str) else f"{len(text):,} documents"
        print(printable(f"{verb}: {model} reads {text}; results go to {folder or placed.folder}"))
