"""A recipe, and the run that it describes: from text, pictures or files to a folder with an SAE.

`fields` is the recipe, and `recipe_files` reads, writes and compares those in files. `stages.run`
checks one (`opening`), opens its inputs (`inputs_text`, `inputs_encoders`, `inputs_files`), trains,
and makes the results after the training; `results` says which of these are made, and when again.
Stages of more than a few lines have files of their own: `stage_explain`, `stage_probe`, `stage_presets`.
What they get is a `Job` (`job`); SAEs in folders, and what they are measured on, are in `folder`
and `context`.

Beside a run: `call.train` makes one without a recipe, `harvest_files` writes what one would read,
`cost` foretells memory and disk, and `declared_fields` and `explain_request` are what a command line
needs before anything heavy is imported.

Any SAE is measured: `sae_source` finds it and puts it into a folder of its own, `recipe_of_sae`
makes its recipe from what its files name, `measurement` evaluates and collects again, and
`measure_call` explains and probes in one call. `preset_search` finds latents that steer well.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
