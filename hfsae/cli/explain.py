"""The verbs `hfsae explain` and `hfsae probe`: names for latents, and what a few of them reveal."""

from pathlib import Path
from typing import Any

from ..explanations import ExplainArguments, ScoreArguments
from ..explanations.arguments import SCORES
from ..explanations.judges import JudgeArguments
from ..io.file_names import (
    EXPLANATIONS,
    EXPLANATIONS_RECORD,
    EXPLANATIONS_REPORT,
    PROBING,
    PROBING_REPORT,
)
from ..io.files import printable_lines
from ..runs import ExplainRequest
from ..runs.arguments import CONTROLS, EXPLAINERS
from .parsing import VerbParser, verb_parser
from .recipes import parse_given
from .source import add_folders, add_sae, add_saes, find, find_all, tell_text


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
    _add_options(parser)
    options, given = parse_given(parser, argv)
    request = _request(parser, options)
    args = ExplainArguments(**parser.take(ExplainArguments, options))
    placed = find(options, given)
    tell_text("explain", placed)
    from ..runs import explain_sae

    result = explain_sae(placed, args, request)
    print(printable_lines(result.report))
    if result.rows:
        written = ", ".join(Path(name).name for name in (EXPLANATIONS_RECORD, EXPLANATIONS_REPORT))
        path = placed.folder / EXPLANATIONS
        print(f"The explanations are {path}; {written} are beside it.")


def _request(parser: VerbParser, options: dict[str, Any]) -> ExplainRequest:
    """The request that the options describe; they are taken out of all."""
    judge = parser.take(JudgeArguments, options)
    return ExplainRequest(
        judge=JudgeArguments(**judge) if judge else None,
        scores=ScoreArguments(**parser.take(ScoreArguments, options)),
        **parser.take(ExplainRequest, options),
    )


def _add_options(parser: VerbParser) -> None:
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
    parser.add_fields(
        JudgeArguments,
        *("model", "base_url", "provider", "requests", "answers", "key_env"),
        *("price_in", "price_out"),
        renamed={"model": "judge"},
    )
    parser.add_fields(ExplainRequest, "dry_run")


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
    from ..runs import probe_saes  # takes seconds

    result = probe_saes(placed, args, **options)  # the tasks, and their columns
    print(printable_lines(result.report))
    folders = dict.fromkeys(str(one.folder) for one in placed)
    print(f"Results: {PROBING} and {PROBING_REPORT} in {', '.join(folders)}.")
