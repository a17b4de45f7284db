"""The verb `hfsae probe`: what a few latents reveal about texts, beside controls."""

from ..evaluation.probing import ProbeArguments, read_tasks
from ..machine.files import printable_lines
from ..machine.names import PROBING, PROBING_REPORT
from .parsing import verb_parser
from .recipes import parse_given
from .source import add_folders, add_saes, find_all


def probe_verb(argv: list[str]) -> None:
    """`hfsae probe`: see `VERBS`."""
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
    placed = find_all(options, given, options.pop("output_dir"))
    from ..measurement import probe_placed  # takes seconds

    result = probe_placed(placed, args, **options)  # the tasks, and their columns
    print(printable_lines(result.report))
    folders = dict.fromkeys(str(one.folder) for one in placed)
    print(f"Results: {PROBING} and {PROBING_REPORT} in {', '.join(folders)}.")
