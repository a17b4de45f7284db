"""Measure any SAE: of a run, or in any format and from anywhere.

    source -> `find_sae`: SAE, folder, language model and text -> `filled`: its folder holds it
           -> evaluate, collect, explain, probe, presets

call       explain and probe in one call
results    evaluate and collect again
settings   the language model and the text that an SAE's files name
source     from a folder or a repository, in any format, to a folder of the SAE's own
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
