"""A recipe, and the run that it describes: from text, pictures or files to a folder with an SAE.

    recipe         its sections, in memory and in files, and the fields that SAEs' configs declare
    stages.run     the run: `checks` tells what is wrong, `inputs` are loaded and opened, a Trainer
                   trains, and stages make the results that `results` says are missing or outdated
    stage_explain, stage_probe, preset_search   the stages of more than a few lines
    sae_source     any SAE, from a run or from elsewhere, in a `folder` of its own, with the
                   language model and the text that it is measured on
    calls          train, explain and probe in one call, without a recipe
    harvest_files  writes the activations that a run would read; `cost` foretells memory and disk

`recipe`, `arguments` and `results` import no torch: a command line reads them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
