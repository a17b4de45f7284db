"""Ranges of settings: drawing from them, and whether the best value lies at an edge."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..machine.refused import Refused

EDGE = 0.1  # share of a range, at either end, that counts as its edge


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, uniform in their logarithms."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """A value, to three digits."""
        return float(f"{math.exp(rng.uniform(math.log(self.low), math.log(self.high))):.3g}")

    def place(self, value: float) -> float:
        """From 0, the low end, to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def edge(self, value: float) -> str:
        """ "low" or "high" where the value lies at that end, else ""."""
        place = self.place(value)
        return "low" if place < EDGE else "high" if place > 1 - EDGE else ""

    def grown(self, edge: str) -> "Range":
        """Half as long again beyond an edge."""
        factor = math.sqrt(self.high / self.low)
        return (
            replace(self, low=self.low / factor)
            if edge == "low"
            else replace(self, high=self.high * factor)
        )

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class Choice:
    """One of several values, each as likely; it has no edges."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """A value."""
        return self.values[rng.integers(len(self.values))]

    def edge(self, value: object) -> str:
        """Always ""."""
        return ""

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Space = Mapping[str, Range | Choice]


def read_space(ranges: Mapping[str, Any]) -> dict[str, Range | Choice]:
    """By dotted field: {low: 1e-3, high: 1e-2} becomes a Range, a list a Choice.

    Raises:
        ValueError: a value is neither a range nor a list, or a range's ends are not positive and in
            order.
    """
    return {name: _read(name, given) for name, given in ranges.items()}


def _read(name: str, given: object) -> Range | Choice:
    if isinstance(given, list) and given:
        return Choice(tuple(given))
    if isinstance(given, Mapping) and set(given) == {"low", "high"}:
        low, high = given["low"], given["high"]
        are_numbers = all(isinstance(end, int | float) for end in (low, high))
        if are_numbers and 0 < low < high < math.inf:
            return Range(float(low), float(high))
    raise Refused(
        f"ranges.{name} is {given!r}; give {{low: 1e-3, high: 1e-2}} (positive, low below high), "
        "or a list of values"
    )


def draw(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The values of one trial; they depend on the seed, the number, and each field's range."""
    drawn = {}
    for name in sorted(space):
        key = [seed, number, *name.encode()]  # a field that is added leaves the others' draws
        drawn[name] = space[name].draw(np.random.default_rng(key))
    return drawn
