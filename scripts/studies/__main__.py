"""Blind ratings of latents by people, in a clone, with scripts/ on the path:

export PYTHONPATH=scripts
python -m studies make runs/jumprelu runs/topk --output_dir studies/mine
python -m studies rate studies/mine --host 0.0.0.0 --code WORD
python -m studies space studies/mine me/rating --answers me/answers
python -m studies close studies/mine
python -m studies report studies/mine
"""

import logging
import socket
import sys
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import hfsae

from .answers import is_closed
from .plan import PLAN, Refused, StudyArguments, printable, refuse_no_study

_FIRST_PORT = 7870


def main(argv: list[str] | None = None) -> int:
    """One command; its exit code: 2 for what is refused, in one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = command().parse_args(argv)
    does = {"make": make, "rate": rate, "space": space, "close": close, "report": report}
    try:
        if "study" in options[options.does]:
            refuse_no_study(options[options.does].study)
        does[options.does](options[options.does])
    except ModuleNotFoundError as error:
        print(f"studies: error: this needs {error.name}: pip install {error.name}", file=sys.stderr)
        return 2
    except (Refused, hfsae.Refused) as error:
        print(f"studies: error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def command() -> ArgumentParser:
    """All that can be given."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    command = ArgumentParser(prog="python -m studies", description="Blind ratings of latents.")
    does = command.add_subcommands(dest="does", title="what to do")

    def add(name: str, about: str, *, of_a_study: bool = True) -> ArgumentParser:
        parser = ArgumentParser(description=about)
        if of_a_study:
            parser.add_argument("study", type=str, help="folder that `make` wrote")
        does.add_subcommand(name, parser, help=about)
        return parser

    parser = add("make", "Draw items to rate from SAEs; write their plan.", of_a_study=False)
    parser.add_argument(
        "sources", nargs="+", type=str, help="SAEs of one model: folders, or repositories"
    )
    parser.add_argument("--output_dir", type=str, default="study", help="folder of the study")
    parser.add_argument("--lm", type=str | None, help="language model, where an SAE names none")
    parser.add_argument("--text", type=str | None, help="data set or file to draw windows from")
    parser.add_argument("--site", type=str | None, help="site, where an SAE names none")
    parser.add_class_arguments(StudyArguments, skip={"explained"})
    parser.add_argument(
        "--explained", action="store_true", help="draw among latents that `hfsae explain` scored"
    )
    parser = add(
        "rate",
        "Serve the page on which people rate; each answer is saved before the next item appears. "
        "?rater=NAME in the address resumes, and several people rate at once.",
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int | None, help="default: the first free port from 7870")
    parser.add_argument("--code", type=str | None, help="word that raters must enter")
    parser = add(
        "space",
        "Put the page on a Hugging Face Space; the plan and the answers are in a private data set. "
        "New repositories are private. The token is the one from `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("space", type=str, help="Space on the Hub, as name/space")
    parser.add_argument("--answers", type=str, required=True, help="data set, as name/dataset")
    parser.add_argument("--dry_run", action="store_true", help="print what would be sent, and stop")
    add("close", "End a study: it takes no more answers.")
    parser = add("report", "Report a closed study; of an open one print how far each rater is.")
    parser.add_argument("--about", type=str, default="", help="who or what rated, for the top")
    return command


def make(options: Namespace) -> None:
    """Write the plan of a study."""
    from hfsae.runs import find_saes, load_arguments, open_folder, remember

    from .make import check_study
    from .make import make as make_plan

    given: dict[str, dict[str, str]] = {}
    if options.lm is not None:
        given["lm"] = {"name": options.lm}
    if options.text is not None:
        given["text"] = {"dataset": options.text}
    placed = find_saes([load_arguments(s) for s in options.sources], given, site=options.site)
    study = Path(options.output_dir)
    check_study(placed, study)
    for one in placed:
        with open_folder(one):
            remember(one)
    args = StudyArguments(**{field.name: options[field.name] for field in fields(StudyArguments)})
    plan = make_plan(placed, study, args)
    saes = "1 SAE" if len(placed) == 1 else f"{len(placed)} SAEs"
    print(f"{len(plan.items)} items of {saes}: {study / PLAN}, plan {plan.hash}")
    print(f"next: python -m studies rate {study}")


def rate(options: Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from .server import rate as serve

    host, port = options.host, options.port
    for one in [port] if port else range(_FIRST_PORT, _FIRST_PORT + 20):
        try:
            family = socket.getaddrinfo(host, one, type=socket.SOCK_STREAM)[0][0]
            socket.create_server((host, one), family=family).close()
            port = one
            break
        except (OSError, OverflowError) as error:
            why = error
    else:
        raise Refused(f"cannot listen on {host}, port {one} ({why}); give another --port")
    invitation = f"http://{host}:{port}/?rater=NAME  (Ctrl-C ends; nothing is lost)"
    serve(
        Path(options.study),
        host=host,
        port=port,
        code=options.code,
        ready=lambda: print(invitation, flush=True),
    )


def space(options: Namespace) -> None:
    """Put the page on a Space."""
    from .space import push_space

    def print_lines(text: str) -> None:
        print("\n".join(map(printable, text.split("\n"))), flush=True)

    push_space(
        Path(options.study),
        options.space,
        options.answers,
        dry_run=options.dry_run,
        print_fn=print_lines,
    )


def close(options: Namespace) -> None:
    """End a study."""
    from .report import close as close_study

    close_study(Path(options.study))
    print(f"{options.study} is closed; next: python -m studies report {options.study}")


def report(options: Namespace) -> None:
    """Write the report, or print how far each rater is."""
    from .report import REPORT, REPORT_PAGE, progress, write_report

    study = Path(options.study)
    text = write_report(study, options.about) if is_closed(study) else progress(study)
    print("\n".join(map(printable, text.split("\n"))))
    if is_closed(study):
        print(f"The report is {study / REPORT}; {REPORT_PAGE} and the answers are beside it.")


if __name__ == "__main__":
    sys.exit(main())
