"""What changed from one language model to another, by a crosscoder over both: `hfsae diff`.

measures  the two models of an SAE, how much of the change a latent explains, and how much of it the
          other model has
run       one pass over held-out text, diff.json, and its table in words
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
N_TOKENS = 100_000
"""The most held-out tokens that `diff` reads."""
