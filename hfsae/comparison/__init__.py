"""Compare ways to train an SAE: arms on the same activations, at equal L0, with intervals.

arms.py       a comparison's recipe, expanded to training recipes
run.py        train and evaluate missing SAEs
results.py    each SAE's measurements; the report's copy outlives the weights
data.py       the inputs, in words
frontier.py   fidelity at equal L0, paired differences, intervals
causes.py     whether latents are causes
explaining.py, explained.py             explain latents of each SAE; scores one by one, in files
interpretability.py, latents.py         scores at equal L0, by stratum; the section, the latents
probed.py     what `hfsae probe` measured of the SAEs, at equal L0
report.py     Markdown, HTML and figures
sites.py      one comparison at several sites
together.py   several comparisons in one report
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
