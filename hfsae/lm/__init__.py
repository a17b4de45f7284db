"""Sites in a causal language model: name them, read them, write to them; and load the model.

places     names of sites, and of their models
sites      `layers.12`, `layers.12.self_attn.o_proj:in`: what a name means, and which an SAE has
hooks      run a model; read and replace activations
splicing   let the model run on an SAE's reconstructions
located    where the copy of a model lies
load       a model from the Hub, a folder, a .gguf file or a package
contract   whether a model is the one that an SAE was trained on
weights_sketch  a few numbers by which a model's weights can be compared
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
