"""Verbs of the `hfsae` command for the app: demo, presets, space."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..explanations.judges import JudgeArguments
from ..io.errors import Refused, refuse_absent_source
from ..io.file_names import META, PRESETS
from ..io.files import printable, printable_lines
from ..packaged import SEPARATE_SAES
from ..runs.arguments import PresetArguments
from .files import SOURCE, add_choice, add_site, folder_of, given_options
from .parsing import VerbParser, verb_parser
from .recipes import parse_given
from .source import add_sae, command_of, find, take_choice

if TYPE_CHECKING:
    from ..runs import SAEInContext
    from ..runs.preset_search import Model


def demo_verb(argv: list[str]) -> None:
    """`hfsae demo`: see `VERBS`."""
    parser = verb_parser("demo", "[SOURCE]")
    parser.add("source", type=str | None, nargs="?", help="folder, repository on the Hub, or gemma")
    parser.add("--revision", type=str | None, help="branch, tag or commit")
    add_choice(parser)
    add_site(parser)
    _add_model(parser)
    parser.add("--no_model", action="store_true", help="only the pages that need no language model")
    parser.add(
        "--mcp", action="store_true", help="serve the app's actions as tools for agents (MCP)"
    )
    parser.add("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add("--port", type=int | None, help="default: the first free port from 7860")
    args = _with_model(parser.parse(argv))
    if args.get("model") and args["no_model"]:
        raise Refused("--model and --no_model exclude each other; leave one of them out")
    refuse_port(args["host"], args.get("port"))
    if "source" in args:
        name = args["source"].lower()
        if name in SEPARATE_SAES and not Path(args["source"]).exists():
            args["source"] = str(SEPARATE_SAES[name].folder(name))
        refuse_absent_source(args["source"], [*SEPARATE_SAES])
        args = _at_results(args)
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


def _add_model(parser: VerbParser) -> None:
    parser.add("--model", type=str | None, help="language model to use instead of the SAE's own")
    parser.add(
        "--lm.name", type=str | None, help="the same as --model, under its name in other commands"
    )


def _with_model(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value, with one name for the language model."""
    name = options.pop("lm")["name"]
    return given_options(options) | ({"model": name} if name else {})


def _at_results(args: dict[str, Any]) -> dict[str, Any]:
    """The same options for the folder in runs/ with what was measured of the SAE, if there is
    one."""
    from ..runs import default_folder, results_folder  # takes seconds

    options = {**args}
    choice = take_choice(options)
    folder = default_folder(choice)
    if folder.exists() and results_folder(choice) == folder:
        if folder != Path(args["source"]):
            print(f"{folder} holds the results for {printable(args['source'])}, and is opened")
        return {**options, "source": str(folder)}
    return {**options, **choice}


def refuse_port(host: str, port: int | None) -> None:
    """Refuse a port that cannot be used, before a model is loaded."""
    if port is None:
        return
    if not 1 <= port <= 65_535:
        raise Refused(f"--port is {port}; it can be 1 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0].lower()
        raise Refused(
            f"cannot listen on port {port} of {host} ({why}); give another --port, or leave it out "
            "for a free one"
        ) from error


def presets_verb(argv: list[str]) -> None:
    """`hfsae presets`: see `VERBS`."""
    parser = verb_parser("presets", "SOURCE [--OPTION VALUE ...]")
    parser.examples = (
        "hfsae presets runs/mine",
        "hfsae presets runs/mine --n_candidates 100 --max_kl 2",
        "hfsae presets runs/mine --test",
        "hfsae presets runs/mine --judge MODEL --requests asked",
    )
    add_sae(parser, "lm")
    names = ("n_candidates", "n_presets", "max_kl", "max_repetition", "max_surprise")
    parser.add_fields(PresetArguments, *names)
    parser.add("--test", action="store_true", help="no search: test those that it has again")
    asked = ("model", "base_url", "provider", "requests", "answers", "key_env")
    parser.add_fields(JudgeArguments, *asked, renamed={"model": "judge"})
    options, given = parse_given(parser, argv)
    args = PresetArguments(**parser.take(PresetArguments, options))
    args.check()
    command = command_of("collect", options, given)
    judge, test = parser.take(JudgeArguments, options), options.pop("test")
    placed = find(options, given)
    if judge or test:
        _test(placed, args, JudgeArguments(**judge) if judge else None)
        return
    homes = (placed.folder, placed.origin)
    if not any(home is not None and (home / META).is_file() for home in homes):
        raise Refused(f"there are no examples of what latents fire on; `{command}` makes them")
    from ..features import read_labels  # takes seconds
    from ..runs import filled
    from ..runs.preset_search import find_presets, save_presets, table

    with filled(placed):
        labels = read_labels(placed.folder)  # those of other weights fail before the model loads
        found = find_presets(_opened(placed), labels, args, _say)
        print(f"\n{printable_lines(table(found))}\n")
        if not found.presets:
            print(
                "No preset visibly changes the text with every seed at a KL of "
                f"{args.max_kl:g} or less, a repetition of {args.max_repetition:.0%} or less and "
                f"a surprise of {args.max_surprise:g} or less; nothing is written. Try a larger "
                "--n_candidates or bound."
            )
            return
        save_presets(placed.folder, found.presets)
    print(
        f"{len(found.presets)} presets are in {placed.folder / PRESETS}; `hfsae demo "
        f"{placed.folder}` offers them."
    )


def _test(placed: "SAEInContext", args: PresetArguments, judge: JudgeArguments | None) -> None:
    """Drop presets of an earlier search whose texts fail: by what is measured of them, or, with a
    judge, by what that says."""
    from ..explanations.judges import PendingAnswers
    from ..runs import filled, judged_presets
    from ..runs.preset_search import found_presets, retest, save_presets

    presets = found_presets(placed.folder) or found_presets(placed.origin or placed.folder)
    if not presets:
        raise Refused(f"there are no presets of a search in {placed.folder}; search first")
    if judge is None:
        with filled(placed):
            kept = retest(_opened(placed), presets, args, _say)
            save_presets(placed.folder, kept)
    else:
        try:
            kept = judged_presets(presets, judge)
        except PendingAnswers as pending:
            print(pending)
            return
        with filled(placed):
            save_presets(placed.folder, kept)
    dropped = ", ".join(p["name"] for p in presets if p["name"] not in {k["name"] for k in kept})
    print(
        f"{len(kept)} of {len(presets)} presets pass and are in {placed.folder / PRESETS}; "
        f"dropped: {printable(dropped or 'none')}"
    )


def _say(line: str) -> None:
    print(printable_lines(line), flush=True)


def _opened(placed: "SAEInContext") -> "Model":
    from ..features import FeatureStore
    from ..runs.inputs import load
    from ..runs.preset_search import Model
    from ..runs.sae_source import refuse_without_text

    refuse_without_text(placed)
    store, sae = FeatureStore.load(placed.folder), placed.sae.requires_grad_(False)
    if len(store) != sae.config.d_sae:
        raise Refused(
            f"{placed.folder}: features/ has {len(store)} latents, and the SAE has "
            f"{sae.config.d_sae}"
        )
    lm, tokenizer, _ = load(placed.recipe.lm)
    sae.to(lm.device)
    return Model(lm, tokenizer, sae, store)


def space_verb(argv: list[str]) -> None:
    """`hfsae space`: see `VERBS`."""
    parser = verb_parser("space", "SOURCE [--output FOLDER]")
    parser.add("source", type=str, help=SOURCE)
    parser.checks["source"] = refuse_absent_source
    parser.add("--output", type=str, default="space", help="folder to write")
    parser.add("--title", type=str, default="Inspect and steer", help="title of the Space")
    parser.add("--revision", type=str | None, help="branch, tag or commit")
    add_choice(parser)
    _add_model(parser)
    args = _with_model(parser.parse(argv))
    from ..hub import write_space

    source, output = args.pop("source"), args.pop("output")
    if not Path(source).exists():
        folder = write_space(output, source, **args)
    else:
        about = {name: args.pop(name) for name in ("title", "model") if name in args}
        with folder_of({"source": source, **args}) as own:
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
