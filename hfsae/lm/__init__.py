"""Sites in a causal language model: name them, read them, write to them; and load the model.

autoencoder     what an SAE must have
places     names of sites, and of their models
sites      `layers.12`, `layers.12.self_attn.o_proj:in`: what a name means
hooks      read and replace activations at sites
splicing   let the model run on an SAE's reconstructions
several    language models that read the same tokens, and sites in them
load       a model from the Hub, a folder, a .gguf file or a package
encoders   the same for vision models, and one way to run any model
located    where the copy of a model lies
copies     its config, and what is refused of it
contract   whether a model is the one that an SAE was trained on
weights_sketch  a few numbers by which a model's weights can be compared
generating      where the prompt of a call of `generate` ends
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
