"""The search: random settings, successive halving, and ranges that grow at their edges.

Each rung trains its trials from scratch, on twice the tokens of the rung before, and scores them on
validation documents. Later rungs see the better half. (Jamieson and Talwalkar 2016,
arXiv:1502.07943.)
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..evaluation import EvaluationResult
from ..machine.files import passes, read_json, write_whole
from ..machine.lock import locked
from ..machine.names import TRAINING
from ..machine.plain import finite
from ..machine.refused import Diverged, Refused
from ..models.config import l0_goal
from ..recipe import (
    Loaded,
    Recipe,
    check,
    evaluate_saes,
    inputs_of,
    load_all_trained,
    load_inputs,
    run,
    what_matters,
)
from ..training.trainer import make_accelerator
from .ranges import Range, Space, draw, read_space
from .report import write_report
from .trials import (
    LOG,
    TRIALS,
    Outcome,
    Trial,
    TrialScore,
    Tuning,
    groups,
    n_tokens,
    on_one_stream,
    recipe_of,
)

logger = logging.getLogger(__name__)
ELASTICITY = 0.3
"""Relative change of FVU for one of L0, of SAEs between L0 20 and 100 (scripts/comparisons): scores
are FVU at the target, where a trial ended a little beside it."""


def score_of(result: EvaluationResult, target: int | float | None) -> float:
    """FVU at the target L0, measured on validation documents.

    Raises:
        ValueError: the result was measured on documents of another side.
    """
    if result.side != "validation":
        raise Refused(
            f"settings are chosen on validation documents, not on {result.side or 'given'} ones: "
            "evaluate with evaluation.side=validation"
        )
    fvu, l0 = result.metrics["fvu"].value, result.metrics["l0"].value
    if not target or not math.isfinite(fvu) or l0 <= 0:
        return fvu if not target and math.isfinite(fvu) else math.inf
    return fvu * (l0 / target) ** ELASTICITY


def tune(tuning: Tuning, command: str = "") -> Path:
    """Search, and write the report; returns its folder. Called again, it resumes.

    Raises:
        ValueError: a setting is invalid (checked before anything is trained), the folder holds
            something else, or all trials diverged.
    """
    with locked(tuning.folder):
        _refuse_other_folder(tuning.folder)
        outcome = _search(tuning, command)
        return write_report(tuning, outcome, command)


def _refuse_other_folder(folder: Path) -> None:
    held = sorted(path.name for path in folder.iterdir() if not passes(path))
    if held and not (folder / LOG).is_file() and not (folder / TRIALS).is_dir():
        raise Refused(
            f"the folder {folder} holds something else ({held[0]}, and no {LOG}); give another "
            "training.output_dir, such as runs/tuned"
        )


def _search(tuning: Tuning, command: str) -> Outcome:
    spaces: dict[str, Space] = {a: read_space(tuning.ranges_of(a)) for a in tuning.arm_names}
    scorer = _Scorer(tuning, command)
    scores: list[TrialScore] = []
    for growth in range(tuning.growth + 1):
        first = growth * tuning.trials
        numbers = range(first, first + tuning.trials)
        trials = [
            Trial(arm, n, draw(space, tuning.tune_seed, n))
            for arm, space in spaces.items()
            for n in numbers
        ]
        scores += list(_halve(tuning, trials, scorer))
        outcome = Outcome(scores, spaces)
        grown = {arm: _grown(outcome, arm) for arm in spaces}
        if grown == spaces or growth == tuning.growth:
            break
        spaces = grown
    shutil.rmtree(tuning.folder / TRIALS, ignore_errors=True)  # the log has all that counts
    return outcome


def _halve(tuning: Tuning, trials: Sequence[Trial], scorer: "_Scorer") -> Iterator[TrialScore]:
    recipes = {trial.arm: recipe_of(tuning, trial, 0) for trial in trials}  # makes, so checks, all
    for recipe in recipes.values():
        check(recipe)
    scorer.expect(trials)
    for rung in range(tuning.rungs):
        scores = scorer.scores(trials, rung)
        yield from scores
        if all(math.isinf(score.value) for score in scores):
            raise Refused(f"all {len(scores)} trials failed; the first: {scores[0].failure}")
        trials = [s.trial for arm in tuning.arm_names for s in _better_half(scores, arm)]


def _better_half(scores: Iterable[TrialScore], arm: str) -> list[TrialScore]:
    own = sorted((s for s in scores if s.trial.arm == arm), key=lambda score: score.value)
    return own[: max(1, math.ceil(len(own) / 2))]


def _grown(outcome: Outcome, arm: str) -> Space:
    """The arm's ranges, longer where its best trial lies at an edge."""
    best, space = outcome.finals(arm)[0].trial.values, dict(outcome.spaces[arm])
    for name, own in outcome.spaces[arm].items():
        if isinstance(own, Range) and (edge := own.edge(best[name])):
            space[name] = own.grown(edge)
            logger.info("%s: the best %s lies at an edge: it grows to %s", arm, name, space[name])
    return space


class _Scorer:
    """Trains and scores trials; the log in the folder holds those that are done."""

    def __init__(self, tuning: Tuning, command: str) -> None:
        self.tuning, self.command, self.path = tuning, command, tuning.folder / LOG
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.done = {(line["name"], line["rung"]): line for line in map(json.loads, lines)}
        self.tokens_left, self.tokens_done, self.start = 0, 0, time.monotonic()

    @cache  # noqa: B019 - one scorer a search
    def _loaded(self) -> Loaded:
        return load_inputs(self.tuning, str(make_accelerator(self.tuning.training).device))

    def expect(self, trials: Sequence[Trial]) -> None:
        """Count the tokens of all rungs, for the time that is left."""
        n_arms = len(self.tuning.arm_names)
        of_arm = len(trials) // n_arms
        for rung in range(self.tuning.rungs):
            self.tokens_left += n_arms * of_arm * n_tokens(self.tuning, rung)
            of_arm = max(1, math.ceil(of_arm / 2))

    def scores(self, trials: Sequence[Trial], rung: int) -> list[TrialScore]:
        """Scores on a rung: from the log, or of SAEs that are trained now.

        Raises:
            ValueError: the log holds a trial with other settings.
        """
        for trial in trials:
            self._refuse_another_recipe(trial, rung)
        for group in groups(self.tuning, trials, rung):
            if missing := [trial for trial in group if (trial.name, rung) not in self.done]:
                self._measure(missing, rung)
            self.tokens_left -= len(group) * n_tokens(self.tuning, rung)
        return [self._known(trial, rung) for trial in trials]

    def _refuse_another_recipe(self, trial: Trial, rung: int) -> None:
        line = self.done.get((trial.name, rung))
        if line is not None and line["settings"] != _settings(self.tuning, trial, rung):
            raise Refused(
                f"{self.path} holds trials of another recipe; give another training.output_dir, "
                "or delete the folder"
            )

    def _known(self, trial: Trial, rung: int) -> TrialScore:
        line = self.done[trial.name, rung]
        value = math.inf if line["score"] is None else line["score"]
        return TrialScore(trial, rung, value, line["measured"], line["failure"])

    def _measure(self, trials: Sequence[Trial], rung: int) -> None:
        """Train and evaluate these, together unless one of them diverges, and log the scores."""
        loaded = self._loaded()
        try:
            recipe = on_one_stream(self.tuning, trials, rung)
            lines = _trained(recipe, self.command, loaded)
        except Diverged as error:  # which is part of a search
            if len(trials) > 1:
                for trial in trials:
                    self._measure([trial], rung)
                return
            lines = {trials[0].name: {"score": None, "measured": {}, "failure": str(error)}}
        for trial in trials:
            self.done[trial.name, rung] = {
                "name": trial.name,
                "rung": rung,
                "n_tokens": n_tokens(self.tuning, rung),
                "values": trial.values,
                **lines[trial.name],
                "settings": _settings(self.tuning, trial, rung),
            }
        write_whole(self.path, "".join(f"{json.dumps(each)}\n" for each in self.done.values()))
        self._tell(lines, rung)

    def _tell(self, lines: dict[str, dict[str, Any]], rung: int) -> None:
        of_each, n_rungs = n_tokens(self.tuning, rung), self.tuning.rungs
        self.tokens_done += len(lines) * of_each
        left = self.tokens_left - len(lines) * of_each
        minutes = (time.monotonic() - self.start) / self.tokens_done * left / 60
        for name, line in lines.items():
            measured = ", ".join(f"{key} {value:.4g}" for key, value in line["measured"].items())
            shown = line["failure"] or measured
            logger.info("%s, rung %d of %d: %s", name, rung + 1, n_rungs, shown)
        logger.info("about %.0f min left", minutes)


def _trained(recipe: Recipe, command: str, loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Train a recipe's SAEs and evaluate them side by side; by name, lines of the log."""
    run(replace(recipe, evaluation=replace(recipe.evaluation, n_tokens=0)), command, loaded)
    folders = {name: Path(recipe.training.output_dir, name) for name in recipe.saes}
    saes, limits = load_all_trained(folders, inputs_of(recipe, loaded).device)
    lines = {}
    for name, result in evaluate_saes(recipe, loaded, saes, limits, losses=False).items():
        score = score_of(result, l0_goal(recipe.saes[name]))
        measured = {key: result.metrics[key].value for key in ("l0", "fvu", "dead_share")}
        measured["seconds"] = read_json(folders[name] / TRAINING)["seconds"]["sae"]
        lines[name] = {"score": finite(score), "measured": measured, "failure": ""}
    return lines


def _settings(tuning: Tuning, trial: Trial, rung: int) -> str:
    """A digest of everything that determines a trial's score."""
    text = json.dumps(what_matters(recipe_of(tuning, trial, rung), ""), sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()
