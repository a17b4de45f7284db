"""The latents to explain, and the scores of their explanations. Importing this imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from numpy.random import default_rng

from ..io.bounds import check_least
from ..io.errors import Refused

E = TypeVar("E")
LEAST_FIT = 20
"""Drawn latents that have to fit, where as many are asked for: fewer give no mean."""
LEXICAL = "lexical"
SCORES = (LEXICAL, "detection", "fuzzing", "simulation", "intruder")
"""What can be named as a score."""
OURS, PAPER = "ours", "paper"


@dataclass
class ExplainArguments:
    """The latents to explain, and the text and windows to explain them from."""

    n_latents: int | Literal["all"] = 100
    """number of latents, drawn at random among those that fire on 0.01 % to 10 % of tokens; or
    "all" of these"""
    latents: Sequence[int] | None = None
    """these latents instead, by index, whatever their densities"""
    n_tokens: int = 100_000
    """held-out tokens to read"""
    min_density: float = 1e-4
    """least share of tokens that a drawn latent fires on"""
    max_density: float = 0.1
    """largest share of tokens that a drawn latent fires on"""
    window: int = 10
    """tokens on either side of a peak"""
    shown: int = 20
    """windows to explain from: half of them the top ones, half over quantiles"""
    tested: int = 20
    """windows to test on that activate, and as many that do not"""
    least: int = 5
    """windows that a latent needs on each half; with fewer it is left out"""
    bootstrap_samples: int = 2000
    """resamples of latents, for intervals"""
    seed: int = 0
    """seed of all that is drawn"""

    def __post_init__(self) -> None:
        if self.latents is not None and not self.latents:
            raise Refused("latents is empty; name one or more, by index")
        check_least(self, n_latents=1, window=1, shown=2, tested=2, least=1)
        check_least(self, n_tokens=1, bootstrap_samples=1, seed=0)
        if not 0 <= self.min_density <= self.max_density <= 1:
            raise Refused(
                f"min_density is {self.min_density} and max_density {self.max_density}; give "
                "shares of tokens, the smaller first"
            )

    def as_plain(self) -> dict[str, Any]:
        """The values, for a record."""
        latents = None if self.latents is None else sorted({*self.latents})
        return asdict(self) | {"latents": latents}


@dataclass
class ScoreArguments:
    """The scores of each latent's explanation, and how many windows and latents they use."""

    scores: Sequence[str] = ()
    """scores beside "lexical", which needs no judge"""
    protocol: Literal["ours", "paper"] = OURS
    """"paper": the windows and the score of the JumpReLU paper, with our controls"""
    windows: int = 12
    """test windows judged per latent, half of them active; intruder asks about all of them"""
    directions: int = 25
    """random directions, named and judged"""
    latents: int | None = None
    """how many of the latents are judged, drawn at random; None: all"""

    def __post_init__(self) -> None:
        for name in self.scores:
            if name not in SCORES:
                raise Refused(f"there is no score {name!r}; scores: {', '.join(SCORES)}")
        if self.protocol != OURS:
            if self.scores:
                raise Refused(
                    f"protocol {self.protocol!r} has a score of its own, and scores are "
                    f"{', '.join(self.scores)}; give only one"
                )
            self.scores = ("simulation",)
        self.scores = tuple(dict.fromkeys(name for name in self.scores if name != LEXICAL))
        check_least(self, "judged_", windows=2, directions=0, latents=1)

    def as_plain(self) -> dict[str, Any]:
        """The values, for a record; without `latents` where all are judged."""
        plain = {**vars(self), "scores": list(self.scores)}
        return {k: v for k, v in plain.items() if k != "latents" or v is not None}

    def drawn(self, explained: Sequence[E], seed: int) -> list[E]:
        """The explained latents that are judged, in their order."""
        if self.latents is None or self.latents >= len(explained):
            return list(explained)
        drawn = default_rng([seed, self.latents]).permutation(len(explained))
        return [explained[i] for i in sorted(drawn[: self.latents].tolist())]
