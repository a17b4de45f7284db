"""Comparisons that ask more than `hfsae compare` does: experiments, run from a clone.

`PYTHONPATH=scripts python -m comparisons FILE.yaml ...` (`__main__`) takes what `hfsae compare`
takes, and does more, as README.md says. `judged.py` and `threshold_gradients.py` are scripts of
their own.

experiment        a comparison at several sites, and what else is measured of its SAEs
at_l0             where an L0 lies among the SAEs of an arm
foreign           what SAEs do on texts unlike the training text
causes            whether latents are causes
explaining        explain latents of each SAE, and score what was said
interpretability  those scores at equal L0, by density
latents           the report's section on them, and its page of latents with evidence
probed            what `hfsae probe` measured of the SAEs
across_sites      one report over all sites
together, pooled  one report and verdict on several comparisons
figures, markdown what these reports share
"""
