"""Compare ways to train an SAE: arms on the same activations, at equal L0, with intervals.

arms       a comparison's recipe, expanded to training recipes
run        train and evaluate missing SAEs
results    each SAE's measurements; the report's copy outlives the weights
frontier   fidelity at equal L0: curves, paired differences from the reference, their intervals
report     Markdown and HTML, and what the SAEs were trained on, in words
plots      its figures

Other experiments on the same SAEs build on these names: scripts/comparisons in a clone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
