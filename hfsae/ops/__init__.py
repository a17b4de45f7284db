"""Functions on tensors: no config, no module, no input or output."""

from .straight_through import heaviside as heaviside
from .straight_through import jumprelu as jumprelu
