"""The report of a search: the best settings of each arm, their neighbours, edges; and recipes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from ..machine.files import write_whole
from ..machine.markdown import table
from ..machine.names import REPORT
from ..recipe import as_plain
from .ranges import Range
from .trials import LOG, Outcome, TrialScore, Tuning, n_tokens, with_values

_SHOWN = 10  # of an arm's trials on the last rung


def write_report(tuning: Tuning, outcome: Outcome, command: str) -> Path:
    """Write report.md, and best-ARM.yaml for each arm; returns the folder."""
    parts = [
        "# Settings by random search",
        _about(tuning, outcome),
        *(part for arm in tuning.arm_names for part in _of_arm(tuning, outcome, arm)),
        f"## Reproduce\n\n    {command}\n\nEvery trial stands in `{LOG}`.",
    ]
    write_whole(tuning.folder / REPORT, "\n\n".join(parts) + "\n")
    for arm in tuning.arm_names:
        best = with_values(tuning, outcome.finals(arm)[0].trial)
        best.training.output_dir = str(tuning.folder / _best(arm))
        text = yaml.safe_dump(as_plain(best), sort_keys=False, allow_unicode=True)
        write_whole(tuning.folder / f"{_best(arm)}.yaml", text)
    return tuning.folder


def _best(arm: str) -> str:
    return f"best-{arm}"


def _about(tuning: Tuning, outcome: Outcome) -> str:
    budgets = ", ".join(f"{n_tokens(tuning, rung):,}" for rung in range(tuning.rungs))
    n_trials = len({score.trial.name for score in outcome.scores})
    tokens = sum(n_tokens(tuning, score.rung) for score in outcome.scores)
    model = "activation files" if tuning.kind == "files" else tuning.lm.name
    return (
        f"{n_trials} settings of {len(tuning.arm_names)} arm(s), "
        f"drawn with seed {tuning.tune_seed}, "
        f"each trained at `{tuning.sae.get('site')}` of {model} on {budgets} activations, "
        "the better half of an arm going on to the next; "
        f"{tokens:,} in all, as many for each arm. Scored by FVU at the target L0 on validation "
        "documents, which no reported result may use: evaluate the chosen recipe on test documents."
    )


def _of_arm(tuning: Tuning, outcome: Outcome, arm: str) -> Iterator[str]:
    finals, space = outcome.finals(arm), outcome.spaces[arm]
    names = sorted(space)
    yield f"## {arm}\n\nThe best settings, as a recipe: `{_best(arm)}.yaml`."
    rows = [["setting", "range", "best", "next below", "next above", ""]]
    best = finals[0].trial.values
    for name in names:
        own, value = space[name], best[name]
        edge = own.edge(value)
        note = f"at the {edge} edge: the best may lie beyond" if edge else ""
        below, above = _neighbours(finals, name) if isinstance(own, Range) else ("", "")
        rows.append([f"`{name}`", str(own), f"**{value}**", below, above, note])
    yield table(rows)
    yield "Neighbours: the nearest values of other trials on the last rung, and their scores."
    rows = [["trial", *(f"`{name}`" for name in names), "score", "FVU", "L0", "dead", "seconds"]]
    rows += [_row(score, names) for score in finals[:_SHOWN]]
    yield table(rows)


def _neighbours(finals: Sequence[TrialScore], name: str) -> tuple[str, str]:
    """The nearest values below and above the best one's, with their scores."""
    value = finals[0].trial.values[name]
    others = [(s.trial.values[name], s.value) for s in finals[1:]]
    below = max((o for o in others if o[0] < value), default=None)
    above = min((o for o in others if o[0] > value), default=None)
    below, above = (f"{o[0]} ({o[1]:.4f})" if o else "none" for o in (below, above))
    return below, above


def _row(score: TrialScore, names: Sequence[str]) -> list[str]:
    values = [str(score.trial.values[name]) for name in names]
    if score.failure:
        return [score.trial.name, *values, "failed", "", "", "", ""]
    m = score.measured
    numbers = [f"{score.value:.4f}", f"{m['fvu']:.4f}", f"{m['l0']:.1f}"]
    return [score.trial.name, *values, *numbers, f"{m['dead_share']:.1%}", f"{m['seconds']:.0f}"]
