"""Files, names, memory, locks, processors, keys, guards, the Hub's client: what all else needs.

Public are the kinds of refusals, and what those need who read or change a run's records themselves:
whether a record is of its weights and unchanged, its seal, and what of it may be published.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
