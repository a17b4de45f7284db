"""Scores that ask a judge, each in a file of its own.

detection    does a window hold what the explanation names
fuzzing      are the marked tokens those that it names
likelihood   does it make the window's text more likely
simulation   how strongly does each token activate the latent
intruder     which of five windows is the odd one; no explanation
embedding    how near are word vectors; no judge
saebench     SAEBench's question, for its protocol
"""

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
