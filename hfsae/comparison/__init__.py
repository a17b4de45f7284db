"""Compare ways to train an SAE: arms on the same activations, at equal L0, with their uncertainty.

arms.py       a comparison's recipe, and the training recipes that it expands to
run.py        train and evaluate what is missing
results.py    each SAE's measurements; a report's copy, which outlives the weights
frontier.py   fidelity at equal L0, paired differences, intervals
report.py     Markdown, HTML and figures
"""

from .arms import CausalArguments as CausalArguments
from .arms import Comparison as Comparison
from .frontier import Frontiers as Frontiers
from .run import compare as compare
