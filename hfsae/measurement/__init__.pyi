"""Names of the room, and where each is imported from at its first use."""

from .call import explain as explain
from .call import explain_placed as explain_placed
from .call import probe as probe
from .call import probe_placed as probe_placed
from .results import again as again
from .results import measure as measure
from .results import refuse_unmeasurable as refuse_unmeasurable
from .settings import known_fields as known_fields
from .source import chosen as chosen
from .source import default_folder as default_folder
from .source import fill_folder as fill_folder
from .source import filled as filled
from .source import find_sae as find_sae
from .source import find_saes as find_saes
from .source import origin_of as origin_of
from .source import own_folder as own_folder
from .source import place as place
from .source import results_folder as results_folder
from .source import run_folder as run_folder
