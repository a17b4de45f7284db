"""The Space: a language model, looked at and steered through a sparse autoencoder.

`hfsae space` wrote this file. On ZeroGPU hardware hfsae.demo uses the package `spaces`, which has
to be imported before torch.
"""

import contextlib

with contextlib.suppress(ModuleNotFoundError):
    import spaces  # noqa: F401

import hfsae.demo

hfsae.demo.launch(mcp=True)
