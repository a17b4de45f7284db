"""Sparse autoencoders as Hugging Face models: one file a variant, one line here."""

from .base import SAE as SAE
from .base import SAEOutput as SAEOutput
from .base import Schedule as Schedule
from .batch_topk import BatchTopKSAE as BatchTopKSAE
from .batch_topk import BatchTopKSAEConfig as BatchTopKSAEConfig
from .config import SAEConfig as SAEConfig
from .config import variants as variants
from .gated import GatedSAE as GatedSAE
from .gated import GatedSAEConfig as GatedSAEConfig
from .jumprelu import JumpReLUSAE as JumpReLUSAE
from .jumprelu import JumpReLUSAEConfig as JumpReLUSAEConfig
from .matryoshka import MatryoshkaBatchTopKSAE as MatryoshkaBatchTopKSAE
from .matryoshka import MatryoshkaBatchTopKSAEConfig as MatryoshkaBatchTopKSAEConfig
from .matryoshka import MatryoshkaJumpReLUSAE as MatryoshkaJumpReLUSAE
from .matryoshka import MatryoshkaJumpReLUSAEConfig as MatryoshkaJumpReLUSAEConfig
from .registry import register_variants as register_variants
from .relu import ReLUSAE as ReLUSAE
from .relu import ReLUSAEConfig as ReLUSAEConfig
from .topk import TopKSAE as TopKSAE
from .topk import TopKSAEConfig as TopKSAEConfig
