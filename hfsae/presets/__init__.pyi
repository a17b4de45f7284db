"""Names of the room, and where each is imported from at its first use."""

from .arguments import PresetArguments as PresetArguments
from .search import PROMPTS as PROMPTS
from .search import Attempt as Attempt
from .search import Candidate as Candidate
from .search import Found as Found
from .search import Model as Model
from .search import candidates as candidates
from .search import find_presets as find_presets
from .search import found_presets as found_presets
from .search import retest as retest
from .search import save_presets as save_presets
from .search import table as table
from .search import works as works
