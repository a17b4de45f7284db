"""Names of the room, and where each is imported from at its first use."""

from .arms import ArmRun as ArmRun
from .arms import CausalArguments as CausalArguments
from .arms import Comparison as Comparison
from .arms import InterpretArguments as InterpretArguments
from .arms import arm_runs as arm_runs
from .estimates import t_interval as t_interval
from .frontier import Frontiers as Frontiers
from .run import compare as compare
from .run import compare_together as compare_together
