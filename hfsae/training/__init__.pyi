"""Names of the room, and where each is imported from at its first use."""

from .arguments import TrainingArguments as TrainingArguments
from .trainer import Trainer as Trainer
