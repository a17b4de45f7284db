"""What an SAE is worth, measured on a language model."""

from .fidelity import EvaluationArguments as EvaluationArguments
from .fidelity import EvaluationResult as EvaluationResult
from .fidelity import evaluate as evaluate
from .fidelity import evaluate_all as evaluate_all
from .fidelity import mean_activation as mean_activation
