"""Push to the Hub, fetch from it, and load SAEs by name.

upload     one atomic commit, whose files are on a list
download   whole files, held against the Hub's checksums
suite      load and list SAEs by layer, width and L0
space      a Space with the app and one SAE
modeling_hfsae   what an SAE needs where hfsae is not installed; pushed with --include_code
"""

from ..models import SAE
from .download import HubFile as HubFile
from .download import Listing as Listing
from .download import fetch as fetch
from .download import list_files as list_files
from .download import remember_revision as remember_revision
from .outgoing import files_to_publish as files_to_publish
from .outgoing import is_sae as is_sae
from .outgoing import published as published
from .space import requirement as requirement
from .space import write_space as write_space
from .suite import SAEEntry as SAEEntry
from .suite import beside as beside
from .suite import formats_in as formats_in
from .suite import list_saes as list_saes
from .suite import load as load
from .suite import load_set as load_set
from .upload import Plan as Plan
from .upload import push as push
from .upload import push_sae

SAE.push_to_hub = push_sae  # pyright: ignore - as every PreTrainedModel has it
