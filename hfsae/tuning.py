"""Choose settings on validation documents: random search with successive halving.

Optuna draws the settings and keeps every score, so that a search resumes. Each rung trains its
trials from scratch, on twice the tokens of the rung before, and scores them; later rungs see the
better half (Jamieson and Talwalkar 2016, arXiv:1502.07943). The halves are of all trials of a
rung, not of those that ended so far, as Optuna's pruner has it: so each arm has the same budget.

In order: a tuning's recipe; the search; the training recipe of a trial; the score; the report.
"""

import json
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .io.bounds import check_least
from .io.errors import Diverged, Refused
from .io.file_names import REPORT, TRAINING
from .io.files import json_safe, locked, passes, read_json, write_whole
from .io.markdown import table
from .io.units import section_of
from .runs import LEFT_OUT, Recipe, as_plain, changed_training, check_arm, what_matters
from .training.arguments import SHARED

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

    from .evaluation import EvaluationResult
    from .runs import Loaded

logger = logging.getLogger(__name__)
ELASTICITY = 0.3
"""Relative change of FVU for one of L0, of SAEs between L0 20 and 100 (scripts/comparisons): scores
are FVU at the target, where a trial ended a little beside it."""
EDGE = 0.1
"""Share of a range, at either end, that counts as its edge."""
VALIDATION = 0.05
"""Share of documents for validation, where the recipe has none."""
JOURNAL, LOG, TRIALS = "trials.journal", "trials.jsonl", "trials"
_SHOWN = 10  # of an arm's trials on the last rung
_SECTIONS = ("sae", "training", "shuffle")
_ARM = {"sae", "training", "ranges"}
Range = dict[str, float] | list[Any]
"""{"low": 1e-3, "high": 1e-2}, or a list of values"""


@dataclass
class Tuning(Recipe):
    """A training recipe, and ranges of its settings to search."""

    ranges: dict[str, Any] = field(default_factory=dict)
    """By dotted field (training.learning_rate, sae.bandwidth): {low: 1e-3, high: 1e-2}, drawn
    uniformly in logarithms, or a list of values. Without any: the learning rate from a third to
    three times the recipe's, and training.init_encoder_scale from 0.05 to 1."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Several searches with equal budgets, by name: sae and training, changes to these
    sections; `ranges`, further ranges. Without any, one search."""
    trials: int = 16
    """Settings that each arm draws."""
    rungs: int = 3
    """Rounds: the last has all of training.n_tokens, each before it half of the next's; after each
    the better half goes on."""
    growth: int = 1
    """Times that ranges grow where the best value lies at an edge; each arm then draws as many
    settings again."""
    together: int = 4
    """Trials that are trained and evaluated at once, on one stream of activations, where their
    batches are equal; more of them need more memory."""
    tune_seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Here "auto" is a number that does not depend on the training's length.
        self.evaluation = replace(self.evaluation, n_tokens=self.evaluation.most_tokens)
        if self.saes:
            raise Refused("a tuning has arms instead of saes; give each arm its fields of sae")
        check_least(self, trials=2, rungs=1, growth=0, together=1)
        if self.training.n_tokens < self.training.batch_size * 2 ** (self.rungs - 1):
            raise Refused(
                f"rungs={self.rungs} leaves the first one less than a batch of "
                f"training.n_tokens={self.training.n_tokens}; use fewer rungs"
            )
        for name, arm in self.arms.items():
            if not re.fullmatch(r"[\w.-]*\w", name):
                raise Refused(
                    f"an arm cannot be called {name!r}: its name is part of folders and files; use "
                    "letters, digits, '-' and '_'"
                )
            check_arm(name, arm, _ARM)
        for arm in self.arm_names:
            ranges: dict[str, Any] = self.ranges_of(arm)  # as somebody wrote them
            for name, own in ranges.items():
                is_range = isinstance(own, Mapping) and {*own} == {"low", "high"}
                is_range = is_range and all(isinstance(end, int | float) for end in own.values())
                is_range = is_range and 0 < own["low"] < own["high"] < math.inf
                if not is_range and not (isinstance(own, list) and own):
                    raise Refused(
                        f"ranges.{name} is {own!r}; give {{low: 1e-3, high: 1e-2}} (positive, low "
                        "below high), or a list of values"
                    )
                section, _, key = name.partition(".")
                given = getattr(self, section) if section in _SECTIONS else None
                if given is None or (is_dataclass(given) and not hasattr(given, key)):
                    raise Refused(
                        f"ranges.{name} is not a field of {', '.join(_SECTIONS)}; name "
                        "one, such as training.learning_rate"
                    )

    @property
    def arm_names(self) -> list[str]:
        """Names of the arms; "all" for a single search."""
        return list(self.arms) or ["all"]

    def ranges_of(self, arm: str) -> dict[str, Range]:
        """All ranges of an arm, by dotted field."""
        own = self.arms.get(arm, {})
        ranges = {**self.ranges, **own.get("ranges", {})}
        rate = own.get("training", {}).get("learning_rate", self.training.learning_rate)
        return ranges or {
            "training.learning_rate": {"low": rate / 3, "high": 3 * rate},
            "training.init_encoder_scale": {"low": 0.05, "high": 1.0},
        }

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(self.training.output_dir)


Trials = dict[str, dict[str, Any]]
"""{name: values of settings by dotted field}; a name is its arm's and its number, as "all-003"."""
Line = dict[str, Any]
"""Of a trial on a rung, as in the log: name, rung, n_tokens, values, score (FVU at the target L0,
on validation documents; None where it failed), measured, failure."""


def tune(tuning: Tuning, command: str = "") -> Path:
    """Search, and write the report; returns its folder. Called again, it resumes.

    Raises:
        ValueError: Optuna is not installed, a setting is invalid (checked before anything is
            trained), the folder holds something else, or all trials diverged.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import TrialState
    except ModuleNotFoundError as error:
        raise Refused(
            "`hfsae tune` searches with Optuna; install it: pip install 'hfsae[tune]'"
        ) from error
    from .runs import check, load_inputs
    from .training.trainer import make_accelerator

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    @cache
    def loaded() -> "Loaded":
        return load_inputs(tuning, str(make_accelerator(tuning.training).device))

    with locked(tuning.folder):
        names = sorted(path.name for path in tuning.folder.iterdir() if not passes(path))
        if names and JOURNAL not in names and TRIALS not in names:
            raise Refused(
                f"the folder {tuning.folder} holds something else ({names[0]}, and no {JOURNAL}); "
                "give another training.output_dir, such as runs/tuned"
            )
        storage = JournalStorage(JournalFileBackend(str(tuning.folder / JOURNAL)))
        studies = {
            arm: optuna.create_study(storage=storage, study_name=arm, load_if_exists=True)
            for arm in tuning.arm_names
        }
        ranges = {arm: tuning.ranges_of(arm) for arm in studies}
        every: list[Line] = []
        for growth in range(tuning.growth + 1):
            trials: Trials = {}
            for arm, study in studies.items():
                for number in range(growth * tuning.trials, (growth + 1) * tuning.trials):
                    trials[f"{arm}-{number:03d}"] = _draw(tuning, study, number, ranges[arm])
            recipes = {_arm(name): recipe_of(tuning, name, trials[name], 0) for name in trials}
            for recipe in recipes.values():  # one of each arm; the values of all are valid
                check(recipe)
            for rung in range(tuning.rungs):
                lines = _scores(tuning, studies, trials, rung, command, loaded)
                every += lines
                if all(line["score"] is None for line in lines):
                    failure = lines[0]["failure"]
                    raise Refused(f"all {len(lines)} trials failed; the first: {failure}")
                ranked = [_best_first(lines, arm) for arm in studies]
                better = [line["name"] for own in ranked for line in own[: (len(own) + 1) // 2]]
                is_last = rung == tuning.rungs - 1
                trials = {} if is_last else {name: trials[name] for name in better}
                for line in lines:  # for whoever opens the journal with Optuna
                    arm, _, number = line["name"].rpartition("-")
                    state = TrialState.COMPLETE if is_last else TrialState.PRUNED
                    state = TrialState.FAIL if line["score"] is None else state
                    score = line["score"] if state == TrialState.COMPLETE else None
                    if line["name"] not in trials:
                        studies[arm].tell(int(number), score, state, skip_if_finished=True)
            bests = {arm: _best_first(every, arm)[0] for arm in studies}
            grown = {arm: _grown(arm, ranges[arm], bests[arm]["values"]) for arm in studies}
            if growth == tuning.growth or grown == ranges:
                break
            ranges = grown
        shutil.rmtree(tuning.folder / TRIALS, ignore_errors=True)  # the journal has all that counts
        return write_report(tuning, every, ranges, command)


def _arm(name: str) -> str:
    return name.rpartition("-")[0]


def _draw(
    tuning: Tuning, study: "Study", number: int, ranges: Mapping[str, Range]
) -> dict[str, Any]:
    """The values of a study's trial of this number, drawn where it has none; draws depend on the
    seed, the number and the ranges, and fields that arms share have the same in all of them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.samplers import RandomSampler

    budgets = [n_tokens(tuning, rung) for rung in range(tuning.rungs)]
    bare = what_matters(recipe_of(tuning, f"{study.study_name}-", {}, 0), "")
    text = json.dumps([tuning.tune_seed, ranges, budgets, bare], sort_keys=True)
    asked = blake2b(text.encode(), digest_size=8).hexdigest()
    if number == len(study.trials):
        apart = blake2b(f"{tuning.tune_seed} {number}".encode(), digest_size=4).digest()
        study.sampler = RandomSampler(seed=int.from_bytes(apart, "big"))
        study.set_user_attr(f"recipe of {number}", asked)
        space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(tuple(range(len(own))))  # values may be any
            if isinstance(own, list)
            else FloatDistribution(float(own["low"]), float(own["high"]), log=True)
            for name, own in ranges.items()
        }
        study.ask(space)
    if study.user_attrs.get(f"recipe of {number}") != asked:
        raise Refused(
            f"{tuning.folder / JOURNAL} holds trials of another recipe; give another "
            "training.output_dir, or delete the folder"
        )
    values = {}
    for name, drawn in study.trials[number].params.items():
        own = ranges[name]
        values[name] = own[drawn] if isinstance(own, list) else float(f"{drawn:.3g}")
    return values


def _scores(
    tuning: Tuning,
    studies: Mapping[str, "Study"],
    trials: Trials,
    rung: int,
    command: str,
    loaded: Callable[[], "Loaded"],
) -> list[Line]:
    """The lines of trials on a rung; those that the journal has not are trained, together where
    they have the same sites, batches and order of tokens, and alone where one of them diverges."""
    by_stream: dict[str, list[str]] = {}
    recipes = {name: recipe_of(tuning, name, values, rung) for name, values in trials.items()}
    for name, recipe in recipes.items():
        alike = [asdict(recipe.training)[key] for key in sorted(SHARED - {"output_dir"})]
        stream = repr((recipe.sites, asdict(recipe.shuffle), alike))
        by_stream.setdefault(stream, []).append(name)
    n = tuning.together
    groups = [of[i : i + n] for of in by_stream.values() for i in range(0, len(of), n)]
    n_done, start = 0, time.monotonic()
    while groups:
        group = [n for n in groups.pop(0) if f"{n} on {rung}" not in studies[_arm(n)].user_attrs]
        if not group:
            continue
        # one recipe of all their SAEs, in a folder that is theirs: some of them may be trained
        # again without the others
        first, saes = recipes[group[0]], {}
        shared = asdict(first.training)
        for name in group:
            of_trial = asdict(recipes[name].training).items()
            differing = {key: x for key, x in of_trial if key not in SHARED and x != shared[key]}
            saes[name] = {**recipes[name].sae, "training": differing}
        apart = blake2b(" ".join(group).encode(), digest_size=4).hexdigest()
        training = replace(first.training, output_dir=f"{first.training.output_dir}-{apart}")
        try:
            whole = replace(first, sae={}, saes=saes, training=training)
            lines = train_and_score(whole, command, loaded())
        except Diverged as error:  # which is part of a search
            if len(group) > 1:
                groups = [[name] for name in group] + groups
                continue
            lines = {group[0]: {"score": None, "measured": {}, "failure": str(error)}}
        for name in group:
            about = {"name": name, "rung": rung, "n_tokens": n_tokens(tuning, rung)}
            line = {**about, "values": trials[name], **lines[name]}
            studies[_arm(name)].set_user_attr(f"{name} on {rung}", line)
            with (tuning.folder / LOG).open("a", encoding="utf-8") as log:
                log.write(f"{json.dumps(line)}\n")
            measured = ", ".join(f"{key} {value:.4g}" for key, value in line["measured"].items())
            shown = line["failure"] or measured
            logger.info("%s, rung %d of %d: %s", name, rung + 1, tuning.rungs, shown)
        n_done += len(group)
        # each later rung has half of the trials, and twice the tokens
        n_left = sum(map(len, groups)) + (tuning.rungs - 1 - rung) * len(trials)
        minutes = (time.monotonic() - start) / n_done * n_left / 60
        logger.info("about %.0f min left", minutes)
    return [studies[_arm(name)].user_attrs[f"{name} on {rung}"] for name in trials]


def _grown(arm: str, ranges: Mapping[str, Range], best: Mapping[str, Any]) -> dict[str, Range]:
    """Ranges half as long again, in logarithms, beyond the edge at which the best value lies."""
    grown = dict(ranges)
    for name, own in ranges.items():
        end = edge(own, best[name])
        if end and isinstance(own, dict):
            factor = math.sqrt(own["high"] / own["low"])
            grown[name] = {**own, end: own[end] / factor if end == "low" else own[end] * factor}
            shown = _range_text(grown[name])
            logger.info("%s: the best %s lies at an edge: it grows to %s", arm, name, shown)
    return grown


def edge(own: Range, value: Any) -> str:
    """ "low" or "high" where a value lies at that end of its range, else ""; a list has no ends."""
    if isinstance(own, list):
        return ""
    place = math.log(value / own["low"]) / math.log(own["high"] / own["low"])
    return "low" if place < EDGE else "high" if place > 1 - EDGE else ""


def n_tokens(tuning: Tuning, rung: int) -> int:
    """The training budget of a rung, 0 the first."""
    return tuning.training.n_tokens // 2 ** (tuning.rungs - 1 - rung)


def recipe_of(
    tuning: Tuning, name: str, values: Mapping[str, Any], rung: int | None = None
) -> Recipe:
    """The training recipe of a trial: scored on validation, on cached activations.

    Args:
        values: of settings, by dotted field.
        rung: None: the recipe that users get of the best trial, in a folder of its own.

    Raises:
        ValueError: a value that its section refuses.
    """
    arm = tuning.arms.get(_arm(name), {})
    own: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for setting, value in values.items():
        section, _, key = setting.partition(".")
        own[section][key] = value
    plain = {f.name: getattr(tuning, f.name) for f in fields(Recipe)}
    plain["sae"] = {**tuning.sae, **arm.get("sae", {}), **own["sae"]}
    plain["shuffle"] = replace(tuning.shuffle, **own["shuffle"])
    changes = {**arm.get("training", {}), **own["training"]}
    plain["training"] = changed_training(tuning.training, changes, f"training of {_arm(name)}")
    recipe = Recipe(**plain)
    if rung is None:
        recipe.training.output_dir = str(tuning.folder / f"best-{_arm(name)}")
        return recipe
    tokens = n_tokens(tuning, rung)
    section = section_of(as_plain(recipe))
    inputs = getattr(recipe, section)
    share = inputs.validation_fraction or VALIDATION
    folder = str(tuning.folder / TRIALS / f"{name}-{tokens}")
    cache_folder = tuning.harvest.cache_folder or str(tuning.folder / "activations")
    return replace(
        recipe,
        harvest=replace(recipe.harvest, cache=cache_folder),
        training=replace(recipe.training, output_dir=folder, n_tokens=tokens),
        evaluation=replace(recipe.evaluation, side="validation", texts={}),
        **{section: replace(inputs, validation_fraction=share)},
        **LEFT_OUT,
    )


def train_and_score(recipe: Recipe, command: str, loaded: "Loaded") -> dict[str, dict[str, Any]]:
    """Train a recipe's SAEs and evaluate them side by side; by name: score, measured, failure."""
    from .models.config import l0_goal
    from .runs import inputs_of, load_all_trained, run

    run(replace(recipe, evaluation=replace(recipe.evaluation, n_tokens=0)), command, loaded)
    folders = {name: Path(recipe.training.output_dir, name) for name in recipe.saes}
    inputs = inputs_of(recipe, loaded)
    saes, limits = load_all_trained(folders, inputs.device)
    lines = {}
    for name, result in inputs.evaluate(saes, limits, losses=False).items():
        score = score_of(result, l0_goal(recipe.saes[name]))
        measured = {key: result.metrics[key].value for key in ("l0", "fvu", "dead_share")}
        measured["seconds"] = read_json(folders[name] / TRAINING)["seconds"]["sae"]
        lines[name] = {"score": json_safe(score), "measured": measured, "failure": ""}
    return lines


def score_of(result: "EvaluationResult", target: int | float | None) -> float:
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


def write_report(
    tuning: Tuning,
    lines: Sequence[Line],
    ranges: Mapping[str, Mapping[str, Range]],
    command: str,
) -> Path:
    """Write report.md, best-ARM.yaml for each arm, and the log; returns the folder."""
    budgets = ", ".join(f"{n_tokens(tuning, rung):,}" for rung in range(tuning.rungs))
    n_trials = len({line["name"] for line in lines})
    tokens = sum(line["n_tokens"] for line in lines)
    model = "activation files" if tuning.kind == "files" else tuning.lm.name
    parts = [
        "# Settings by random search",
        f"{n_trials} settings of {len(tuning.arm_names)} arm(s), "
        f"drawn with seed {tuning.tune_seed}, "
        f"each trained at `{tuning.sae.get('site')}` of {model} on {budgets} activations, "
        "the better half of an arm going on to the next; "
        f"{tokens:,} in all, as many for each arm. Scored by FVU at the target L0 on validation "
        "documents, which no reported result may use: evaluate the chosen recipe on test "
        "documents.",
    ]
    for arm in tuning.arm_names:
        finals, names = _best_first(lines, arm), sorted(ranges[arm])
        best = finals[0]["values"]
        parts.append(f"## {arm}\n\nThe best settings, as a recipe: `best-{arm}.yaml`.")
        rows = [["setting", "range", "best", "next below", "next above", ""]]
        for name in names:
            own, value = ranges[arm][name], best[name]
            end = edge(own, value)
            note = f"at the {end} edge: the best may lie beyond" if end else ""
            cells = ["", ""]
            if not isinstance(own, list):
                others = [(line["values"][name], _value(line)) for line in finals[1:]]
                below = max((o for o in others if o[0] < value), default=None)
                above = min((o for o in others if o[0] > value), default=None)
                cells = [f"{o[0]} ({o[1]:.4f})" if o else "none" for o in (below, above)]
            rows.append([f"`{name}`", _range_text(own), f"**{value}**", *cells, note])
        parts.append(table(rows))
        parts.append(
            "Neighbours: the nearest values of other trials on the last rung, and their scores."
        )
        head = ["trial", *(f"`{name}`" for name in names)]
        rows = [[*head, "score", "FVU", "L0", "dead", "seconds"]]
        for line in finals[:_SHOWN]:
            m, cells = line["measured"], ["failed", "", "", "", ""]
            if not line["failure"]:
                cells = [f"{_value(line):.4f}", f"{m['fvu']:.4f}", f"{m['l0']:.1f}"]
                cells += [f"{m['dead_share']:.1%}", f"{m['seconds']:.0f}"]
            rows.append([line["name"], *(str(line["values"][name]) for name in names), *cells])
        parts.append(table(rows))
        recipe = as_plain(recipe_of(tuning, finals[0]["name"], best))
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        write_whole(tuning.folder / f"best-{arm}.yaml", text)
    parts.append(f"## Reproduce\n\n    {command}\n\nEvery trial stands in `{LOG}`.")
    write_whole(tuning.folder / REPORT, "\n\n".join(parts) + "\n")
    write_whole(tuning.folder / LOG, "".join(f"{json.dumps(line)}\n" for line in lines))
    return tuning.folder


def _best_first(lines: Sequence[Line], arm: str) -> list[Line]:
    """The arm's trials on the last of these rungs, the best first."""
    last = max(line["rung"] for line in lines)
    own = (line for line in lines if _arm(line["name"]) == arm and line["rung"] == last)
    return sorted(own, key=_value)


def _value(line: Line) -> float:
    return math.inf if line["score"] is None else line["score"]


def _range_text(own: Range) -> str:
    if isinstance(own, list):
        return ", ".join(map(str, own))
    return f"{own['low']:.3g} to {own['high']:.3g}"
