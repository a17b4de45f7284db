"""Activations: text or pictures through a model, files, or tensors in memory; shuffled."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
