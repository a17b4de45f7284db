"""What two language models have in common, by a crosscoder over both: `hfsae diff`.

sides      the two models of an SAE: its columns and decoder rows of each, in the sites' units
scaling    how much of a latent of one model is in the other, too: latent scaling
groups     latents of one model, of both, and the others
run        one pass over held-out text, and diff.json
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
