"""The field's file formats, one a file: `load(folder, source) -> SAE`, `save(sae, folder)`.

`hfsae.load` recognises a format by the names of files; `hfsae convert` writes another one. Latents
and reconstructions equal those of the format's own code (scripts/interop/parity.sh compares them,
both ways); an SAE that a format cannot represent is refused.
"""

from .build import to_jumprelu as to_jumprelu
from .formats import FORMATS as FORMATS
from .formats import load_folder as load_folder
from .formats import save_as as save_as
