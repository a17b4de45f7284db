"""Measure any SAE: of a run, or in any format and from anywhere.

    source -> `find_sae`: SAE, folder, language model and text -> `filled`: its folder holds it
           -> evaluate, collect, explain, probe, presets

`source` finds an SAE and puts it into a folder of its own, `settings` makes its recipe from what
its files name, `results` evaluates and collects again, and `call` explains and probes in one call.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
