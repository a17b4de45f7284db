"""Comparisons, and what else can be asked of their SAEs.

    PYTHONPATH=scripts python -m comparisons FILE.yaml [FILE.yaml ... --together FOLDER]
        [--at_sites '[layers.5, layers.25]'] [--causal.n_tokens 64] [--explain] [--FIELD VALUE ...]
        [--import FILE.py ...]

Each file is a recipe of `hfsae compare`, which may have `at_sites`, `causal` and `explain`, too.
What is trained, and where it is kept, is as there; so `hfsae compare` can begin, and this go on.
`--together` writes one report and verdict on several comparisons; `--explain` alone explains 100
latents of each SAE.
"""

import logging
import shlex
import sys
from itertools import pairwise
from pathlib import Path

from hfsae import Refused
from hfsae.cli import parse_recipe, recipe_parser
from hfsae.explanations import ExplainArguments
from hfsae.models import register_variants

from .experiment import Experiment, compare, compare_together

_COMMAND = "PYTHONPATH=scripts python -m comparisons"
_TOGETHER = "--together"


def parsed(argv: list[str]) -> tuple[dict[str, Experiment], Path | None]:
    """The comparisons, by the command that makes one alone, and the folder for a report on all.

    Raises:
        ValueError: no such file, an unknown or invalid argument, or several comparisons without
            `--together`.
    """
    parser = recipe_parser("compare", Experiment)
    parser.add(_TOGETHER, type=Path | None, help="folder for one report and verdict on all")
    n = next((i for i, part in enumerate(argv) if part.startswith("-")), len(argv))
    files, flags = argv[:n], with_explanations(argv[n:])
    experiments, folder = {}, None
    for file in files:
        experiment, options = parse_recipe(parser, [file, *flags], Experiment)
        folder = options["together"]
        own, of_together = [], False
        for part in (file, *argv[n:]):
            if part != _TOGETHER and not of_together and not part.startswith(f"{_TOGETHER}="):
                own.append(part)
            of_together = part == _TOGETHER
        experiments[f"{_COMMAND} {shlex.join(own)}"] = experiment
    if len(files) > 1 and folder is None:
        raise Refused(
            f"got {len(files)} comparisons; give {_TOGETHER} FOLDER, where the report on all of "
            "them goes"
        )
    return experiments, folder


def with_explanations(argv: list[str]) -> list[str]:
    """The arguments with `--explain` alone spelt out: its default number of latents."""
    count = "--explain.n_latents"
    is_counted = any(part.partition("=")[0] == count for part in argv)
    spelt_out = [] if is_counted else [count, str(ExplainArguments().n_latents)]
    return [new for part in argv for new in (spelt_out if part == "--explain" else [part])]


def main(argv: list[str]) -> None:
    """One command."""
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        sys.exit(0 if "--help" in argv else 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for flag, module in pairwise(argv):
        if flag == "--import":
            register_variants(module)
    experiments, folder = parsed(argv)
    if folder is None:
        ((command, experiment),) = experiments.items()
        report = compare(experiment, command)
    else:
        report = compare_together(experiments, folder, f"{_COMMAND} {shlex.join(argv)}")
    print(f"\nThe report is {report / 'report.md'}; report.html is beside it.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Refused as error:
        print(f"comparisons: error: {error}", file=sys.stderr)
        sys.exit(2)
