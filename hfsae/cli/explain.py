"""The verb `hfsae explain`: names for latents, with scores and controls."""

from pathlib import Path
from typing import Literal

from ..explain import ExplainArguments
from ..machine.files import printable_lines
from ..machine.names import EXPLANATIONS, EXPLANATIONS_RECORD, EXPLANATIONS_REPORT
from ..recipe import EXPLAINERS, explain_folder, trained_folder
from .parsing import verb_parser

_DEFAULT = ExplainArguments()


def explain_verb(argv: list[str]) -> None:
    """Explain what latents of a trained SAE mean, and score that: on held-out documents, half of
    which explain while the other half tests, beside another latent's explanation and random
    directions. It reads the text once, and writes explanations and a report below features/; the
    same command again prints the report.
    """
    parser = verb_parser("explain", "FOLDER [--OPTION VALUE ...]", explain_verb)
    parser.examples = (
        "hfsae explain runs/mine",
        "hfsae explain runs/mine --latents 17 99 1234 --n_tokens 500000",
        "hfsae explain runs/mine --explainer file --file neuronpedia.jsonl",
    )
    parser.add("folder", type=str, help="what `hfsae train` wrote")
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
        help="template: peak tokens and their shares, without a language model; human: "
        "features/labels.json; file: --file",
    )
    parser.add(
        "--file",
        type=str | None,
        help="explanations: parquet, jsonl or json with latent and explanation, or Neuronpedia's "
        "export",
    )
    parser.add("--seed", type=int, default=_DEFAULT.seed, help="seed of all that is drawn")
    options = parser.parse(argv)
    folder = trained_folder(options.pop("folder"))
    kind, file = options.pop("explainer"), options.pop("file")
    args = ExplainArguments(**options)
    print(printable_lines(explain_folder(folder, args, kind, None if file is None else Path(file))))
    written = ", ".join(Path(name).name for name in (EXPLANATIONS_RECORD, EXPLANATIONS_REPORT))
    print(f"The explanations are {folder / EXPLANATIONS}; {written} are beside it.")
