"""The verb `hfsae probe`: what a few latents reveal about texts, beside controls."""

from typing import Literal

from ..evaluation.probing import ProbeArguments
from ..machine.files import printable_lines
from ..machine.names import PROBING, PROBING_REPORT
from ..measurement import probe_placed
from .parsing import verb_parser
from .recipes import parse_given
from .source import add_folders, add_saes, find_all

_DEFAULT = ProbeArguments()
_COLUMNS = ("text_column", "label_column", "group_column", "split")


def probe_verb(argv: list[str]) -> None:
    """`hfsae probe`, as `VERBS` says."""
    parser = verb_parser("probe", "SOURCE ... [--OPTION VALUE ...]")
    parser.examples = (
        "hfsae probe runs/mine",
        "hfsae probe google/gemma-scope-2b-pt-res --layer 12 --l0 80 --lm.name google/gemma-2-2b",
        "hfsae probe runs/mine runs/other --n_tasks all --n_texts 1500",
        "hfsae probe runs/mine --tasks reviews.jsonl --text_column text --label_column stars",
        "hfsae probe runs/mine --tasks reviews.jsonl --group_column author",
    )
    add_saes(parser, "lm")
    add_folders(parser)
    parser.add(
        "--tasks",
        type=str,
        default="packaged",
        help="packaged: binary sets of the Python package sae-probes; a jsonl file with a text and "
        "a label a line; or a Hub data set",
    )
    parser.add("--text_column", type=str, default="text", help="of a file or data set")
    parser.add("--label_column", type=str, default="label", help="of a file or data set")
    parser.add(
        "--group_column",
        type=str | None,
        help="of a file or data set, such as a text's source: texts of a group are all on one side "
        "of each split",
    )
    parser.add("--split", type=str, default="train", help="of a Hub data set")
    parser.add(
        "--n_tasks",
        type=int | Literal["all"],
        default=_DEFAULT.n_tasks,
        help="packaged sets, drawn at random; or all",
    )
    parser.add("--n_texts", type=int, default=_DEFAULT.n_texts, help="texts of a task")
    parser.add("--k", type=int, nargs="+", default=list(_DEFAULT.k), help="numbers of latents")
    parser.add(
        "--max_tokens", type=int, default=_DEFAULT.max_tokens, help="of a text: its end is read"
    )
    parser.add(
        "--n_words",
        type=int,
        default=_DEFAULT.n_words,
        help="words for first-letter absorption; 0: none",
    )
    parser.add(
        "--uniformity_tokens",
        type=int,
        default=_DEFAULT.uniformity_tokens,
        help="tokens for the uniformity of effects; 0: none",
    )
    parser.add("--seed", type=int, default=_DEFAULT.seed, help="seed of all that is drawn")
    options, given = parse_given(parser, argv)
    placed = find_all(options, given, options.pop("output_dir"))
    columns = {name: options.pop(name) for name in _COLUMNS}
    tasks = options.pop("tasks")
    result = probe_placed(placed, ProbeArguments(**options), tasks, **columns)
    print(printable_lines(result.report))
    folders = dict.fromkeys(str(one.folder) for one in placed)
    print(f"Results: {PROBING} and {PROBING_REPORT} in {', '.join(folders)}.")
