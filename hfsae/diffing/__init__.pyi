"""Names of the room, and where each is imported from at its first use."""

from .groups import GROUPS as GROUPS
from .groups import Groups as Groups
from .groups import groups_of as groups_of
from .run import diff as diff
from .run import table as table
from .scaling import Scaling as Scaling
from .sides import Sides as Sides
