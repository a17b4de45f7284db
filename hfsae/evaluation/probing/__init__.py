"""Sparse probing: how well a few latents classify texts, beside controls.

arguments.py   the settings of a probing
tasks.py       texts with two classes: packaged sets, files, Hub data sets
last_tokens.py activations at the last token of each text, harvested once for all SAEs
splits.py      texts that fit, choose and test, whole groups on one side
regression.py  ranking of features, logistic regression, scores on texts it has not seen
words.py       words of a vocabulary, read where their first letter is asked
absorption.py  words on which a letter's latents are silent: both formulas of SAEBench
letters.py     absorption of SAEs beside untrained latents, or why there are no figures
study.py       all of it in order; means over tasks with intervals
extract.py     what evaluation.json has of it
report.py      Markdown

The control, latents of random directions that fire as often, is in ../untrained.py.

The protocol is that of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681), with duplicates
dropped before the split; absorption is SAEBench's. SCR and TPP are left out: an audit (arXiv
2605.18229) found that they rank SAEs wrongly.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
