"""Sparse autoencoders as Hugging Face models: one file a variant, one line here.

A new variant is a config and an SAE, in a file here or in a file of one's own (`--import FILE.py`):

    from hfsae import SAE, SAEConfig
    from hfsae.models import Schedule
    from hfsae.ops import EVERYWHERE

    class SquaredSAEConfig(SAEConfig):
        model_type = "squared_sae"

    class SquaredSAE(SAE):
        '''latents = relu(z)^2,  z = x W_enc + b_enc;  loss = |x - recon|^2  (arXiv:2406.04093).'''
        config_class = SquaredSAEConfig

        def activate(self, pre_acts, schedule=Schedule(), at=EVERYWHERE):
            return pre_acts.relu().square()

Once it is imported, `AutoModel`, `hfsae.load` and recipes know it. Parameters of its own are made
in `make_parameters` and get their values in `_init_weights`, each after super's; `latent_dims`
names those with a number for each latent. One in units of the activations over their scale also
needs `_fold_`, `float32_parameters` and perhaps `floor` and `after_step_`: see
`hfsae/models/jumprelu.py`. The name `threshold` is for such a number a latent: rows of free norm
are folded into it, as into b_enc, and into no other. `sparsity_losses` gives terms of its loss that
make latents sparse, as in `hfsae/models/relu.py`; without them nothing moves L0.

The class docstring's first line is the formula on a trained SAE's card, and the arXiv ids in it are
its citations. `schedule` holds the trainer's settings for the step, `at` the positions of pre_acts
(`hfsae.ops.sparse`); read per-latent parameters there with `at.of(parameter)`. Other facts about a
variant are class attributes or properties of its config, see `SAEConfig`.
"""

from .base import SAE as SAE
from .base import ForwardParts as ForwardParts
from .base import SAEOutput as SAEOutput
from .base import Schedule as Schedule
from .base import register_variants as register_variants
from .batch_topk import BatchTopKSAE as BatchTopKSAE
from .batch_topk import BatchTopKSAEConfig as BatchTopKSAEConfig
from .causal import BatchTopKCLT as BatchTopKCLT
from .causal import BatchTopKCLTConfig as BatchTopKCLTConfig
from .causal import Causal as Causal
from .causal import JumpReLUCLT as JumpReLUCLT
from .causal import JumpReLUCLTConfig as JumpReLUCLTConfig
from .config import SAEConfig as SAEConfig
from .config import variants as variants
from .gated import GatedSAE as GatedSAE
from .gated import GatedSAEConfig as GatedSAEConfig
from .jumprelu import JumpReLUSAE as JumpReLUSAE
from .jumprelu import JumpReLUSAEConfig as JumpReLUSAEConfig
from .matryoshka import Matryoshka as Matryoshka
from .matryoshka import MatryoshkaBatchTopKSAE as MatryoshkaBatchTopKSAE
from .matryoshka import MatryoshkaBatchTopKSAEConfig as MatryoshkaBatchTopKSAEConfig
from .matryoshka import MatryoshkaConfig as MatryoshkaConfig
from .matryoshka import MatryoshkaJumpReLUSAE as MatryoshkaJumpReLUSAE
from .matryoshka import MatryoshkaJumpReLUSAEConfig as MatryoshkaJumpReLUSAEConfig
from .relu import ReLUSAE as ReLUSAE
from .relu import ReLUSAEConfig as ReLUSAEConfig
from .topk import AuxKSAE as AuxKSAE
from .topk import AuxKSAEConfig as AuxKSAEConfig
from .topk import TopKSAE as TopKSAE
from .topk import TopKSAEConfig as TopKSAEConfig
