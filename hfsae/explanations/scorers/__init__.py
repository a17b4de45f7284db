"""Scores that ask a judge, each in a file of its own.

detection    does a window hold what the explanation names
fuzzing      are the marked tokens those that it names
simulation   how strongly does each token activate the latent
intruder     which of five windows is the odd one; no explanation
"""

from ...io.errors import Refused
from ..arguments import ScoreArguments
from ..judges import Judge, JudgeArguments
from .base import Case as Case
from .base import Sample as Sample
from .base import Scorer as Scorer
from .base import sample_of as sample_of
from .detection import Detection
from .fuzzing import Fuzzing
from .intruder import Intruder
from .simulation import Simulation

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer for scorer in (Detection, Fuzzing, Simulation, Intruder)
}


def scorers_of(args: ScoreArguments, judge: Judge | JudgeArguments | None) -> list[Scorer]:
    """The scorers of these scores, for this judge.

    Raises:
        ValueError: there are scores, and no judge.
    """
    if args.scores and judge is None:
        raise Refused(f"scores need a judge ({', '.join(args.scores)}); give one, or no scores")
    has_probabilities = judge is not None and judge.has_probabilities
    return [SCORERS[name](has_probabilities) for name in args.scores]
