"""What is asked of explanations, and of a search for presets. Importing it imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..explanations import ScoreArguments
from ..explanations.judges import JudgeArguments
from ..io.bounds import check_least
from ..io.errors import Refused

JUDGE = "lm"
EXPLAINERS = ("template", JUDGE, "human", "file")
UNTRAINED = "untrained"
CONTROLS = (UNTRAINED,)


@dataclass
class ExplainRequest:
    """How `explain_sae` names and scores latents."""

    explainer: str = "template"
    """"template": peak tokens and their shares; "lm": a name by the judge; "human": people's labels
    in features/labels.json; "file": those in `file`"""
    file: Path | None = None
    """parquet or jsonl with latent and explanation, or Neuronpedia's export; with "lm", names
    that stand: the judge names the rest"""
    scores: ScoreArguments = field(default_factory=ScoreArguments)
    judge: JudgeArguments | None = None
    """None: the packaged model, if a judge is needed"""
    dry_run: bool = False
    """count calls, tokens, time and money; ask nothing"""
    controls: Sequence[str] = ()
    """"untrained": also an SAE of re-drawn weights that fire as often"""

    def __post_init__(self) -> None:
        if self.file is None if self.explainer == "file" else self.file and self.explainer != JUDGE:
            raise Refused(
                "a file goes with one explainer: --explainer file --file PATH (or --explainer lm, "
                "for names that stand)"
            )
        asks = bool(self.scores.scores) or self.explainer == JUDGE
        if asks and self.judge is None:
            self.judge = JudgeArguments()
        if not asks and self.judge is not None:
            raise Refused(
                f"the judge {self.judge.model!r} is not used; add --explainer lm, or "
                "--scores detection"
            )


class PresetArguments(NamedTuple):
    """The size of the search for presets, and the bounds on steered texts."""

    n_candidates: int = 24
    """latents whose texts are tried, beside those with a label: those whose words gain most as the
    next token"""
    n_presets: int = 6
    """presets to write, at most"""
    strengths: tuple[float, ...] = (0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
    """of the largest activation; each latent is tried at one of them"""
    max_kl: float = 1.2
    """largest KL from the model as it is, nats a token: beyond the default, texts of a small model
    are hardly sentences"""
    max_repetition: float = 0.3
    """share of three-token sequences that may recur"""
    n_tokens: int = 30
    max_surprise: float = 0.0
    """nats a token by which the model as it is may find the text that is shown less likely than it
    expects; texts that it draws at temperature 1 have 0 on average, and beyond they are hardly
    language"""
    max_seconds: float | None = None
    """limit after which nothing more is screened, tried or confirmed; None: no limit"""

    def check(self) -> None:
        """Refuse numbers with which no preset can be found.

        Raises:
            ValueError: a number is out of its range.
        """
        check_least(self, n_candidates=0, n_presets=1)
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise Refused(f"max_seconds is {self.max_seconds}; it must be larger than 0, or None")
        if not self.max_kl > 0:
            raise Refused(f"max_kl is {self.max_kl}; it must be larger than 0")
        if not 0 <= self.max_repetition <= 1:
            raise Refused(f"max_repetition is {self.max_repetition}; it must be from 0 to 1")
