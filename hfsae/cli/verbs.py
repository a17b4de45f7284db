"""The function of each verb: `train_verb` does `hfsae train`, as the list of verbs (`table`) says.

Each reads its arguments, and imports what does its work, which takes seconds, once they are right.
"""

import gc
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..comparison import Comparison
from ..explanations import ExplainArguments, ScoreArguments
from ..explanations.arguments import SCORES
from ..explanations.judges import JudgeArguments
from ..io.errors import Refused, refuse_absent_source
from ..io.file_names import (
    CARD,
    DIFF,
    EVALUATION,
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    FIGURES,
    FINGERPRINT,
    META,
    PRESETS,
    PROBING,
    PROBING_REPORT,
    RECIPE,
    REPORT,
)
from ..io.files import is_first_process, printable, printable_lines, read_json, write_whole
from ..packaged import SEPARATE_SAES
from ..runs import ExplainRequest, Sections, shipped_recipes
from ..runs.arguments import CONTROLS, EXPLAINERS, PresetArguments
from ..tuning import Tuning
from .recipes import (
    SECTIONS,
    SOURCE,
    add_choice,
    add_meaning,
    add_model,
    add_output,
    add_sae,
    add_sections,
    add_site,
    add_source,
    check_source,
    parse_given,
    parse_recipe,
    recipe_parser,
    refuse_absent_inputs,
    verb_parser,
    with_model,
    with_value,
)

if TYPE_CHECKING:
    from ..runs import SAEInContext

_CHOICE = ("source", "subfolder", "layer", "width", "l0", "revision")


def train_verb(argv: list[str]) -> None:
    """`hfsae train`: see `VERBS`."""
    recipe, options = parse_recipe(recipe_parser("train"), argv)
    refuse_absent_inputs(recipe)
    # Looking for garbage among the objects of torch and transformers, which all stay, takes a fifth
    # of the time.
    gc.disable()
    try:
        from ..runs import run
        from ..runs.cost import check_memory, plan
    finally:
        gc.enable()
    if options["dry_run"]:
        print("\n".join(plan(recipe).lines))
        return
    from .show import print_folder, print_next

    folders = run(recipe, shlex.join(["hfsae", "train", *argv]), check_cost=check_memory)
    if is_first_process():
        for folder in folders:
            print_folder(folder, [])
        print_next(folders)


def harvest_verb(argv: list[str]) -> None:
    """`hfsae harvest`: see `VERBS`."""
    recipe, options = parse_recipe(recipe_parser("harvest"), argv)
    if options["out"] is None:
        raise Refused("hfsae harvest needs --out FOLDER, where the files go")
    refuse_absent_inputs(recipe)
    from ..runs import harvest_to

    written = harvest_to(recipe, options["out"])
    print(f"wrote {options['out']}; the same SAE from it: hfsae train {written}")


def recipes_verb(argv: list[str]) -> None:
    """`hfsae recipes`: see `VERBS`."""
    parser = verb_parser("recipes", "[FOLDER]")
    parser.add("folder", type=str, nargs="?", help="another folder of recipes")
    for name, text in shipped_recipes(parser.parse(argv)["folder"]).items():
        print(f"{name:<17} {text}")


def compare_verb(argv: list[str]) -> None:
    """`hfsae compare`: see `VERBS`."""
    comparison, _ = parse_recipe(recipe_parser("compare", Comparison), argv, Comparison)
    refuse_absent_inputs(comparison)
    from ..comparison import compare

    report = compare(comparison, shlex.join(["hfsae", "compare", *argv]))
    print(f"\nThe report is {report / REPORT}; report.html and the numbers are beside it.")


def tune_verb(argv: list[str]) -> None:
    """`hfsae tune`: see `VERBS`."""
    recipe, _ = parse_recipe(recipe_parser("tune", Tuning), argv, Tuning)
    refuse_absent_inputs(recipe)
    from ..tuning import tune

    folder = tune(recipe, command=shlex.join(["hfsae", "tune", *argv]))
    print((folder / REPORT).read_text(encoding="utf-8"))
    print(f"The report is {folder / REPORT}; the best recipe of each arm is beside it.")


def evaluate_verb(argv: list[str]) -> None:
    """`hfsae evaluate`: see `VERBS`."""
    _measure_again("evaluate", argv, EVALUATION)


def collect_verb(argv: list[str]) -> None:
    """`hfsae collect`: see `VERBS`."""
    _measure_again("collect", argv, META)


def _measure_again(verb: str, argv: list[str], result: str) -> None:
    """Make one result again, for the SAE of a run or for one from elsewhere."""
    parser = recipe_parser(verb)
    if not argv or argv[0].startswith("-"):
        parse_recipe(parser, argv)  # --help, or an unknown option
        raise Refused(f"name the folder or repository of an SAE: hfsae {verb} SOURCE")
    source, *changes = argv
    options, given = parse_given(parser, changes)
    check_source(source)
    from ..runs import remake, run_folder
    from ..runs.folder import home_of
    from ..runs.results import locked_run
    from .show import print_folder

    choice = take_choice({"source": source, **options})
    folder = run_folder(choice)
    home = home_of(folder) if folder else None
    if folder is None or home is None:
        for section in given.keys() - {*SECTIONS[verb]}:
            changed = given[section]
            inner = f".{next(iter(changed))}" if isinstance(changed, dict) and changed else ""
            raise Refused(f"`hfsae {verb}` cannot change {section}{inner}")
        from ..runs import find_sae, measure, open_folder, refuse_unmeasurable

        placed = find_sae(choice, given, site=options["site"], output_dir=options["output_dir"])
        refuse_unmeasurable(placed, result)
        _say_text(verb, placed, source)
        with open_folder(placed):
            measure(placed, result)
        folder = placed.folder
    else:
        for name in (name for name in ("output_dir", "site", "revision") if options[name]):
            raise Refused(f"--{name} is only for an SAE from elsewhere; {folder} belongs to a run")
        with locked_run(home, [folder]):
            recipe, _ = parse_recipe(parser, [str(home / RECIPE), *changes])
            remake(recipe, folder, home, result)
    print_folder(folder, [])


def explain_verb(argv: list[str]) -> None:
    """`hfsae explain`: see `VERBS`."""
    parser = verb_parser("explain", "SOURCE [--OPTION VALUE ...]")
    parser.examples = (
        "hfsae explain runs/mine",
        "hfsae explain someone/sae --lm.name google/gemma-2-2b --text.dataset my.jsonl",
        "hfsae explain runs/mine --explainer file --file neuronpedia.jsonl",
        "hfsae explain runs/mine --explainer lm --scores detection --judge ID --requests asked",
    )
    add_sae(parser, "lm", "text", "harvest")
    parser.add_fields(ExplainArguments, "n_latents", "latents", "n_tokens", "seed")
    parser.add_fields(
        ExplainRequest,
        *("explainer", "file", "controls"),
        choices={"explainer": EXPLAINERS, "controls": CONTROLS},
    )
    parser.add_fields(
        ScoreArguments,
        *("scores", "protocol", "windows", "latents", "directions"),
        renamed={name: f"judged_{name}" for name in ("windows", "latents", "directions")},
        choices={"scores": SCORES},
    )
    judged = ("model", "base_url", "provider", "requests", "answers", "key_env", "price_in")
    parser.add_fields(JudgeArguments, *judged, "price_out", renamed={"model": "judge"})
    parser.add_fields(ExplainRequest, "dry_run")
    options, given = parse_given(parser, argv)
    judge = parser.take(JudgeArguments, options)
    request = ExplainRequest(
        judge=JudgeArguments(**judge) if judge else None,
        scores=ScoreArguments(**parser.take(ScoreArguments, options)),
        **parser.take(ExplainRequest, options),
    )
    args = ExplainArguments(**parser.take(ExplainArguments, options))
    source = options["source"]
    (placed,) = find(options, given)
    _say_text("explain", placed, source)
    from ..runs import explain_sae

    result = explain_sae(placed, args, request)
    print(printable_lines(result.report))
    if result.rows:
        written = ", ".join(Path(name).name for name in (EXPLANATIONS_RECORD, EXPLANATIONS_REPORT))
        path = placed.folder / EXPLANATIONS
        print(f"The explanations are {path}; {written} are beside it.")


def probe_verb(argv: list[str]) -> None:
    """`hfsae probe`: see `VERBS`."""
    from ..evaluation.probing import ProbeArguments, read_tasks

    parser = verb_parser("probe", "SOURCE ... [--OPTION VALUE ...]")
    parser.examples = (
        "hfsae probe runs/mine",
        "hfsae probe google/gemma-scope-2b-pt-res --layer 12 --l0 80 --lm.name google/gemma-2-2b",
        "hfsae probe runs/mine runs/other --n_tasks all --n_texts 1500",
        "hfsae probe runs/mine --tasks reviews.jsonl --text_column text --label_column stars",
        "hfsae probe runs/mine --tasks reviews.jsonl --group_column author",
    )
    parser.add("sources", type=str, nargs="+", help=f"each a {SOURCE}")
    parser.checks["sources"] = check_source
    parser.add("--revision", type=str | None, help="branch, tag or commit of repositories")
    add_choice(parser)
    add_site(parser)
    add_sections(parser, ["lm"])
    parser.add(
        "--output_dir",
        type=str | None,
        help="folder for an SAE from elsewhere and its results; of several, for a folder of each "
        "(default: runs/NAME)",
    )
    parser.add(
        "--tasks",
        type=str,
        default="packaged",
        help='"packaged": binary sets of the Python package sae-probes; a jsonl file with a text '
        "and a label a line; or a Hub data set",
    )
    parser.add_fields(read_tasks, "text_column", "label_column", "group_column", "split")
    parser.add_fields(
        ProbeArguments,
        *("n_tasks", "n_texts", "k", "max_tokens", "n_words", "uniformity_tokens", "seed"),
    )
    options, given = parse_given(parser, argv)
    args = ProbeArguments(**parser.take(ProbeArguments, options))
    placed = find(options, given)
    from ..runs import probe_saes  # takes seconds

    result = probe_saes(placed, args, **options)  # the tasks, and their columns
    print(printable_lines(result.report))
    folders = dict.fromkeys(str(one.folder) for one in placed)
    print(f"Results: {PROBING} and {PROBING_REPORT} in {', '.join(folders)}.")


def diff_verb(argv: list[str]) -> None:
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
    from ..runs.folder import finish, home_of, trained_folder
    from ..runs.results import locked_run

    folder = trained_folder(options["run"])
    with locked_run(home_of(folder) or folder, [folder]):
        diffing.diff(folder, options["n_tokens"])
        finish(folder)
    print(printable_lines(diffing.table(folder)))
    print(f"\nEvery latent is in {folder / DIFF}, the figure in {folder / FIGURES / 'diff.png'}.")


def show_verb(argv: list[str]) -> None:
    """`hfsae show`: see `VERBS`."""
    parser = verb_parser("show", "SOURCE [LATENT ...]")
    add_source(parser)
    parser.add("latents", type=int, nargs="*", default=[], help="indices of latents to show")
    add_choice(parser)
    options = parser.parse(argv)
    from ..hub import load
    from ..runs import results_folder
    from .show import NO_EXAMPLES, how_to_make, print_folder

    latents, choice = options["latents"] or [], take_choice(options)
    source = choice["source"]
    if folder := results_folder(choice):
        print_folder(folder, latents, source)
        return
    sae = load(**choice)
    typed = (f"--{n} {shlex.quote(str(v))}" for n, v in choice.items() if n != "source")
    name = " ".join([shlex.quote(str(source)), *typed])  # as a verb takes it
    makes = partial(how_to_make, folder=None, name=name, config=sae.config.to_dict())
    if latents:
        raise Refused(f"{source} holds {NO_EXAMPLES}: {makes('collect')}")
    print(f"\n{printable(f'{source}: {sae}')}")
    print(f"No evaluation.json: {makes('evaluate')}")


def card_verb(argv: list[str]) -> None:
    """`hfsae card`: see `VERBS`."""
    parser = verb_parser("card", "SOURCE")
    add_source(parser)
    add_output(parser)
    options = parser.parse(argv)
    from ..hub import load
    from ..runs import fill_folder, place, run_folder
    from ..runs.folder import finish, home_of
    from ..runs.results import locked_run

    output, choice = options["output_dir"], take_choice(options)
    folder = run_folder(choice) if output is None else None
    if folder is not None:
        with locked_run(home_of(folder) or folder, [folder]):
            finish(folder)
    else:
        folder, origin = place(choice, output)
        with locked_run(folder, [folder]):
            fill_folder(load(**choice), origin, folder)
            finish(folder)
    print(f"wrote {folder / CARD} and {folder / FIGURES}")


def list_verb(argv: list[str]) -> None:
    """`hfsae list`: see `VERBS`."""
    parser = verb_parser("list", "SOURCE [--json]")
    add_source(parser)
    parser.add("--json", action="store_true", help="print one JSON object per line")
    args = parser.parse(argv)
    from ..convert import FORMATS
    from ..hub import list_saes

    entries = list_saes(args["source"], revision=args["revision"])
    if args["json"]:
        print("".join(json.dumps(entry._asdict()) + "\n" for entry in entries), end="")
    else:
        rows: list[tuple[str, ...]] = [("path", "format", "layer", "width", "L0")]
        for e in entries:
            cells = (e.path or ".", e.format, *("" if v is None else f"{v}" for v in e[2:]))
            rows.append(tuple(map(printable, cells)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())
        if not entries:
            print(f"no SAE in a known format ({', '.join(FORMATS)})")
    if not entries:
        raise SystemExit(1)


def push_verb(argv: list[str]) -> None:
    """`hfsae push`: see `VERBS`."""
    from ..hub.upload import push, refuse_repo_id

    parser = verb_parser("push", "SOURCE NAME/REPOSITORY")
    parser.add("source", type=str, help=f"folder that `hfsae train` wrote; or any {SOURCE}")
    parser.add("repo", type=str, help="repository on the Hub, as name/repository")
    parser.checks = {"source": check_source, "repo": refuse_repo_id}
    add_meaning(parser)
    add_site(parser)
    parser.add("--public", action="store_true", help="make a new repository public")
    parser.add_fields(
        push,
        *("revision", "create_pr", "subfolder", "commit_message", "include_code"),
        *("replace_model_card", "no_examples", "dry_run"),
    )
    args = parser.parse(argv)
    private = False if args.pop("public") else None
    which = {name: args.pop(name) for name in ("source", "layer", "width", "l0")}
    with _own_format(which, args.pop("site")) as folder:
        url = push(folder, args.pop("repo"), private=private, tell=_say, **args)
    if url:
        print(f"pushed: {url}")


@contextmanager
def _own_format(which: dict[str, Any], site: str | None = None) -> Iterator[str]:
    """The folder to send or copy: the source itself, if it holds SAEs in hfsae's format and none of
    them is chosen; else a folder with the chosen SAE in that format."""
    source, *choices = which.values()
    is_chosen = any(value not in (None, "") for value in (*choices, site))
    if not is_chosen:
        from ..hub import formats_in

        formats = formats_in(Path(source)) if Path(source).is_dir() else {""}
        if not formats or "hfsae" in formats:  # nothing to convert
            yield source
            return
    from ..runs import load_arguments, own_folder

    with own_folder(load_arguments(**which), site) as folder:
        _say(f"using {source} in hfsae's format, from {folder}")
        yield str(folder)


def verify_verb(argv: list[str]) -> None:
    """`hfsae verify`: see `VERBS`."""
    parser = verb_parser("verify", "SOURCE")
    add_source(parser)
    add_choice(parser)
    parser.add("--dtype", type=str | None, help="cast to this dtype first, for example bfloat16")
    options = with_value(parser.parse(argv))
    from ..hub import files_beside, load

    sae = load(**options)
    home = files_beside(names=(FINGERPRINT,), **{k: v for k, v in options.items() if k != "dtype"})
    if home is None or not (home / FINGERPRINT).is_file():
        from ..models.fingerprint import state_hash

        weights = sae.state_dict()  # finite, since `load` refuses NaN
        n, names = sum(tensor.numel() for tensor in weights.values()), ", ".join(weights)
        _say(
            f"NOT COMPARED: {options['source']} has no {FINGERPRINT}; its {n:,} weights ({names}) "
            f"are finite; SHA-256 of all: {state_hash(weights)}"
        )
        raise SystemExit(3)
    verification = sae.verify(home)
    _say(str(verification))
    if not verification.ok:
        raise SystemExit(1)


def convert_verb(argv: list[str]) -> None:
    """`hfsae convert`: see `VERBS`."""
    from ..convert import WRITTEN

    parser = verb_parser("convert", "SOURCE DESTINATION --to FORMAT")
    add_source(parser)
    parser.add("destination", type=str, help="folder to create; for openai a file")
    parser.add("--to", required=True, choices=list(WRITTEN), help="format to write")
    add_choice(parser)
    options = with_value(parser.parse(argv))
    destination, to = options.pop("destination"), options.pop("to")
    from ..convert import FORMATS, save_as, save_set_as
    from ..hub import load, load_set

    if FORMATS[to].save_set and not {"layer", "width", "l0"} & options.keys():
        saes = load_set(**options)
        _say(f"wrote {save_set_as(saes, destination, to)}: {len(saes)} SAEs")
        return
    sae = load(**options)
    _say(f"wrote {save_as(sae, destination, to)}: {sae}")
    ours, theirs = sae.config, load(destination).config
    about = ("site", "target_site", "sites", "model_name", "model_revision", "model_dtype")
    about += ("model_attention", "model_weights", "tokenizer_hash", "bos", "target_l0")
    lost = [n for n in about if getattr(ours, n) is not None and getattr(theirs, n) is None]
    if lost:
        print(f"left out, since {to} files have no field for it: {', '.join(lost)}")


def export_verb(argv: list[str]) -> None:
    """`hfsae export`: see `VERBS`."""
    from ..hub.neuronpedia import export_neuronpedia

    parser = verb_parser("export", "SOURCE --to neuronpedia [--OPTION VALUE ...]")
    add_source(parser)
    parser.add("--to", required=True, choices=["neuronpedia"], help="who takes the folder")
    parser.add("--output", type=str, default="exports", help="folder to write below")
    add_choice(parser)
    parser.add_fields(export_neuronpedia, "model_id", "source_set", "creator")
    args = parser.parse(argv)
    from ..runs import results_folder

    args.pop("to")
    choice = take_choice(args)
    folder = results_folder(choice)
    if folder is None or not (folder / META).is_file():
        source = choice["source"]
        raise Refused(f"{source} has no feature store; `hfsae collect {source}` makes it")
    path = export_neuronpedia(folder, **args)
    print(f"wrote {path}: send it to Neuronpedia, or keep it in a bucket of your own instance")


def demo_verb(argv: list[str]) -> None:
    """`hfsae demo`: see `VERBS`."""
    parser = verb_parser("demo", "[SOURCE]")
    parser.add("source", type=str | None, nargs="?", help="folder, repository on the Hub, or gemma")
    parser.add("--revision", type=str | None, help="branch, tag or commit")
    add_choice(parser)
    add_site(parser)
    add_model(parser)
    parser.add("--no_model", action="store_true", help="only the pages that need no language model")
    parser.add("--graphs", type=str | None, help="folder of graphs that `hfsae graph` wrote")
    parser.add(
        "--mcp", action="store_true", help="serve the app's actions as tools for agents (MCP)"
    )
    parser.add("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add("--port", type=int | None, help="default: the first free port from 7860")
    args = with_model(parser.parse(argv))
    if args.get("model") and args["no_model"]:
        raise Refused("--model and --no_model exclude each other; leave one of them out")
    if not 1 <= (port := args.get("port", 1)) <= 65_535:
        raise Refused(f"--port is {port}; it can be 1 to 65535")
    if (source := args.get("source")) is not None:
        name = source.lower()
        if name in SEPARATE_SAES and not Path(source).exists():
            source = args["source"] = str(SEPARATE_SAES[name].folder(name))
        refuse_absent_source(source, [*SEPARATE_SAES])
        from ..runs import default_folder, results_folder  # takes seconds

        choice = take_choice(args)
        folder = default_folder(choice)
        if folder.exists() and results_folder(choice) == folder:  # what was measured of it
            if folder != Path(source):
                print(f"{folder} holds the results for {printable(source)}, and is opened")
            choice = {"source": str(folder)}
        args |= choice
    try:
        from ..demo import launch  # takes seconds, and the demo extra
    except ModuleNotFoundError as error:
        raise Refused(f"the app needs {error.name}: pip install 'hfsae[demo]'") from error
    launch(
        args.pop("source", None),
        with_lm=not args.pop("no_model"),
        server_name=args.pop("host"),
        server_port=args.pop("port", None),
        **args,
    )


def presets_verb(argv: list[str]) -> None:
    """`hfsae presets`: see `VERBS`."""
    parser = verb_parser("presets", "SOURCE [--OPTION VALUE ...]")
    parser.examples = (
        "hfsae presets runs/mine",
        "hfsae presets runs/mine --n_candidates 100 --max_kl 2",
    )
    add_sae(parser, "lm")
    names = ("n_candidates", "n_presets", "max_kl", "max_repetition", "max_surprise")
    parser.add_fields(PresetArguments, *names)
    options, given = parse_given(parser, argv)
    args = PresetArguments(**parser.take(PresetArguments, options))
    args.check()
    lm = {f"lm.{name}": value for name, value in given.get("lm", {}).items()}
    named = {**take_choice({**options}), **{n: options[n] for n in ("output_dir", "site")}, **lm}
    words = [named.pop("source")]
    words += [word for k, v in named.items() if v is not None for word in (f"--{k}", str(v))]
    (placed,) = find(options, given)
    homes = (placed.folder, placed.origin)
    if not any(home is not None and (home / META).is_file() for home in homes):
        command = shlex.join(["hfsae", "collect", *words])
        raise Refused(f"there are no examples of what latents fire on; `{command}` makes them")
    from ..features import FeatureStore, read_labels  # takes seconds
    from ..runs import open_folder
    from ..runs.inputs import load
    from ..runs.preset_search import Model, find_presets, save_presets, table
    from ..runs.sae_source import refuse_without_text

    with open_folder(placed):
        labels = read_labels(placed.folder)  # those of other weights fail before the model loads
        refuse_without_text(placed)
        store, sae = FeatureStore.load(placed.folder), placed.sae.requires_grad_(False)
        if len(store) != sae.config.d_sae:
            raise Refused(
                f"{placed.folder}: features/ has {len(store)} latents, and the SAE has "
                f"{sae.config.d_sae}"
            )
        lm, tokenizer, _ = load(placed.recipe.lm)
        model = Model(lm, tokenizer, sae.to(lm.device), store)
        presets, attempts = find_presets(model, labels, args, _say)
        print(f"\n{printable_lines(table(presets, attempts))}\n")
        if not presets:
            print(
                "No preset visibly changes the text with every seed at a KL of "
                f"{args.max_kl:g} or less, a repetition of {args.max_repetition:.0%} or less and "
                f"a surprise of {args.max_surprise:g} or less; nothing is written. Try a larger "
                "--n_candidates or bound."
            )
            return
        save_presets(placed.folder, presets)
    print(
        f"{len(presets)} presets are in {placed.folder / PRESETS}; `hfsae demo "
        f"{placed.folder}` offers them."
    )


def graph_verb(argv: list[str]) -> None:
    """`hfsae graph`: see `VERBS`."""
    parser = verb_parser("graph", "SOURCE PROMPT [--OPTION VALUE ...]")
    parser.examples = (
        'hfsae graph runs/transcoders "The capital of France is"',
        'hfsae graph runs/transcoders "The keys on the table" --target " are" --contrast " is"',
    )
    add_source(parser)
    parser.add("prompt", type=str, help="the text whose next token is explained")
    parser.add("--subfolder", type=str, default="", help="only the transcoders below it")
    parser.add("--target", type=str | None, help="the token to explain, instead of the likeliest")
    parser.add("--contrast", type=str | None, help="the token to explain it against")
    parser.add("--max_feature_nodes", type=int | None, help="default: 500, 7500 on a GPU")
    parser.add("--nodes", type=float, default=0.8, help="share of the nodes' influence to keep")
    parser.add("--edges", type=float, default=0.98, help="share of the edges' influence to keep")
    parser.add("--out", type=str, default="graphs", help="folder to write")
    parser.add("--slug", type=str | None, help="name of the graph (default: from the prompt)")
    parser.add("--supernodes", type=str | None, help="YAML file: {name: [ids or block/latent]}")
    parser.add("--scan", type=str | None, help="Neuronpedia's name of the model, to upload there")
    add_model(parser)
    args = with_model(parser.parse(argv))
    from tqdm import tqdm

    from .. import circuits
    from ..lm import contract, load_lm
    from ..runs import open_transcoders

    words = "-".join(re.findall("[a-z0-9]+", args["prompt"].lower()))
    slug = args.get("slug") or words[:100].strip("-") or "graph"
    circuits.check_slug(slug)
    shares = {"nodes": args["nodes"], "edges": args["edges"]}
    circuits.check_shares(**shares)
    supernodes = circuits.read_supernodes(args["supernodes"]) if "supernodes" in args else None
    source = args["source"]
    of = {"subfolder": args["subfolder"], "revision": args.get("revision")}
    saes, labels, pages = open_transcoders(source, **of)
    for key in (key for key in saes if key not in pages):
        made = shlex.join(["hfsae", "collect", source, *(["--subfolder", key] if key else [])])
        _say(f"{key or source} has no feature store, so no pages of features: `{made}`")
    first = next(iter(saes.values())).config
    name = args.get("model") or first.model_name
    if name is None:
        raise Refused(f"{source} names no language model; give --lm.name")
    lm, tokenizer, _ = load_lm(name, dtype="float32")
    for sae in saes.values():
        contract.intend(lm, sae, "model_dtype")  # sums are exact in float32
    with tqdm(desc="graph", unit="feature", leave=False) as bar:

        def show(done: int, of_all: int) -> None:
            bar.total = of_all
            bar.update(done - bar.n)

        names = ("target", "contrast", "max_feature_nodes")
        given: dict[str, Any] = {name: args.get(name) for name in names}
        found = circuits.graph(
            lm, saes, args["prompt"], tokenizer=tokenizer, progress=show, **given
        )
    more = {"labels": labels, "supernodes": supernodes, "scan": args.get("scan")}
    path = circuits.save_graph(found, args["out"], slug, pages=pages, **more, **shares)
    page = path.with_suffix(".html")
    write_whole(page, circuits.graph_page(circuits.read_graph(path)))
    n = {kind: int(found.of_kind(kind).sum()) for kind in ("feature", "error", "token", "logit")}
    print(
        f"wrote {path}: of {found.n_active} features that fire {n['feature']} are nodes, beside "
        f"{n['error']} errors, {n['token']} tokens and {n['logit']} logits\n"
        f"sums are exact to {found.check():.1e}; replacement score "
        f"{found.replacement_score:.3f}, completeness {found.completeness_score:.3f}\n"
        f"Look at it in a browser: {page}; or: circuit-tracer start-server --graph_file_dir "
        f"{args['out']}"
    )
    if supernodes:  # circuit-tracer's page leaves out those of the file
        groups = json.dumps(read_json(path)["qParams"]["supernodes"])
        print(f"With supernodes: localhost:8041/index.html?slug={slug}&supernodes={quote(groups)}")


def space_verb(argv: list[str]) -> None:
    """`hfsae space`: see `VERBS`."""
    parser = verb_parser("space", "SOURCE [--output FOLDER]")
    parser.add("source", type=str, help=SOURCE)
    parser.checks["source"] = check_source
    parser.add("--output", type=str, default="space", help="folder to write")
    parser.add("--title", type=str, default="Inspect and steer", help="title of the Space")
    parser.add("--revision", type=str | None, help="branch, tag or commit")
    parser.add("--graphs", type=str | None, help="folder of graphs that `hfsae graph` wrote")
    add_choice(parser)
    add_model(parser)
    args = with_model(parser.parse(argv))
    from ..hub import write_space

    source, output = args.pop("source"), args.pop("output")
    if not Path(source).exists():
        folder = write_space(output, source, **args)
    else:
        about = {name: args.pop(name) for name in ("title", "model", "graphs") if name in args}
        with _own_format({"source": source, **args}) as own:
            folder = write_space(output, own, **about)
    print(
        f"wrote {folder}. To put it on the Hub (add --private to keep it to yourself):\n"
        "  hf repos create NAME/SPACE --repo-type space --space-sdk gradio\n"
        f"  hf upload NAME/SPACE {folder} . --repo-type space\n"
        "A private SAE, or a gated language model, needs a token that may read it, as the Space's "
        "secret HF_TOKEN. Its requirements.txt installs hfsae from PyPI. If this version is not on "
        "PyPI, make a wheel (pip wheel --no-deps, in a clone), put it into the folder, and write "
        "./NAME.whl[demo] into requirements.txt instead"
    )


def take_choice(options: dict[str, Any]) -> dict[str, Any]:
    """Which SAE: its options, taken out of all, as arguments of `hfsae.load`."""
    from ..runs import load_arguments  # takes seconds

    return load_arguments(**{name: options.pop(name) for name in _CHOICE if name in options})


def find(options: dict[str, Any], given: Sections) -> "list[SAEInContext]":
    """The SAE of the options of `add_sae`, or SAEs of several sources that are chosen by the same
    options; these are taken out of all.

    Args:
        given: fields of a recipe.

    Raises:
        ValueError: as `hfsae.runs.find_sae`.
    """
    from ..runs import find_saes, load_arguments  # takes seconds

    site, output_dir = options.pop("site"), options.pop("output_dir")
    sources = options.pop("sources") if "sources" in options else [options.pop("source")]
    which = {name: options.pop(name) for name in _CHOICE if name in options}
    choices = [load_arguments(source, **which) for source in sources]
    return find_saes(choices, given, site=site, output_dir=output_dir)


def _say_text(verb: str, placed: "SAEInContext", source: str) -> None:
    """Print, for an SAE from elsewhere, its text, the language model that reads it, and the folder
    of the results; of a folder here also which SAE below it was taken."""
    if placed.home is None:
        text, model = placed.recipe.text.dataset, placed.recipe.lm.name
        text = text if isinstance(text, str) else f"{len(text):,} documents"
        taken = placed.origin if Path(source).exists() else None
        of = f" of {taken}" if taken not in (None, Path(source), placed.folder) else ""
        print(printable(f"{verb}: {model} reads {text}; results{of} go to {placed.folder}"))


def _say(text: str) -> None:
    print(printable_lines(text), flush=True)
