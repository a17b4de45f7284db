"""Names of the room, and where each is imported from at its first use."""

from .measures import Explained as Explained
from .measures import Scaling as Scaling
from .report import table as table
from .run import diff as diff
from .sides import GROUPS as GROUPS
from .sides import Groups as Groups
from .sides import Sides as Sides
from .sides import groups_of as groups_of

N_TOKENS: int
