"""Names of the room, and where each is imported from at its first use."""

from . import checkpoint as checkpoint
from .arguments import TrainingArguments as TrainingArguments
from .directions import read_directions as read_directions
from .refit import refit_ as refit_
from .run import SPARSE_ON_GPU as SPARSE_ON_GPU
from .run import Run as Run
from .start import sample_size as sample_size
from .start import start_ as start_
from .trainer import Trainer as Trainer
