"""What two language models have in common, by a crosscoder over both: `hfsae diff`.

sides      the two models of an SAE: its columns and decoder rows of each, in the sites' units
scaling    how much of a latent of one model is in the other, too: latent scaling
groups     latents of one model, of both, and the others
run        one pass over held-out text, and diff.json
"""

from .groups import GROUPS as GROUPS
from .groups import Groups as Groups
from .groups import groups_of as groups_of
from .run import diff as diff
from .run import table as table
from .scaling import Scaling as Scaling
from .sides import Sides as Sides
