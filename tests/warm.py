"""What the server of `tests.forked` imports and does once, to spare each process that it forks."""

# ruff: noqa: F401

import atexit
import gc
import tempfile

import matplotlib.backends.backend_agg
import matplotlib.pyplot
import pytest
import torch
import transformers
from transformers import AutoModel

import hfsae.cli
import hfsae.runs.stages
import hfsae.training.trainer
from hfsae import TopKSAE, TopKSAEConfig

from . import forked
from .training import planted

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    transformers.utils.logging.disable_progress_bar()
    TopKSAE(TopKSAEConfig(d_in=2, d_sae=2, k=1)).save_pretrained(folder)
    AutoModel.from_pretrained(folder)  # the first model takes transformers a second
    transformers.utils.logging.enable_progress_bar()
gc.freeze()  # searching it for garbage takes 0.3 s each time
atexit.register(gc.unfreeze)  # lets libraries in C++ release their objects
