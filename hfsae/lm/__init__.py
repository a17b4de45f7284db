"""Sites in a causal language model: name them, read them, write to them; and load the model.

places     names of sites, and of their models
hooks      what a site's name means, and which an SAE has; run a model, read and replace there
splicing   let the model run on an SAE's reconstructions
located    where the copy of a model lies
load       a model from the Hub, a folder, a .gguf file or a package
contract   whether a model is the one that an SAE was trained on
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
