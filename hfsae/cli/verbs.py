"""The `hfsae` command: verbs over the library. Bad input is one sentence and exit code 2."""

import errno
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import Any

from transformers.utils import logging as transformers_logging

from ..comparison import compare as run_comparison
from ..comparison import compare_together
from ..cost.footprint import check_memory
from ..cost.plan import plan
from ..hub import load as load_any
from ..machine.files import printable, printable_lines
from ..machine.lock import is_first_process
from ..machine.names import CARD, EVALUATION, FIGURES, META, RECIPE, REPORT
from ..machine.processor import keep_freed_memory
from ..machine.refused import Refused, one_line
from ..measurement import (
    again,
    defaults,
    load_at,
    measure,
    origin_of,
    place,
    refuse_no_tokens,
    refuse_texts,
    settle,
)
from ..models import register_variants
from ..recipe import (
    Recipe,
    alone,
    as_plain,
    carried_recipes,
    differences,
    finish,
    home_of,
    is_of_a_run,
    run,
    trained_folder,
)
from ..tuning import Tuning
from ..tuning import tune as run_tuning
from .app import demo_verb, presets_verb, space_verb
from .explain import explain_verb
from .files import (
    add_choice,
    add_source,
    convert_verb,
    given_options,
    list_verb,
    push_verb,
    verify_verb,
)
from .parsing import VerbParser, sentence_of, verb_parser, with_names
from .probe import probe_verb
from .recipes import (
    ABOUT_FIELDS,
    EXAMPLES,
    SECTIONS,
    add_output,
    parse_comparisons,
    parse_recipe,
    recipe_parser,
    train_parser,
)
from .show import NO_EXAMPLES, how_to_make, print_folder, print_next
from .study import study_verb

_plain_warning = warnings.formatwarning
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class _PrintableFormatter(logging.Formatter):
    """Plain messages without control characters: they quote files and listings of others."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _format_warning(*args: Any, **kwargs: Any) -> str:
    return printable_lines(_plain_warning(*args, **kwargs))


_RESUMES = "run the same command to resume"
_AFTER_STOP = {"probe": "nothing was written; the same command starts over"}


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 when it is done, 2 for bad input, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    log = logging.StreamHandler()
    log.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[log])
    for handler in logging.getLogger("transformers").handlers:  # its messages quote configs
        handler.setFormatter(_PrintableFormatter())
    warnings.formatwarning = _format_warning
    for noisy in ("httpx", "httpx2", "datasets", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()  # a bar for every file would hide hfsae's
    keep_freed_memory()
    try:
        _dispatch(argv)
    except BrokenPipeError:  # `hfsae show FOLDER | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # and stay silent at exit
    except (ValueError, OSError) as error:
        if os.environ.get("HFSAE_DEBUG"):
            raise
        print(f"hfsae: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C
        print(f"hfsae: stopped; {_AFTER_STOP.get(argv[0], _RESUMES)}", file=sys.stderr)
        return 130
    return 0


def train(argv: list[str]) -> None:
    """Train the SAE of a recipe, evaluate it, collect what its latents fire on, and write a folder
    with weights, card, metrics, figures and examples. Run again, it resumes."""
    recipe, options = parse_recipe(train_parser(sentence_of(train)), argv)
    if options["dry_run"]:
        print("\n".join(plan(recipe, options["gpu"]).lines))
        return
    if options["gpu"] is not None:
        raise Refused("--gpu needs --dry_run: it only estimates the cost on a card")
    command = shlex.join(["hfsae", "train", *argv])
    folders = run(recipe, command, check_cost=check_memory)
    if is_first_process():
        for folder in folders:
            print_folder(folder, [])
        print_next(folders)


def compare(argv: list[str]) -> None:
    """Train the arms of a comparison on the same activations, evaluate them on the same held-out
    text, report fidelity (--explain: and scores of latents) at equal L0 with intervals. Resumes.
    """
    command = shlex.join(["hfsae", "compare", *argv])
    comparisons, folder = parse_comparisons(argv, sentence_of(compare))
    if folder is None:
        report = run_comparison(next(iter(comparisons.values())), command)
        beside = "report.html and the numbers are"
    else:
        report = compare_together(comparisons, folder, command)
        beside = "report.html, with every comparison's report, is"
    print(f"\nThe report is {report / REPORT}; {beside} beside it.")


def tune(argv: list[str]) -> None:
    """Search the settings of a recipe: random draws from ranges, the better half of them on twice
    the tokens, scored on validation documents. It writes a report and the best recipe; it resumes.
    """
    tuning, _ = parse_recipe(recipe_parser("tune", sentence_of(tune), Tuning), argv, Tuning)
    folder = run_tuning(tuning, command=shlex.join(["hfsae", "tune", *argv]))
    print((folder / REPORT).read_text(encoding="utf-8"))
    print(f"The report is {folder / REPORT}; the best recipe of each arm is beside it.")


def evaluate(argv: list[str]) -> None:
    """Evaluate a trained SAE again; fields that you change are noted in its recipe.yaml. Or
    evaluate any SAE, in a folder or repository, in any format, on a whole text; give what its
    config lacks about the language model."""
    _report_again("evaluate", argv, EVALUATION)


def collect(argv: list[str]) -> None:
    """Collect again what a trained SAE's latents fire on; fields that you change are noted in its
    recipe.yaml. Or do it for any SAE, in a folder or repository, in any format; give what its
    config lacks about the language model."""
    _report_again("collect", argv, META)


def show_folder(argv: list[str]) -> None:
    """Print an SAE's metrics, and what its latents fire on (those named, or a few at random), from
    the results beside it."""
    parser = verb_parser("show", "SOURCE [LATENT ...]", show_folder)
    add_source(parser)
    parser.add("latents", type=int, nargs="*", default=[], help="indices of latents to show")
    add_choice(parser)
    choice = given_options(parser.parse(argv))
    latents = choice.pop("latents") or []
    source = choice["source"]
    if is_of_a_run(source):
        print_folder(trained_folder(source), latents)
    elif folder := origin_of(choice):
        print_folder(folder, latents, source)
    elif latents:
        raise Refused(f"{source} holds {NO_EXAMPLES}: {how_to_make('collect', None, source)}")
    else:
        print(f"\n{printable(f'{source}: {load_any(**choice)}')}")
        print(f"No evaluation.json: {how_to_make('evaluate', None, source)}")


def card(argv: list[str]) -> None:
    """Draw the figures and write the model card again, from the results in a folder. For an SAE
    from elsewhere, or in another format, a new folder is made."""
    parser = verb_parser("card", "SOURCE", card)
    add_source(parser)
    add_output(parser)
    choice = given_options(parser.parse(argv))
    output = choice.pop("output_dir", None)
    if is_of_a_run(choice["source"]) and output is None:
        folder = trained_folder(choice["source"])
        with alone(home_of(folder) or folder, [folder]):
            finish(folder)
    else:
        folder, origin = place(choice, output)
        with alone(folder, [folder]):
            settle(load_any(**choice), origin, folder)
            finish(folder)
    print(f"wrote {folder / CARD} and {folder / FIGURES}")


def recipes(argv: list[str]) -> None:
    """List the recipes that come with hfsae, for `hfsae train NAME`."""
    parser = verb_parser("recipes", "", recipes)
    parser.parse(argv)
    for name, text in carried_recipes().items():
        print(f"{name:<18}{text}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "recipes": recipes,
    "compare": compare,
    "tune": tune,
    "evaluate": evaluate,
    "collect": collect,
    "explain": explain_verb,
    "probe": probe_verb,
    "study": study_verb,
    "show": show_folder,
    "card": card,
    "list": list_verb,
    "push": push_verb,
    "verify": verify_verb,
    "convert": convert_verb,
    "demo": demo_verb,
    "presets": presets_verb,
    "space": space_verb,
}


def _dispatch(argv: list[str]) -> None:
    _import_variants(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
    elif argv[0] == "--version":
        print(f"hfsae {version('hfsae')}")
    elif argv[0] in VERBS:
        VERBS[argv[0]](argv[1:])
    else:
        raise Refused(with_names(f"unknown verb {argv[0]!r}", argv[0], list(VERBS)))


def _import_variants(argv: list[str]) -> None:
    """Import the modules of `--import MODULE`.

    Recipes and folders cannot name modules to import: they may come from anybody.
    """
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag == "--import" and value and not value.startswith("-"):
            register_variants(value)
        elif flag.startswith("--import="):
            register_variants(flag.partition("=")[2])


def _help() -> str:
    lines = [
        "usage: hfsae VERB ... | --version",
        "",
        "Sparse autoencoders as Hugging Face models.",
        "",
    ]
    for verb in VERBS:
        head, *rest = wrap(sentence_of(VERBS[verb]), 86)
        lines += [f"  {verb:<10}{head}", *(" " * 12 + line for line in rest)]
    examples = [f"  {example}" for example in EXAMPLES]
    return "\n".join([*lines, "", "examples:", *examples, "", ABOUT_FIELDS])


def _report_again(verb: str, argv: list[str], result: str) -> None:
    """Make one result again, for the SAE of a run or for one from elsewhere."""
    parser = recipe_parser(verb, sentence_of(VERBS[verb]))
    if not argv or argv[0].startswith("-"):
        parse_recipe(parser, argv)  # --help, or an unknown option
        raise Refused(f"name the folder or repository of an SAE: hfsae {verb} SOURCE")
    source, *changes = argv
    folder = trained_folder(source) if is_of_a_run(source) else None
    home = home_of(folder) if folder else None
    if folder is None or home is None:
        folder = _measure(verb, parser, source, changes, result)
    else:
        with alone(home, [folder]):
            recipe, options = parse_recipe(parser, [str(home / RECIPE), *changes])
            for name in (name for name, value in options.items() if value):
                raise Refused(
                    f"--{name} is only for an SAE from elsewhere; {folder} belongs to a run"
                )
            again(recipe, folder, home, result)
    print_folder(folder, [])


def _measure(verb: str, parser: VerbParser, source: str, changes: list[str], result: str) -> Path:
    """Make one result for an SAE without a recipe; the result's folder."""
    _, options = parse_recipe(parser, changes)
    choice = {"source": source, **given_options(options)}
    site, output = choice.pop("site", None), choice.pop("output_dir", None)
    sae = load_at(choice, site)
    fields = defaults(sae)
    flags = [f"--{key}={value}" for key, value in fields.items()]
    recipe, _ = parse_recipe(parser, [*flags, *changes])
    if "lm.name" not in fields and not any(re.match(r"--lm\.name\b", part) for part in changes):
        raise Refused(f"{source} does not name its language model; give --lm.name")
    old, new = as_plain(Recipe()), as_plain(recipe)
    for key, _, _ in differences(old, new, {*new} - {*SECTIONS[verb]}):
        raise Refused(f"`hfsae {verb}` cannot change {key}")
    refuse_no_tokens(recipe, result)
    folder, origin = place(choice, output)
    if result == EVALUATION:
        refuse_texts(recipe, origin)
    print(f"{verb}: {recipe.lm.name} reads {recipe.text.dataset}; results go to {folder}")
    with alone(folder, [folder]):
        settle(sae, origin, folder)
        chosen = [f"{k}={v}" for k, v in choice.items() if k != "source" and v]
        named = Path(source).resolve().name if Path(source).exists() else source
        measure(recipe, sae, folder, result, " ".join([named, *chosen]))
    return folder


def _one_line(error: BaseException) -> str:
    is_full = isinstance(error, OSError) and error.errno in _FULL  # with the system's bare message
    remedy = "; make room there, or give a folder that can be written to" if is_full else ""
    return printable(f"{one_line(error)}{remedy}")
