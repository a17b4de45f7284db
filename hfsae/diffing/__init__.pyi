"""Names of the room, and where each is imported from at its first use."""

from .explained import Explained as Explained
from .groups import GROUPS as GROUPS
from .groups import Groups as Groups
from .groups import groups_of as groups_of
from .report import table as table
from .run import diff as diff
from .scaling import Scaling as Scaling
from .sides import Sides as Sides

N_TOKENS: int
