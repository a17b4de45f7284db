"""Names of the room, and where each is imported from at its first use."""

from .arguments import EvaluationArguments as EvaluationArguments
from .fidelity import evaluate as evaluate
from .fidelity import evaluate_all as evaluate_all
from .fidelity import mean_activation as mean_activation
from .intervals import Interval as Interval
from .intervals import around as around
from .intervals import holm as holm
from .intervals import resampled_means as resampled_means
from .metrics import FIDELITY as FIDELITY
from .metrics import bootstrap_weights as bootstrap_weights
from .outputs import output_change as output_change
from .reconstructions import evaluate_reconstructions as evaluate_reconstructions
from .result import LOSSES as LOSSES
from .result import EvaluationResult as EvaluationResult
