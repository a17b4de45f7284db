"""Scores that ask a judge, each in a file of its own.

detection    does a window hold what the explanation names
fuzzing      are the marked tokens those that it names
likelihood   does it make the window's text more likely
simulation   how strongly does each token activate the latent
intruder     which of five windows is the odd one; no explanation
embedding    how near are word vectors; no judge
saebench     SAEBench's question, for its protocol
"""

from ...machine.refused import Refused
from ..arguments import ScoreArguments
from ..judges import Judge, JudgeArguments
from .base import Case as Case
from .base import Sample as Sample
from .base import Scorer as Scorer
from .detection import Detection
from .embedding import Embedding
from .fuzzing import Fuzzing
from .intruder import Intruder
from .likelihood import Likelihood
from .saebench import SAEBench
from .simulation import Simulation

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer
    for scorer in (Detection, Fuzzing, Likelihood, Simulation, Intruder, Embedding, SAEBench)
}


def scorers_of(args: ScoreArguments, judge: Judge | JudgeArguments | None) -> list[Scorer]:
    """The scorers of these scores.

    Raises:
        ValueError: the judge cannot answer a score's questions, or a score's package is not
            installed.
    """
    has_likelihood = judge is not None and judge.has_log_likelihood
    scorers = [SCORERS[name](has_likelihood) for name in args.scores]
    for scorer in scorers:
        if scorer.needs_likelihood and not has_likelihood:
            raise Refused(
                f"the score {scorer.name!r} needs a model on this machine, for its "
                "log-likelihoods; give the judge 'packaged', a Hub id or a folder"
            )
    return scorers
