"""What changed from one language model to another, by a crosscoder over both: `hfsae diff`.

sides     the two models of an SAE: its columns, decoder rows and latents of each
measures  how much of the change a latent explains, and how much of it the other model has
run       one pass over held-out text, and diff.json
report    diff.json in words: the table, and a sentence for each latent
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
N_TOKENS = 100_000
"""The most held-out tokens that `diff` reads."""
