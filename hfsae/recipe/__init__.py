"""A recipe (a section for each dataclass), and the run that it describes, from inputs to a folder.

asked       what is asked of explanations
call        training in one call
collecting  examples of what latents fire on, in a run
configs     the configs of its SAEs, from the model's widths
controls    names beside those of an SAE of re-drawn weights
declared    the fields of SAEs' configs, known without importing these
evaluating  evaluation in a run, on held-out and foreign texts
explaining  explanations of an SAE's latents
fields      the sections, and where two recipes differ
foreign     texts of an evaluation that are unlike the training text
finishing   figures and the card of a run
folder      what a run's folder holds, and what of it is out of date
harvesting  activations that a recipe trains on, written to files
inputs      what a recipe loads before its stages run
job         an SAE in a run, with all that stages work on
lms         a recipe's language model, or several that read the same tokens
naming      names for latents at the end of a run
of_encoders  pictures through a vision model, as the inputs of a run
of_files    activations that are read from files, as the inputs of a run
of_lms      text through several language models, as the inputs of a run
of_text     text through a language model, as the inputs of a run
opening     check a recipe, load what its inputs need, open them
placed      an SAE, its folder, and the language model and text of its measures
presetting  presets for the app, looked for at the end of a run
probing     what latents reveal about texts, for the SAEs in folders
shipped     recipes that come with hfsae, by name
sizes       how much each stage reads, where a recipe leaves it open
stages      a run: training, and all stages after it
tabulating  how latents go with labels of documents
table       the stages after training
text        the rows of tokens that a stage reads
verifying   the fingerprint with which copies of an SAE are verified
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
