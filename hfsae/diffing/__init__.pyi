"""Names of the room, and where each is imported from at its first use."""

from .measures import GROUPS as GROUPS
from .measures import Scaling as Scaling
from .measures import Sides as Sides
from .measures import groups_of as groups_of
from .run import diff as diff
from .run import table as table

N_TOKENS: int
