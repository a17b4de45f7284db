"""Sparse autoencoders as Hugging Face models: one file a variant, one line here."""

from .base import SAE as SAE
from .base import SAEConfig as SAEConfig
from .base import SAEOutput as SAEOutput
from .base import Schedule as Schedule
from .jumprelu import JumpReLUSAE as JumpReLUSAE
from .jumprelu import JumpReLUSAEConfig as JumpReLUSAEConfig
