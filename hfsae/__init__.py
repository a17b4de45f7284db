"""hfsae: sparse autoencoders as Hugging Face models.

**Floors.** Imports go down, never sideways; import-linter holds them to it.

    cli                                  the command
    demo | comparison | tuning | measurement | study   the app; arms at equal L0; people's ratings
    cost                                 seconds and bytes of a run, before it is begun
    hub | recipe                         push, fetch, load by meaning; what a run is
    explain | presets                    names for latents, and how sure they are; what steers well
    training | evaluation | features | cards | convert | steering | attribution
    models | activations                 one forward pass, a variant a file; text -> activations
    ops | lm                             sparse algebra; places in a language model
    packaged                             inputs that come as Python packages
    machine                              files, locks, memory, the Hub's client

**A datum's journey.** text -> `activations.tokens` (rows of token ids, a keep-mask) ->
`activations.harvest` (raw activations at sites, through `lm.capture`) -> `activations.shuffle`
(batches [n, d], float32) -> `models` (pre_acts -> latents -> recon, and the loss) ->
`training.run` (one optimiser step) -> `training.checkpoint` -> `SAE.folded().save_pretrained` ->
`evaluation` (spliced into the language model), `features` (what latents fire on), `steering` (what
they do), `attribution` (why this token), `cards`.

**Words.** A *latent* is one unit of an SAE, its activation a number; a *feature* is what it means.
`pre_acts` come before the non-linearity, `latents` after it; `recon` is the reconstruction. A
*site* is a place in a language model: a module's path, and whether its input or its output. `L0` is
the number of latents that fire on a token; a latent's `density` the share of tokens it fires on.
`FVU` is the fraction of variance unexplained, pooled over all tokens. `activation_scale` is the
root of the mean squared norm, or distance from the mean. To *splice* is to let the language model
run on a reconstruction, to *steer* to let it run on changed latents.

Loading, reading and steering need the core dependencies alone; training and the command line need
the extra `train`, the app `demo`.
"""

from typing import TYPE_CHECKING

from .activations import PackedRows as PackedRows
from .activations import TextArguments as TextArguments
from .attribution import attribute as attribute
from .attribution import logit as logit
from .attribution import loss as loss
from .attribution import uniformity as uniformity
from .convert import save_as as save_as
from .evaluation import EvaluationArguments as EvaluationArguments
from .evaluation import evaluate as evaluate
from .features import FeatureStore as FeatureStore
from .features import Latents as Latents
from .features import collect as collect
from .features import latents as latents
from .hub import SAEEntry as SAEEntry
from .hub import list_saes as list_saes
from .hub import load as load
from .hub import push as push
from .lm import LoadedLM as LoadedLM
from .lm import capture as capture
from .lm import load_lm as load_lm
from .lm import patch as patch
from .lm import splice as splice
from .machine.refused import Refused as Refused
from .models import SAE as SAE
from .models import BatchTopKSAE as BatchTopKSAE
from .models import BatchTopKSAEConfig as BatchTopKSAEConfig
from .models import GatedSAE as GatedSAE
from .models import GatedSAEConfig as GatedSAEConfig
from .models import JumpReLUSAE as JumpReLUSAE
from .models import JumpReLUSAEConfig as JumpReLUSAEConfig
from .models import MatryoshkaBatchTopKSAE as MatryoshkaBatchTopKSAE
from .models import MatryoshkaBatchTopKSAEConfig as MatryoshkaBatchTopKSAEConfig
from .models import MatryoshkaJumpReLUSAE as MatryoshkaJumpReLUSAE
from .models import MatryoshkaJumpReLUSAEConfig as MatryoshkaJumpReLUSAEConfig
from .models import ReLUSAE as ReLUSAE
from .models import ReLUSAEConfig as ReLUSAEConfig
from .models import SAEConfig as SAEConfig
from .models import SAEOutput as SAEOutput
from .models import TopKSAE as TopKSAE
from .models import TopKSAEConfig as TopKSAEConfig
from .models.probe import write_probe as write_probe
from .steering import Edit as Edit
from .steering import save_steering_vector as save_steering_vector
from .steering import steer as steer
from .steering import suggest_strength as suggest_strength

if TYPE_CHECKING:
    from .recipe import Recipe as Recipe
    from .recipe import train as train
    from .training import Trainer as Trainer
    from .training import TrainingArguments as TrainingArguments

__version__ = "0.1.0"
_OF_TRAINING = {"Recipe": "recipe", "train": "recipe"}
_OF_TRAINING |= {"Trainer": "training", "TrainingArguments": "training"}


def __getattr__(name: str) -> object:
    """Import a name that needs the extra `train` at its first use."""
    if name not in _OF_TRAINING:
        raise AttributeError(f"module 'hfsae' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f".{_OF_TRAINING[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"hfsae.{name} needs {error.name}: pip install 'hfsae[train]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_TRAINING})
