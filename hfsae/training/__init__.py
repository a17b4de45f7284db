"""One stream of activations, one or several SAEs, on one or several processes."""

from .trainer import Trainer as Trainer
from .trainer import TrainingArguments as TrainingArguments
