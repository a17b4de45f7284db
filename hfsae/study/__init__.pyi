"""Names of the room, and where each is imported from at its first use."""

from .plan import Plan as Plan
from .plan import StudyArguments as StudyArguments
