"""Names of the room, and where each is imported from at its first use."""

from .search import tune as tune
from .trials import Tuning as Tuning
