"""Activations for training and measuring, from one of four sources, and their shuffling.

`arguments` has the sections of a recipe and `source` the interface, with text as its first source.
Text: `in_memory` and `tokens` make rows of tokens of it, `harvest` runs a language model on these,
`cache` keeps what it gave, `held_out` says which documents count, `token_text` spells tokens.
Others: `pictures` through a vision model, `files` of any model's activations, `tensors` in memory.
`shuffle` fills buckets from a source and hands out batches, resumable to the bit.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
