"""The fidelity and causal effects of an SAE, measured on the model whose activations it reads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
