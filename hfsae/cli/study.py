"""The verb `hfsae study`: blind ratings of latents by people."""

from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from ..machine.files import printable_lines
from ..machine.names import REPORT, REPORT_PAGE, STUDY_PLAN
from ..machine.refused import Refused, closest
from ..study import StudyArguments
from ..study.plan import refuse_no_study
from .app import refuse_port
from .parsing import VerbParser, verb_parser
from .recipes import parse_given
from .source import add_saes, find_all, tell_text

_DOES = "make, rate, space, close, report"
_FIRST_PORT = 7870


def study_verb(argv: list[str]) -> None:
    """`hfsae study`: see `VERBS`."""
    does = {"make": _make, "rate": _rate, "space": _space, "close": _close, "report": _report}
    if argv and argv[0] in does:
        does[argv[0]](argv[1:])
        return
    if argv and not argv[0].startswith("-"):
        near = closest(argv[0], [*does])
        raise Refused(f"hfsae study needs one of {_DOES}; got {argv[0]!r}{near}")
    usage = "make SOURCE ... | rate STUDY | space STUDY SPACE | close STUDY | report STUDY"
    parser = verb_parser("study", usage)
    parser.examples = (
        "hfsae study make runs/jumprelu runs/topk --output_dir studies/mine",
        "hfsae study rate studies/mine --host 0.0.0.0 --code WORD",
        "hfsae study space studies/mine me/rating --answers me/answers",
        "hfsae study close studies/mine",
        "hfsae study report studies/mine",
    )
    parser.add("do", type=str, help=f"{_DOES}; `hfsae study make --help` lists the options of one")
    parser.parse(argv)  # --help, an unknown option, or nothing


def _parser(name: str, usage: str, about: str) -> VerbParser:
    return VerbParser(f"study {name}", usage, about)


def _add_study(parser: VerbParser) -> None:
    parser.add("study", type=str, help="folder that `hfsae study make` wrote")
    parser.checks["study"] = refuse_no_study


def _make(argv: list[str]) -> None:
    parser = _parser(
        "make",
        "SOURCE ... [--OPTION VALUE ...]",
        "Draw items to rate from SAEs of one language model, on held-out text; write the plan.",
    )
    add_saes(parser, "lm", "text", "harvest")
    parser.add("--output_dir", type=str, default="study", help="folder of the study")
    parser.add_fields(StudyArguments, *(field.name for field in fields(StudyArguments)))
    options, given = parse_given(parser, argv)
    study = Path(options.pop("output_dir"))
    args = StudyArguments(**parser.take(StudyArguments, options))
    placed = find_all(options, given)
    from ..measurement import filled  # what takes time, after the arguments are checked
    from ..recipe.context import remember
    from ..study.make import check_study, make

    check_study(placed, study)
    for one in placed:
        tell_text("study", one, study)
        with filled(one):
            remember(one)
    plan = make(placed, study, args)
    saes = "1 SAE" if len(placed) == 1 else f"{len(placed)} SAEs"
    print(f"{len(plan.items)} items of {saes}: {study / STUDY_PLAN}, plan {plan.hash}")
    print(f"next: hfsae study rate {study}")


def _rate(argv: list[str]) -> None:
    parser = _parser(
        "rate",
        "STUDY",
        "Serve the page on which people rate; each answer is saved before the next item "
        "appears. ?rater=NAME in the address resumes, and several people rate at once.",
    )
    _add_study(parser)
    parser.add("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add("--port", type=int | None, help="default: the first free port from 7870")
    parser.add("--code", type=str | None, help="word that raters must enter")
    options = parser.parse(argv)
    options["port"] = options["port"] or _free_port(options["host"])
    refuse_port(options["host"], options["port"])
    try:
        from ..study.server import rate
    except ModuleNotFoundError as error:
        raise Refused(f"the page needs {error.name}: pip install 'hfsae[study]'") from error
    address = f"http://{options['host']}:{options['port']}/?rater=NAME"
    invitation = f"{address}  (Ctrl-C ends; nothing is lost)"
    rate(Path(options.pop("study")), **options, ready=lambda: print(invitation, flush=True))


def _free_port(host: str) -> int:
    """The first free port; if none is free, the first of all, which `refuse_port` then refuses."""
    for port in range(_FIRST_PORT, _FIRST_PORT + 20):
        with suppress(Refused):
            refuse_port(host, port)
            return port
    return _FIRST_PORT


def _space(argv: list[str]) -> None:
    parser = _parser(
        "space",
        "STUDY NAME/SPACE --answers NAME/DATASET",
        "Put the page on a Hugging Face Space; the plan and the answers are in a private data set. "
        "New repositories are private. The token is the one from `hf auth login`, or HF_TOKEN.",
    )
    _add_study(parser)
    parser.add("space", type=str, help="Space on the Hub, as name/space")
    parser.add("--answers", type=str, required=True, help="data set on the Hub, as name/dataset")
    parser.add("--wheel", type=str | None, help="of hfsae, where its version is not on PyPI")
    parser.add("--dry_run", action="store_true", help="print what would be sent, and stop")
    options = parser.parse(argv)
    wheel = options.pop("wheel")
    from ..study.space import push_space

    push_space(
        Path(options.pop("study")),
        **options,
        wheel=wheel and Path(wheel),
        tell=lambda text: print(printable_lines(text), flush=True),
    )


def _close(argv: list[str]) -> None:
    parser = _parser("close", "STUDY", "End a study: it takes no more answers.")
    _add_study(parser)
    study = parser.parse(argv)["study"]
    from ..study.report import close

    close(Path(study))
    print(f"{study} is closed; next: hfsae study report {study}")


def _report(argv: list[str]) -> None:
    parser = _parser(
        "report",
        "STUDY",
        "Write the report of a closed study; of an open one print how far each rater is.",
    )
    _add_study(parser)
    parser.add("--about", type=str, default="", help="who or what rated, for the report's top")
    options = parser.parse(argv)
    from ..study.answers import is_closed
    from ..study.report import progress, write_report

    study = Path(options["study"])
    if not is_closed(study):
        print(printable_lines(progress(study)))
        return
    print(printable_lines(write_report(study, options["about"])))
    print(f"The report is {study / REPORT}; {REPORT_PAGE} and the answers are beside it.")
