"""What changed from one language model to another, by a crosscoder over both: `hfsae diff`.

sides          the two models of an SAE: its columns and decoder rows of each, in the sites' units
explained      how much of the change a latent explains, beside shuffled firings
scaling        how much of a latent of one model is in the other, too: latent scaling
intervals      quotients of sums over tokens, with intervals over documents
firing_tokens  the tokens on which latents fire most often
groups         latents of one model, of both, and the others
run            one pass over held-out text, and diff.json
report         diff.json in words: the table, and a sentence for each latent
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
N_TOKENS = 100_000
"""The most held-out tokens that `diff` reads."""
