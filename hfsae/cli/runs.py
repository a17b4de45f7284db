"""Verbs of the `hfsae` command for recipes and results: train to recipes in the list of verbs.

Each imports what does its work, which takes seconds, once its arguments are read.
"""

import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..comparison import Comparison
from ..io.errors import Refused, refuse_absent_source
from ..io.file_names import CARD, DIFF, EVALUATION, FIGURES, META, RECIPE, REPORT
from ..io.files import printable, printable_lines
from ..io.lock import is_first_process
from ..runs import shipped_recipes
from ..tuning import Tuning
from .files import add_choice, add_source
from .parsing import verb_parser
from .recipes import (
    SECTIONS,
    add_output,
    parse_given,
    parse_recipe,
    recipe_parser,
    refuse_absent_models,
    train_parser,
)
from .source import take_choice, tell_text


def train(argv: list[str]) -> None:
    """`hfsae train`: see `VERBS`."""
    recipe, options = parse_recipe(train_parser(), argv)
    refuse_absent_models(recipe)
    if options["dry_run"]:
        with without_collecting():
            from ..runs.cost import plan

        print("\n".join(plan(recipe).lines))
        return
    command = shlex.join(["hfsae", "train", *argv])
    with without_collecting():
        from ..runs import run
        from ..runs.cost import check_memory
        from .show import print_folder, print_next

    folders = run(recipe, command, check_cost=check_memory)
    if is_first_process():
        for folder in folders:
            print_folder(folder, [])
        print_next(folders)


def compare(argv: list[str]) -> None:
    """`hfsae compare`: see `VERBS`."""
    comparison, _ = parse_recipe(recipe_parser("compare", Comparison), argv, Comparison)
    refuse_absent_models(comparison)
    from ..comparison import compare as run_comparison

    report = run_comparison(comparison, shlex.join(["hfsae", "compare", *argv]))
    print(f"\nThe report is {report / REPORT}; report.html and the numbers are beside it.")


def tune(argv: list[str]) -> None:
    """`hfsae tune`: see `VERBS`."""
    recipe, _ = parse_recipe(recipe_parser("tune", Tuning), argv, Tuning)
    refuse_absent_models(recipe)
    from .. import tuning

    folder = tuning.tune(recipe, command=shlex.join(["hfsae", "tune", *argv]))
    print((folder / REPORT).read_text(encoding="utf-8"))
    print(f"The report is {folder / REPORT}; the best recipe of each arm is beside it.")


def evaluate(argv: list[str]) -> None:
    """`hfsae evaluate`: see `VERBS`."""
    _report_again("evaluate", argv, EVALUATION)


def collect(argv: list[str]) -> None:
    """`hfsae collect`: see `VERBS`."""
    _report_again("collect", argv, META)


def show_folder(argv: list[str]) -> None:
    """`hfsae show`: see `VERBS`."""
    parser = verb_parser("show", "SOURCE [LATENT ...]")
    add_source(parser)
    parser.add("latents", type=int, nargs="*", default=[], help="indices of latents to show")
    add_choice(parser)
    options = parser.parse(argv)
    from ..hub import load as load_any
    from ..runs import results_folder
    from .show import NO_EXAMPLES, how_to_make, print_folder

    latents, choice = options["latents"] or [], take_choice(options)
    source = choice["source"]
    if folder := results_folder(choice):
        print_folder(folder, latents, source)
        return
    sae = load_any(**choice)
    typed = (f"--{n} {shlex.quote(str(v))}" for n, v in choice.items() if n != "source")
    name = " ".join([shlex.quote(str(source)), *typed])  # as a verb takes it
    makes = partial(how_to_make, folder=None, name=name, config=sae.config.to_dict())
    if latents:
        raise Refused(f"{source} holds {NO_EXAMPLES}: {makes('collect')}")
    print(f"\n{printable(f'{source}: {sae}')}")
    print(f"No evaluation.json: {makes('evaluate')}")


def card(argv: list[str]) -> None:
    """`hfsae card`: see `VERBS`."""
    parser = verb_parser("card", "SOURCE")
    add_source(parser)
    add_output(parser)
    options = parser.parse(argv)
    from ..hub import load as load_any
    from ..runs import fill_folder, place, run_folder
    from ..runs.folder import finish, home_of, locked_run

    output, choice = options["output_dir"], take_choice(options)
    folder = run_folder(choice) if output is None else None
    if folder is not None:
        with locked_run(home_of(folder) or folder, [folder]):
            finish(folder)
    else:
        folder, origin = place(choice, output)
        with locked_run(folder, [folder]):
            fill_folder(load_any(**choice), origin, folder)
            finish(folder)
    print(f"wrote {folder / CARD} and {folder / FIGURES}")


def harvest(argv: list[str]) -> None:
    """`hfsae harvest`: see `VERBS`."""
    parser = recipe_parser("harvest")
    parser.add("--out", type=Path | None, help="the folder to write to")
    recipe, options = parse_recipe(parser, argv)
    if options["out"] is None:
        raise Refused("hfsae harvest needs --out FOLDER, where the files go")
    refuse_absent_models(recipe)
    from ..runs import harvest_to

    written = harvest_to(recipe, options["out"])
    print(f"wrote {options['out']}; the same SAE from it: hfsae train {written}")


def diff(argv: list[str]) -> None:
    """`hfsae diff`: see `VERBS`."""
    from ..diffing import N_TOKENS

    parser = verb_parser("diff", "RUN")
    parser.add("run", type=str, help="folder of a trained SAE over sites of two models")
    parser.checks["run"] = lambda run: refuse_absent_source(Path(run))
    parser.add(
        "--n_tokens", type=int, default=N_TOKENS, help="the most held-out tokens that are read"
    )
    options = parser.parse(argv)
    from .. import diffing
    from ..runs.folder import finish, home_of, locked_run, trained_folder

    folder = trained_folder(options["run"])
    with locked_run(home_of(folder) or folder, [folder]):
        diffing.diff(folder, options["n_tokens"])
        finish(folder)
    print(printable_lines(diffing.table(folder)))
    print(f"\nEvery latent is in {folder / DIFF}, the figure in {folder / FIGURES / 'diff.png'}.")


def recipes(argv: list[str]) -> None:
    """`hfsae recipes`: see `VERBS`."""
    parser = verb_parser("recipes", "")
    parser.parse(argv)
    for name, text in shipped_recipes().items():
        print(f"{name:<18}{text}")


def _report_again(verb: str, argv: list[str], result: str) -> None:
    """Make one result again, for the SAE of a run or for one from elsewhere."""
    parser = recipe_parser(verb)
    if not argv or argv[0].startswith("-"):
        parse_recipe(parser, argv)  # --help, or an unknown option
        raise Refused(f"name the folder or repository of an SAE: hfsae {verb} SOURCE")
    source, *changes = argv
    options, given = parse_given(parser, changes)
    refuse_absent_source(source)
    from ..runs import again, run_folder
    from ..runs.folder import home_of, locked_run
    from .show import print_folder

    choice = take_choice({"source": source, **options})
    folder = run_folder(choice)
    home = home_of(folder) if folder else None
    if folder is None or home is None:
        for section in given.keys() - {*SECTIONS[verb]}:
            changed = given[section]
            inner = f".{next(iter(changed))}" if isinstance(changed, dict) and changed else ""
            raise Refused(f"`hfsae {verb}` cannot change {section}{inner}")
        from ..runs import filled, find_sae, measure, refuse_unmeasurable

        placed = find_sae(choice, given, site=options["site"], output_dir=options["output_dir"])
        refuse_unmeasurable(placed, result)
        tell_text(verb, placed)
        with filled(placed):
            measure(placed, result)
        folder = placed.folder
    else:
        for name in (name for name in ("output_dir", "site", "revision") if options[name]):
            raise Refused(f"--{name} is only for an SAE from elsewhere; {folder} belongs to a run")
        with locked_run(home, [folder]):
            recipe, _ = parse_recipe(parser, [str(home / RECIPE), *changes])
            again(recipe, folder, home, result)
    print_folder(folder, [])


@contextmanager
def without_collecting() -> Iterator[None]:
    """A block of imports in which Python looks for no garbage: among the objects of torch and
    transformers, which all stay, that takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
