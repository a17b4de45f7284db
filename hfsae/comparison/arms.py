"""A comparison's recipe: a training recipe with arms, expanded to one recipe per arm and seed."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..io.errors import Refused
from ..runs import LEFT_OUT, Recipe, changed_training, check_arm
from ..training import TrainingArguments

_KEYS = {"sae", "sweep", "training", "title", "made_by"}


@dataclass
class Comparison(Recipe):
    """Arms, trained on the same activations and compared at equal L0."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: `sweep`, a field of sae with one value for each SAE; sae and training, changes
    to these; `title`, its name in the report; `made_by`, a library that trained it instead."""
    only: list[str] | None = None
    """The arms to train and report; by default all."""
    reference: str | None = None
    """The arm to compare the others with; by default the first."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the initial weights and the order of activations, the same for every arm."""
    at_l0: list[float] = field(default_factory=lambda: [20.0, 40.0, 80.0, 160.0])
    """L0s at which fidelity is interpolated, in log L0, between an arm's SAEs; never beyond."""
    report: str | None = None
    """Folder for the report; by default training.output_dir/report."""
    report_url: str | None = None
    """Web address of the report, for the SAEs' cards; by default its folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Here "auto" is a number that does not depend on the training's length.
        self.evaluation = replace(self.evaluation, n_tokens=self.evaluation.most_tokens)
        if self.saes:
            raise Refused("a comparison has arms instead of saes; sweep a field in an arm")
        if not self.arms or not self.seeds:
            raise Refused(
                "a comparison needs arms and seeds; a clone of hfsae has examples in "
                "scripts/comparisons/"
            )
        named = {"reference": [self.reference] if self.reference else [], "only": self.only or []}
        for field_name, arms in named.items():
            if unknown := [arm for arm in arms if arm not in self.arms]:
                raise Refused(
                    f"{field_name} {unknown[0]!r} is not an arm; arms: {', '.join(self.arms)}"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise Refused(f"seeds {self.seeds} repeats a seed; give each seed once")
        if wrong := [l0 for l0 in self.at_l0 if not 0 < l0 < float("inf")]:
            raise Refused(f"at_l0 must hold positive numbers, got {wrong[0]}")
        for name, arm in self.arms.items():
            _check_arm(name, arm)
        if self.only:
            self.arms = {name: arm for name, arm in self.arms.items() if name in self.only}
            self.reference = self.reference if self.reference in self.arms else None

    @property
    def reference_arm(self) -> str:
        """Name of the arm to compare the others with."""
        return self.reference or next(iter(self.arms))

    @property
    def report_folder(self) -> Path:
        """The report's folder."""
        return Path(self.report or Path(self.training.output_dir, "report"))

    def title(self, arm: str) -> str:
        """The arm's title, or its name if it has none."""
        return self.arms[arm].get("title", arm)


class ArmRun(NamedTuple):
    arm: str
    seed: int
    recipe: Recipe
    """a training run with one SAE for each value of the sweep"""
    values: dict[str, Any]
    """values of the swept field, by SAE"""
    made_by: str = ""
    """the library that trains it, if it is another"""

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of its SAEs, by name."""
        root = Path(self.recipe.training.output_dir)
        return {name: root / name for name in self.recipe.saes}


def arm_runs(comparison: Comparison) -> Iterator[ArmRun]:
    """The training runs of a comparison, seed by seed.

    Raises:
        ValueError: an arm's training section has an invalid field.
    """
    inherited = {f.name: getattr(comparison, f.name) for f in fields(Recipe)}
    for seed in comparison.seeds:
        for name, arm in comparison.arms.items():
            folder = Path(comparison.training.output_dir, name, f"seed_{seed}")
            swept, values = next(iter(arm["sweep"].items()))
            named = {_name(swept, value): value for value in values}
            training = {"output_dir": str(folder), **arm.get("training", {})}
            parts = {
                "sae": {**comparison.sae, **arm.get("sae", {})},
                "saes": {sae: {swept: value} for sae, value in named.items()},
                "training": changed_training(comparison.training, training, f"training of {name}"),
                "shuffle": replace(comparison.shuffle, seed=seed),
                "seed": seed,
                **LEFT_OUT,
            }
            recipe = Recipe(**{**inherited, **parts})
            yield ArmRun(name, seed, recipe, named, arm.get("made_by", ""))


def _name(swept: str, value: int | float) -> str:
    return f"{swept}_{value:g}"


def _check_arm(name: str, arm: dict[str, Any]) -> None:
    check_arm(name, arm, _KEYS)
    sweep = arm.get("sweep")
    values = list(sweep.values()) if isinstance(sweep, dict) else []
    if len(values) != 1 or not isinstance(values[0], list) or not values[0]:
        raise Refused(
            f"arm {name} needs `sweep`, one field of sae with a list of values, as "
            f"sweep: {{target_l0: [20, 50, 100]}}; got {sweep!r}"
        )
    swept, swept_values = next(iter(arm["sweep"])), values[0]
    for value in swept_values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(
                f"arm {name} sweeps {swept} over {value!r}, not a number; make an arm for each"
            )
    if len({_name(swept, value) for value in swept_values}) < len(swept_values):
        raise Refused(
            f"arm {name} sweeps {swept} over {swept_values}, two of which are equal to six digits"
        )
    made_by = arm.get("made_by", "")
    if not isinstance(made_by, str) or (made_by and not all(made_by.partition("."))):
        raise Refused(
            f"arm {name} has made_by {made_by!r}; give a library and its variant, as sparsify.TopK"
        )
    free = {f.name for f in fields(TrainingArguments)} - {"output_dir", "n_tokens", "batch_size"}
    for key in arm.get("training", {}):
        if key not in free:
            raise Refused(
                f"arm {name} cannot set training.{key}; arms can differ in "
                f"{', '.join(sorted(free))}"
            )
