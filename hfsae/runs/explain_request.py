"""What is asked of explanations. Importing it imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..explanations import ScoreArguments
from ..explanations.judges import JudgeArguments
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
    """parquet, jsonl or json with latent and explanation, or Neuronpedia's export; with "lm", names
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
        asks = self.scores.asks_judge or self.explainer == JUDGE
        if asks and self.judge is None:
            self.judge = JudgeArguments()
        if not asks and self.judge is not None:
            raise Refused(
                f"the judge {self.judge.model!r} is not used; add --explainer lm, or "
                "--scores detection"
            )
