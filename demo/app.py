"""The Space: a language model, looked at and steered through a sparse autoencoder.

`hfsae space` wrote this file. On ZeroGPU hardware the package `spaces` is there, and hfsae.demo
uses it: it has to be imported before torch is.
"""

import contextlib

with contextlib.suppress(ModuleNotFoundError):
    import spaces  # noqa: F401

import hfsae.demo

hfsae.demo.launch(mcp=True)
