"""Steer a language model through latents; find a strength; export a vector."""

from .export import load_steering_vector as load_steering_vector
from .export import mean_difference as mean_difference
from .export import save_steering_vector as save_steering_vector
from .intervention import MODES as MODES
from .intervention import SCOPES as SCOPES
from .intervention import UNITS as UNITS
from .intervention import Edit as Edit
from .intervention import Edits as Edits
from .intervention import Maxima as Maxima
from .intervention import Mode as Mode
from .intervention import Scope as Scope
from .intervention import Unit as Unit
from .intervention import steer as steer
from .strength import SeededSampling as SeededSampling
from .strength import Suggestion as Suggestion
from .strength import Trial as Trial
from .strength import repetition as repetition
from .strength import suggest_strength as suggest_strength
