"""Activations for training and measuring, from one of four sources, and their shuffling.

`arguments` has the sections of a recipe; `source` the interface, with text and tensors as sources.
Text: `tokens` makes rows of tokens of it, `harvest` runs a language model on these and keeps what
it gave, `held_out` says which documents count, `token_text` spells tokens.
Others: `pictures` through a vision model, `files` of any model's activations; `shards` reads these,
and those of the cache. `shuffle` fills buckets from a source, and hands out batches.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
