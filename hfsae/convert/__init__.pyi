"""Names of the room, and where each is imported from at its first use."""

from .build import to_jumprelu as to_jumprelu
from .formats import FORMATS as FORMATS
from .formats import find as find
from .formats import load_folder as load_folder
from .formats import save_as as save_as
from .formats import save_set_as as save_set_as
from .saebench import SAEBenchSAE as SAEBenchSAE

WRITTEN: tuple[str, ...]
