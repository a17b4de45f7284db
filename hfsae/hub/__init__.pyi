"""Names of the room, and where each is imported from at its first use."""

from .download import list_files as list_files
from .neuronpedia import export_neuronpedia as export_neuronpedia
from .outgoing import files_to_publish as files_to_publish
from .outgoing import is_sae as is_sae
from .outgoing import published as published
from .space import requirement as requirement
from .space import write_space as write_space
from .suite import SAEEntry as SAEEntry
from .suite import files_beside as files_beside
from .suite import formats_in as formats_in
from .suite import list_saes as list_saes
from .suite import load as load
from .suite import load_set as load_set
from .upload import push as push
from .upload import push_sae as push_sae
