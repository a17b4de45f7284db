"""A recipe, and the run that it describes: from text, pictures or files to a folder with an SAE.

`fields` is the recipe, and `recipe_files` reads, writes and compares those in files. `stages.run`
checks one (`opening`), opens its inputs (`inputs_text`, `inputs_encoders`, `inputs_files`), trains,
and makes the results after the training; `results` says which of these are made, and when again.
Stages of more than a few lines have files of their own: `explaining`, `probing`, `stage_presets`.
What they get is a `Job` (`job`); SAEs in folders, and what they are measured on, are in `folder`
and `context`.

Beside a run: `call.train` makes one without a recipe, `harvesting` writes what one would read, and
`declared` and `explain_request` are what a command line needs before anything heavy is imported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
