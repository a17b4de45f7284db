"""Verbs of the `hfsae` command for SAEs in files and repositories: list, push, verify, convert."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..io.errors import refuse_absent_source
from ..io.file_names import FINGERPRINT
from ..io.files import printable, printable_lines
from .parsing import VerbParser, verb_parser

SOURCE = "folder, or repository on the Hub as name/repository"


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
    """`hfsae push`: see `VERBS`."""
    from ..hub.upload import push, refuse_repo_id

    parser = verb_parser("push", "SOURCE NAME/REPOSITORY")
    parser.add("source", type=str, help=f"folder that `hfsae train` wrote; or any {SOURCE}")
    parser.add("repo", type=str, help="repository on the Hub, as name/repository")
    parser.checks = {"source": refuse_absent_source, "repo": refuse_repo_id}
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
    with folder_of(which, args.pop("site")) as folder:
        url = push(folder, args.pop("repo"), private=private, tell=_tell, **args)
    if url:
        print(f"pushed: {url}")


@contextmanager
def folder_of(which: dict[str, Any], site: str | None = None) -> Iterator[str]:
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
    from ..runs import chosen, own_folder

    with own_folder(chosen(**which), site) as folder:
        _tell(f"using {source} in hfsae's format, from {folder}")
        yield str(folder)


def verify_verb(argv: list[str]) -> None:
    """`hfsae verify`: see `VERBS`."""
    parser = verb_parser("verify", "SOURCE")
    add_source(parser)
    add_choice(parser)
    parser.add("--dtype", type=str | None, help="cast to this dtype first, for example bfloat16")
    options = given_options(parser.parse(argv))
    from ..hub import files_beside, load

    sae = load(**options)
    home = files_beside(names=(FINGERPRINT,), **{k: v for k, v in options.items() if k != "dtype"})
    if home is None or not (home / FINGERPRINT).is_file():
        from ..models.fingerprint import state_hash

        weights = sae.state_dict()  # finite, since `load` refuses NaN
        n, names = sum(tensor.numel() for tensor in weights.values()), ", ".join(weights)
        _tell(
            f"NOT COMPARED: {options['source']} has no {FINGERPRINT}; its {n:,} weights ({names}) "
            f"are finite; SHA-256 of all: {state_hash(weights)}"
        )
        _leave(3)
    verification = sae.verify(home)
    print(printable_lines(str(verification)))
    _leave(0 if verification.ok else 1)


def _leave(code: int) -> None:
    if code:
        raise SystemExit(code)


def convert_verb(argv: list[str]) -> None:
    """`hfsae convert`: see `VERBS`."""
    from ..convert import WRITTEN

    parser = verb_parser("convert", "SOURCE DESTINATION --to FORMAT")
    add_source(parser)
    parser.add("destination", type=str, help="folder to create; for openai a file")
    parser.add("--to", required=True, choices=list(WRITTEN), help="format to write")
    add_choice(parser)
    options = given_options(parser.parse(argv))
    destination, to = options.pop("destination"), options.pop("to")
    from ..convert import FORMATS, save_as, save_set_as
    from ..hub import load, load_set

    if FORMATS[to].save_set and not {"layer", "width", "l0"} & options.keys():
        saes = load_set(**options)
        print(printable_lines(f"wrote {save_set_as(saes, destination, to)}: {len(saes)} SAEs"))
        return
    sae = load(**options)
    print(printable_lines(f"wrote {save_as(sae, destination, to)}: {sae}"))
    ours, theirs = sae.config, load(destination).config
    about = ("site", "target_site", "sites", "model_name", "model_revision", "model_dtype")
    about += ("model_attention", "model_weights", "tokenizer_hash", "bos", "target_l0")
    lost = [n for n in about if getattr(ours, n) is not None and getattr(theirs, n) is None]
    if lost:
        print(f"left out, since {to} files have no field for it: {', '.join(lost)}")


def _tell(text: str) -> None:
    print(printable_lines(text))


def add_source(parser: VerbParser) -> None:
    """Add SOURCE and --revision."""
    parser.add("source", type=str, help=SOURCE)
    parser.checks["source"] = refuse_absent_source
    parser.add("--revision", type=str | None, help="branch, tag or commit")


def add_choice(parser: VerbParser) -> None:
    """Add the options that choose one SAE of several."""
    parser.add(
        "--subfolder", type=str, default="", help="folder of the SAE, or of several to choose from"
    )
    add_meaning(parser)


def add_site(parser: VerbParser) -> None:
    """Add --site."""
    parser.add(
        "--site", type=str | None, help="site of an SAE whose config names none, such as layers.12"
    )


def add_meaning(parser: VerbParser) -> None:
    """Add the options that choose one SAE of several by what it is."""
    parser.add("--layer", type=int | None, help="block of the language model")
    parser.add("--width", type=str | None, help="number of latents: 16k or 16384")
    parser.add("--l0", type=float | str | None, help="take the SAE with the nearest L0")


def given_options(args: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in args.items() if value is not None}
