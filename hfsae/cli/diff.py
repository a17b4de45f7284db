"""The verb `hfsae diff`: two language models compared by a crosscoder over both."""

from pathlib import Path

from ..diffing import N_TOKENS
from ..machine.files import printable_lines
from ..machine.names import DIFF, FIGURES
from ..machine.refused import refuse_absent_source
from .parsing import verb_parser


def diff_verb(argv: list[str]) -> None:
    """`hfsae diff`: see `VERBS`."""
    parser = verb_parser("diff", "RUN")
    parser.add("run", type=str, help="folder of a trained SAE over sites of two models")
    parser.checks["run"] = lambda run: refuse_absent_source(Path(run))
    parser.add(
        "--n_tokens", type=int, default=N_TOKENS, help="the most held-out tokens that are read"
    )
    options = parser.parse(argv)
    from ..diffing import diff, table  # takes seconds
    from ..recipe.folder import home_of, locked_run, trained_folder
    from ..recipe.stages import finish

    folder = trained_folder(options["run"])
    with locked_run(home_of(folder) or folder, [folder]):
        diff(folder, options["n_tokens"])
        finish(folder)
    print(printable_lines(table(folder)))
    print(f"\nEvery latent is in {folder / DIFF}, the figure in {folder / FIGURES / 'diff.png'}.")
