"""The field's file formats, one a file: `load(folder, source) -> SAE`, `save(sae, folder)`.

`hfsae.load` finds out which it is from the names of files; `hfsae convert` writes another. Latents
and reconstructions are those of the format's own code (scripts/interop/parity.sh compares them,
both ways); what a format cannot hold is refused.
"""

from ..models import SAE
from .build import to_jumprelu as to_jumprelu
from .formats import FORMATS as FORMATS
from .formats import load_folder as load_folder
from .formats import save_as as save_as
from .saelens import to_sae_lens_object

SAE.to_saelens = to_sae_lens_object
