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
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..evaluation import EvaluationResult
from ..lm import LoadedLM
from ..machine.files import passes, read_json, write_whole
from ..machine.lock import locked
from ..machine.names import EVALUATION, TRAINING
from ..machine.refused import Diverged, Refused
from ..models.config import l0_goal
from ..recipe import Recipe, check, load, run, what_matters
from ..training.trainer import make_accelerator
from .report import write_report
from .space import Range, Space, draw, read_space
from .trials import LOG, TRIALS, Outcome, Score, Trial, Tuning, n_tokens, recipe_of

logger = logging.getLogger(__name__)
ELASTICITY = 0.3
"""Relative change of FVU for one of L0, of SAEs between L0 20 and 100 (scripts/comparisons): scores
are FVU at the target, where a trial ended a little beside it."""


def score_of(result: EvaluationResult, target: int | float | None) -> float:
    """FVU at the target L0; of documents for choosing alone.

    Raises:
        ValueError: the result is of other documents than validation ones.
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
        ValueError: an invalid setting, checked before anything is trained; a folder that holds
            something else; or all trials diverged.
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
    scores: list[Score] = []
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
    _forget_all_but_the_best(tuning, outcome)
    return outcome


def _halve(tuning: Tuning, trials: Sequence[Trial], scorer: "_Scorer") -> Iterator[Score]:
    recipes = {trial.arm: recipe_of(tuning, trial, 0) for trial in trials}  # makes, so checks, all
    for recipe in recipes.values():
        check(recipe)
    scorer.expect(trials)
    for rung in range(tuning.rungs):
        scores = [scorer.score(trial, rung) for trial in trials]
        yield from scores
        if all(math.isinf(score.value) for score in scores):
            raise Refused(f"all {len(scores)} trials failed; the first: {scores[0].failure}")
        trials = [s.trial for arm in tuning.arm_names for s in _better_half(scores, arm)]


def _better_half(scores: Iterable[Score], arm: str) -> list[Score]:
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


def _forget_all_but_the_best(tuning: Tuning, outcome: Outcome) -> None:
    best = [outcome.finals(arm)[0] for arm in tuning.arm_names]
    kept = {Path(recipe_of(tuning, s.trial, s.rung).training.output_dir) for s in best}
    for folder in (tuning.folder / TRIALS).glob("*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


class _Scorer:
    """Trains and scores trials; the log in the folder holds those that are done."""

    def __init__(self, tuning: Tuning, command: str) -> None:
        self.tuning, self.command, self.path = tuning, command, tuning.folder / LOG
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.done = {(line["name"], line["rung"]): line for line in map(json.loads, lines)}
        self.tokens_left, self.tokens_done, self.start = 0, 0, time.monotonic()

    @cache  # noqa: B019 - one scorer a search
    def _loaded(self) -> LoadedLM:
        return load(self.tuning.lm, str(make_accelerator(self.tuning.training).device))

    def expect(self, trials: Sequence[Trial]) -> None:
        """Count the tokens of all rungs, for the time that is left."""
        n_arms = len(self.tuning.arm_names)
        of_arm = len(trials) // n_arms
        for rung in range(self.tuning.rungs):
            self.tokens_left += n_arms * of_arm * n_tokens(self.tuning, rung)
            of_arm = max(1, math.ceil(of_arm / 2))

    def score(self, trial: Trial, rung: int) -> Score:
        """The trial's score on a rung: from the log, or trained now.

        Raises:
            ValueError: the log holds this trial with other settings.
        """
        recipe, line = recipe_of(self.tuning, trial, rung), self.done.get((trial.name, rung))
        if line is None:
            line = self.done[trial.name, rung] = self._train(trial, rung, recipe)
            write_whole(self.path, "".join(f"{json.dumps(each)}\n" for each in self.done.values()))
        elif line["settings"] != _settings(recipe):
            raise Refused(
                f"{self.path} holds trials of another recipe; give another training.output_dir, "
                "or delete the folder"
            )
        self.tokens_left -= n_tokens(self.tuning, rung)
        score = line["score"]
        value = math.inf if score is None else score
        return Score(trial, rung, value, line["measured"], line["failure"])

    def _train(self, trial: Trial, rung: int, recipe: Recipe) -> dict[str, Any]:
        folder, failure, measured, score = Path(recipe.training.output_dir), "", {}, None
        loaded = self._loaded()
        try:
            run(recipe, self.command, loaded)
            result = EvaluationResult.from_dict(read_json(folder / EVALUATION))
            score = score_of(result, l0_goal(recipe.sae))
            measured = {n: result.metrics[n].value for n in ("l0", "fvu", "dead_share")}
            measured["seconds"] = read_json(folder / TRAINING)["seconds"]["train"]
        except Diverged as error:  # which is part of a search
            failure = str(error)
        self._tell(trial, rung, measured, failure)
        return {
            "name": trial.name,
            "rung": rung,
            "n_tokens": recipe.training.n_tokens,
            "values": trial.values,
            "score": score if score is not None and math.isfinite(score) else None,
            "measured": measured,
            "failure": failure,
            "settings": _settings(recipe),
        }

    def _tell(self, trial: Trial, rung: int, measured: dict[str, float], failure: str) -> None:
        self.tokens_done += n_tokens(self.tuning, rung)
        left = (time.monotonic() - self.start) / self.tokens_done * self.tokens_left
        shown = failure or ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        logger.info(
            "%s, rung %d of %d: %s (about %.0f min left)",
            trial.name,
            rung + 1,
            self.tuning.rungs,
            shown,
            left / 60,
        )


def _settings(recipe: Recipe) -> str:
    """A digest of everything that determines a trial's score."""
    text = json.dumps(what_matters(recipe, ""), sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()
