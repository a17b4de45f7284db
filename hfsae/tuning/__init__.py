"""Choose settings on validation documents: random search with successive halving.

space.py      ranges of settings, draws from them, edges, growth
trials.py     a tuning's recipe; the training recipe of each trial
search.py     train, score, halve; each result is written at once, so a search resumes
report.py     Markdown: the best, its neighbours, edges; and a recipe of the best settings
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
