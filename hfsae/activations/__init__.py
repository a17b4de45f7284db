"""Activations: text, pictures or sound through a model, or tensors in memory; shuffled."""

from .cache import ActivationCache as ActivationCache
from .harvest import HarvestArguments as HarvestArguments
from .harvest import Harvested as Harvested
from .harvest import Harvester as Harvester
from .input_source import InputSource as InputSource
from .inputs import InputBatch as InputBatch
from .pictures import ImageArguments as ImageArguments
from .shuffle import ShuffleArguments as ShuffleArguments
from .shuffle import ShuffledActivations as ShuffledActivations
from .sounds import AudioArguments as AudioArguments
from .source import ActivationBatch as ActivationBatch
from .source import Source as Source
from .source import TextSource as TextSource
from .tensors import TensorSource as TensorSource
from .text_hash import text_digest as text_digest
from .tokens import Document as Document
from .tokens import PackedRows as PackedRows
from .tokens import Split as Split
from .tokens import TextArguments as TextArguments
from .tokens import TokenBatch as TokenBatch
from .tokens import check_text as check_text
from .tokens import documents as documents
from .tokens import is_hub as is_hub
from .tokens import text_origin as text_origin
