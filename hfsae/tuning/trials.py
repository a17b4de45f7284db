"""A tuning's recipe, the training recipe of each of its trials, and their scores."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from ..machine.bounds import check_least
from ..machine.refused import Refused
from ..machine.units import section_of
from ..recipe import LEFT_OUT, Recipe, as_plain, changed_training, check_arm
from ..training.arguments import SHARED
from .ranges import Space, read_space

VALIDATION = 0.05  # share of documents, where the recipe has none for it
LOG, TRIALS = "trials.jsonl", "trials"
_SECTIONS = ("sae", "training", "shuffle")
_ARM = {"sae", "training", "ranges"}


@dataclass
class Tuning(Recipe):
    """A training recipe, and ranges of its settings to search."""

    ranges: dict[str, Any] = field(default_factory=dict)
    """By dotted field (training.learning_rate, sae.bandwidth): {low: 1e-3, high: 1e-2}, drawn
    uniformly in logarithms, or a list of values. Without any: the learning rate from a third to
    three times the recipe's, and training.init_encoder_scale from 0.05 to 1."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Several searches with equal budgets, by name: `sae` and `training`, changes to these
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
        for name in self.arm_names:
            self._check_ranges(name)

    def _check_ranges(self, arm: str) -> None:
        read_space(self.ranges_of(arm))
        for name in self.ranges_of(arm):
            section, _, own = name.partition(".")
            given = getattr(self, section) if section in _SECTIONS else None
            if given is None or (is_dataclass(given) and not hasattr(given, own)):
                raise Refused(
                    f"ranges.{name} is not a field of {', '.join(_SECTIONS)}; name "
                    "one, such as training.learning_rate"
                )

    @property
    def arm_names(self) -> list[str]:
        """Names of the arms; "all" for a single search."""
        return list(self.arms) or ["all"]

    def ranges_of(self, arm: str) -> dict[str, Any]:
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


class Trial(NamedTuple):
    arm: str
    number: int
    values: dict[str, Any]
    """by dotted field"""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.arm}-{self.number:03d}"


class TrialScore(NamedTuple):
    """A trial on one rung."""

    trial: Trial
    rung: int
    value: float
    """FVU at the target L0, on validation documents; inf for a trial that failed"""
    measured: dict[str, float]
    """l0, fvu, dead_share, seconds of training"""
    failure: str = ""


class Outcome(NamedTuple):
    """Everything that a search found out."""

    scores: list[TrialScore]
    spaces: dict[str, Space]
    """by arm: the ranges, as they ended"""

    def finals(self, arm: str) -> list[TrialScore]:
        """The arm's trials on the last rung, the best first."""
        last = max(score.rung for score in self.scores)
        own = [s for s in self.scores if s.trial.arm == arm and s.rung == last]
        return sorted(own, key=lambda score: score.value)


def n_tokens(tuning: Tuning, rung: int) -> int:
    """The training budget of a rung, 0 the first."""
    return tuning.training.n_tokens // 2 ** (tuning.rungs - 1 - rung)


def recipe_of(tuning: Tuning, trial: Trial, rung: int) -> Recipe:
    """The training recipe of a trial: scored on validation, on cached activations."""
    recipe = with_values(tuning, trial)
    tokens = n_tokens(tuning, rung)
    folder = tuning.folder / TRIALS / f"{trial.name}-{tokens}"
    cache = tuning.harvest.cache_folder or str(tuning.folder / "activations")
    section = section_of(as_plain(recipe))
    inputs = getattr(recipe, section)
    share = inputs.validation_fraction or VALIDATION
    recipe = replace(recipe, **{section: replace(inputs, validation_fraction=share)})
    return replace(
        recipe,
        harvest=replace(recipe.harvest, cache=cache),
        training=replace(recipe.training, output_dir=str(folder), n_tokens=tokens),
        evaluation=replace(recipe.evaluation, side="validation", texts={}),
        **LEFT_OUT,
    )


def groups(tuning: Tuning, trials: Sequence[Trial], rung: int) -> Iterator[list[Trial]]:
    """Trials that can be trained together: with the same sites, batches and order of tokens."""
    by_stream: dict[str, list[Trial]] = {}
    for trial in trials:
        recipe = recipe_of(tuning, trial, rung)
        shared = [asdict(recipe.training)[name] for name in sorted(SHARED - {"output_dir"})]
        key = repr((recipe.sites, asdict(recipe.shuffle), shared))
        by_stream.setdefault(key, []).append(trial)
    for alike in by_stream.values():
        for i in range(0, len(alike), tuning.together):
            yield alike[i : i + tuning.together]


def on_one_stream(tuning: Tuning, trials: Sequence[Trial], rung: int) -> Recipe:
    """One recipe that trains the SAEs of several trials, by name, in a folder that is theirs: some
    of them may be trained again without the others."""
    first, saes = recipe_of(tuning, trials[0], rung), {}
    names = blake2b(" ".join(t.name for t in trials).encode(), digest_size=4).hexdigest()
    folder = f"{first.training.output_dir}-{names}"
    shared = asdict(first.training)
    for trial in trials:
        recipe = recipe_of(tuning, trial, rung)
        own = asdict(recipe.training).items()
        differing = {key: x for key, x in own if key not in SHARED and x != shared[key]}
        saes[trial.name] = {**recipe.sae, "training": differing}
    return replace(first, sae={}, saes=saes, training=replace(first.training, output_dir=folder))


def with_values(tuning: Tuning, trial: Trial) -> Recipe:
    """The tuning's training recipe with an arm's and a trial's settings.

    Raises:
        ValueError: a value that its section refuses.
    """
    arm = tuning.arms.get(trial.arm, {})
    drawn: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, value in trial.values.items():
        section, _, own = name.partition(".")
        drawn[section][own] = value
    plain = {f.name: getattr(tuning, f.name) for f in fields(Recipe)}
    plain["sae"] = {**tuning.sae, **arm.get("sae", {}), **drawn["sae"]}
    plain["shuffle"] = replace(tuning.shuffle, **drawn["shuffle"])
    changes = {**arm.get("training", {}), **drawn["training"]}
    plain["training"] = changed_training(tuning.training, changes, f"training of {trial.arm}")
    return Recipe(**plain)
