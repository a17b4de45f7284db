"""What the server of `tests.forked` imports and does once, to spare each process that it forks."""

import atexit
import gc
import tempfile

import matplotlib.backends.backend_agg
import matplotlib.pyplot  # noqa: F401
import pytest  # noqa: F401
import torch
import transformers
from transformers import AutoModel

from hfsae import TopKSAE, TopKSAEConfig

from . import forked  # noqa: F401
from .training import planted  # noqa: F401

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    transformers.utils.logging.disable_progress_bar()
    TopKSAE(TopKSAEConfig(d_in=2, d_sae=2, k=1)).save_pretrained(folder)
    AutoModel.from_pretrained(folder)  # the first model takes transformers a second
    transformers.utils.logging.enable_progress_bar()
gc.freeze()  # searching it for garbage takes 0.3 s each time
atexit.register(gc.unfreeze)  # lets libraries in C++ release their objects
