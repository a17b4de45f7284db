"""Compare ways to train an SAE: arms on the same activations, at equal L0, with intervals.

arms.py       a comparison's recipe, expanded to training recipes
run.py        train and evaluate missing SAEs
results.py    each SAE's measurements; the report's copy outlives the weights
frontier.py   fidelity at equal L0, paired differences, intervals
report.py     Markdown, HTML and figures
"""

from .arms import CausalArguments as CausalArguments
from .arms import Comparison as Comparison
from .frontier import Frontiers as Frontiers
from .run import compare as compare
