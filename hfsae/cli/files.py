"""Verbs of the `hfsae` command for SAEs in files and repositories: list, push, verify, convert."""

import json
from typing import Any

from ..convert import FORMATS, save_as
from ..hub import beside, list_saes, load, push
from ..machine.files import printable, printable_lines
from ..models import SAE
from ..models.probe import NAME as PROBE
from ..models.probe import state_hash
from .parsing import VerbParser, verb_parser


def list_verb(argv: list[str]) -> None:
    """List the SAEs in a folder or a repository on the Hub, from one listing. Exit code 1 if there
    is no SAE in a known format."""
    parser = verb_parser("list", "SOURCE [--json]", list_verb)
    add_source(parser)
    parser.add("--json", action="store_true", help="one JSON object a line")
    args = parser.parse(argv)
    entries = list_saes(args["source"], revision=args["revision"])
    if args["json"]:
        print("".join(json.dumps(entry._asdict()) + "\n" for entry in entries), end="")
        _leave(1 if not entries else 0)
        return
    rows: list[tuple[str, ...]] = [("path", "format", "layer", "width", "L0")]
    for e in entries:
        cells = (e.path or ".", e.format, *("" if v is None else f"{v}" for v in e[2:]))
        rows.append(tuple(map(printable, cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())
    if not entries:
        print(f"no SAE in a known format ({', '.join(FORMATS)})")
        _leave(1)


def push_verb(argv: list[str]) -> None:
    """Send a trained SAE, or a folder of several, to the Hub in one commit. A repository that is
    made by this is private, unless --public. The token is that of `hf auth login`, or HF_TOKEN."""
    parser = verb_parser("push", "FOLDER NAME/REPOSITORY", push_verb)
    parser.add("folder", type=str, help="what `hfsae train` wrote, or a folder of such folders")
    parser.add("repo", type=str, help="repository on the Hub, as name/repository")
    parser.add("--public", action="store_true", help="make a new repository public")
    parser.add("--revision", type=str | None, help="branch to commit to, made if it is not there")
    parser.add("--create_pr", action="store_true", help="propose it as a pull request")
    parser.add("--subfolder", type=str, default="", help="where in the repository")
    parser.add("--commit_message", type=str | None, help="of the commit")
    parser.add(
        "--include_code",
        action="store_true",
        help="send a file with which the SAE runs where hfsae is not installed "
        "(AutoModel.from_pretrained(repo, trust_remote_code=True))",
    )
    parser.add(
        "--replace_model_card",
        action="store_true",
        help="do not carry over what people wrote into the card that is there",
    )
    parser.add(
        "--no_examples",
        action="store_true",
        help="send no excerpts of your text, neither the features nor, in the card, examples, "
        "and delete those that the repository holds",
    )
    parser.add("--dry_run", action="store_true", help="say what would be sent, and stop")
    args = parser.parse(argv)
    private = False if args.pop("public") else None
    url = push(args.pop("folder"), args.pop("repo"), private=private, tell=_tell, **args)
    if url:
        print(f"pushed: {url}")


def verify_verb(argv: list[str]) -> None:
    """Say whether an SAE's weights are those that were saved, to the bit, and whether this machine,
    dtype and version make of its probe what was made of it then. Exit code 1 if not, 3 if there is
    no probe to compare with, as in files of other libraries: then its weights are read and hashed.
    """
    parser = verb_parser("verify", "SOURCE", verify_verb)
    add_source(parser)
    add_choice(parser)
    parser.add("--dtype", type=str | None, help="to cast to first, as bfloat16")
    options = given_options(parser.parse(argv))
    sae = load(**options)
    home = beside(names=[PROBE], **{k: v for k, v in options.items() if k != "dtype"})
    if home is None or not (home / PROBE).is_file():
        _tell(f"NOT COMPARED: {options['source']} has no {PROBE}; {_as_it_is(sae)}")
        _leave(3)
    found = sae.verify(home)
    print(printable_lines(str(found)))
    _leave(0 if found.ok else 1)


def _as_it_is(sae: SAE) -> str:
    """What can be said of weights that nothing is kept to compare with; `load` refuses NaN."""
    weights = sae.state_dict()
    n = sum(tensor.numel() for tensor in weights.values())
    names = ", ".join(weights)
    return f"its {n:,} weights ({names}) are finite; SHA-256 of all: {state_hash(weights)}"


def _leave(code: int) -> None:
    if code:
        raise SystemExit(code)


def convert_verb(argv: list[str]) -> None:
    """Write an SAE of any known format in another: the same latents and reconstructions, or a
    refusal where the format cannot hold it."""
    parser = verb_parser("convert", "SOURCE DESTINATION --to FORMAT", convert_verb)
    add_source(parser)
    parser.add("destination", type=str, help="folder to make; for openai a file")
    parser.add("--to", required=True, choices=list(FORMATS), help="format")
    add_choice(parser)
    options = given_options(parser.parse(argv))
    destination, to = options.pop("destination"), options.pop("to")
    sae = load(**options)
    print(printable_lines(f"wrote {save_as(sae, destination, to)}: {sae}"))
    if lost := _lost(sae, load(destination)):
        print(f"not kept, since {to} has no place for it: {', '.join(lost)}")


def _tell(text: str) -> None:
    print(printable_lines(text))


def _lost(sae: SAE, converted: SAE) -> list[str]:
    """Of what the config says of the language model, what a conversion did not keep."""
    said = ("site", "target_site", "model_name", "model_revision", "model_dtype")
    said += ("model_attention", "tokenizer_hash", "bos", "target_l0")
    ours, theirs = sae.config, converted.config
    return [n for n in said if getattr(ours, n) is not None and getattr(theirs, n) is None]


def add_source(parser: VerbParser) -> None:
    parser.add("source", type=str, help="folder, or repository on the Hub as name/repository")
    parser.add("--revision", type=str | None, help="branch, tag or commit")


def add_choice(parser: VerbParser) -> None:
    parser.add("--subfolder", type=str, default="", help="of the SAE, or of those to choose from")
    parser.add("--layer", type=int | None, help="block of the language model")
    parser.add("--width", type=str | None, help="number of latents, as 16k or 16384")
    parser.add("--l0", type=float | str | None, help="the nearest L0 is taken")


def given_options(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if value is not None}
