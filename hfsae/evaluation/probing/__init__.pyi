"""Names of the room, and where each is imported from at its first use."""

from .arguments import ProbeArguments as ProbeArguments
from .extract import kept_extract as kept_extract
from .study import Probing as Probing
from .study import probe as probe
from .tasks import Task as Task
from .tasks import binary_tasks as binary_tasks
from .tasks import packaged_tasks as packaged_tasks
from .tasks import read_tasks as read_tasks
