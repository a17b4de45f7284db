"""The verb `hfsae explain`: names for latents, with scores and controls."""

from pathlib import Path
from typing import Any, Literal

from ..explanations import ExplainArguments, ScoreArguments
from ..explanations.judges import JudgeArguments
from ..explanations.scorers import SCORERS
from ..machine.files import printable_lines
from ..machine.names import EXPLANATIONS, EXPLANATIONS_RECORD, EXPLANATIONS_REPORT
from ..measurement import explain_placed
from ..recipe import CONTROLS, EXPLAINERS, ExplainRequest
from .parsing import VerbParser, verb_parser
from .recipes import parse_given
from .source import add_sae, find, tell_text

_DEFAULT, _SCORED = ExplainArguments(), ScoreArguments()
_OF_JUDGE = ("judge", "base_url", "provider", "requests", "answers", "key_env")
_OF_JUDGE += ("price_in", "price_out")


def explain_verb(argv: list[str]) -> None:
    """`hfsae explain`, as `VERBS` says."""
    parser = verb_parser("explain", "SOURCE [--OPTION VALUE ...]")
    parser.examples = (
        "hfsae explain runs/mine",
        "hfsae explain someone/sae --lm.name google/gemma-2-2b --text.dataset my.jsonl",
        "hfsae explain runs/mine --explainer file --file neuronpedia.jsonl",
        "hfsae explain runs/mine --explainer lm --scores detection --judge ID --requests asked",
    )
    add_sae(parser, "lm", "text", "harvest")
    _add_latents(parser)
    _add_judge(parser)
    options, given = parse_given(parser, argv)
    placed = find(options, given)
    request = _request(options)
    args = ExplainArguments(**options)
    tell_text("explain", placed)
    result = explain_placed(placed, args, request)
    print(printable_lines(result.report))
    if result.rows:
        written = ", ".join(Path(name).name for name in (EXPLANATIONS_RECORD, EXPLANATIONS_REPORT))
        path = placed.folder / EXPLANATIONS
        print(f"The explanations are {path}; {written} are beside it.")


def _request(options: dict[str, Any]) -> ExplainRequest:
    """The options that are not of `ExplainArguments`, taken out of all."""
    of_judge = {name: options.pop(name) for name in _OF_JUDGE}
    of_judge["model"] = of_judge.pop("judge")
    given = {name: value for name, value in of_judge.items() if value is not None}
    judge = JudgeArguments(**given) if given else None
    asked = {name: options.pop(f"judged_{name}") for name in ("windows", "directions", "latents")}
    scores = ScoreArguments(options.pop("scores") or (), options.pop("protocol"), **asked)
    file = options.pop("file")
    return ExplainRequest(
        options.pop("explainer"),
        None if file is None else Path(file),
        scores,
        judge,
        options.pop("dry_run"),
        options.pop("controls") or (),
    )


def _add_latents(parser: VerbParser) -> None:
    parser.add(
        "--n_latents",
        type=int | Literal["all"],
        default=_DEFAULT.n_latents,
        help="latents, drawn at random among those that fire on 0.01 % to 10 % of tokens; or all",
    )
    parser.add("--latents", type=int, nargs="+", help="these latents instead, by index")
    parser.add("--n_tokens", type=int, default=_DEFAULT.n_tokens, help="held-out tokens to read")
    parser.add(
        "--explainer",
        choices=list(EXPLAINERS),
        default="template",
        help="template: peak tokens and their shares; lm: a name by the judge; human: "
        "features/labels.json; file: --file",
    )
    parser.add(
        "--file",
        type=str | None,
        help="parquet, jsonl or json with latent and explanation, or Neuronpedia's export",
    )
    parser.add(
        "--controls",
        nargs="+",
        choices=list(CONTROLS),
        help="also an SAE of re-drawn weights that fire as often",
    )
    parser.add("--seed", type=int, default=_DEFAULT.seed, help="seed of all that is drawn")


def _add_judge(parser: VerbParser) -> None:
    parser.add(
        "--scores",
        nargs="+",
        choices=["lexical", *(name for name in SCORERS if name != "saebench")],
        help="scores beside lexical, which needs no judge",
    )
    parser.add(
        "--protocol",
        choices=["ours", "saebench", "paper"],
        default=_SCORED.protocol,
        help="saebench, paper: windows and score as theirs, for numbers beside theirs",
    )
    parser.add(
        "--judged_windows",
        type=int,
        default=_SCORED.windows,
        help="windows judged of a latent, half of them active",
    )
    parser.add(
        "--judged_latents", type=int | None, help="how many latents are judged (default: all)"
    )
    parser.add(
        "--judged_directions",
        type=int,
        default=_SCORED.directions,
        help="random directions, named and judged",
    )
    parser.add(
        "--judge",
        type=str | None,
        help="packaged (SmolLM2, the default), a Hub id, a folder, or a model elsewhere",
    )
    parser.add("--base_url", type=str | None, help="an OpenAI-compatible server's address")
    parser.add("--provider", type=str | None, help="a Hugging Face Inference Provider, or auto")
    parser.add(
        "--requests",
        type=str | None,
        help="folder for requests in OpenAI's batch format, instead of a server",
    )
    parser.add(
        "--answers", nargs="+", help="all files that came back so far, of answers and of errors"
    )
    parser.add("--key_env", type=str | None, help="the environment variable with the key")
    parser.add("--price_in", type=float | None, help="money for a million tokens of questions")
    parser.add("--price_out", type=float | None, help="money for a million tokens of answers")
    parser.add(
        "--dry_run", action="store_true", help="count calls, tokens, time and money; ask nothing"
    )
