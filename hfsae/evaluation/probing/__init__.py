"""Sparse probing: how well a few latents classify texts, beside controls.

arguments   the settings of a probing
tasks       texts with two classes: packaged sets, files, Hub data sets
regression  texts that fit, choose and test; ranking of features, logistic regression, scores
absorption  words on which a letter's latents are silent: SAEs beside untrained latents
study       all of it in order: activations at each text's last token, scores, means over tasks
report      Markdown
extract     what evaluation.json has of it

The control, latents of random directions that fire as often, is in ../untrained.py.

The protocol is that of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681), with duplicates
dropped before the split; absorption is SAEBench's. SCR and TPP are left out: an audit (arXiv
2605.18229) found that they rank SAEs wrongly.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
