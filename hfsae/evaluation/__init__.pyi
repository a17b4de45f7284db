"""Names of the room, and where each is imported from at its first use."""

from .arguments import EvaluationArguments as EvaluationArguments
from .fidelity import evaluate as evaluate
from .fidelity import evaluate_all as evaluate_all
from .fidelity import mean_activation as mean_activation
from .metrics import FIDELITY as FIDELITY
from .metrics import bootstrap_weights as bootstrap_weights
from .outputs import output_change as output_change
from .reconstructions import evaluate_reconstructions as evaluate_reconstructions
from .result import LOSSES as LOSSES
from .result import EvaluationResult as EvaluationResult
from .statistics import Interval as Interval
from .statistics import around as around
from .statistics import holm as holm
from .statistics import resampled_means as resampled_means
