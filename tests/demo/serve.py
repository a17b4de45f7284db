"""The app as a process of its own, with two endpoints more: how many hooks the model carries, and
how many texts it writes at the moment, with the length of the one that began last.

A process, since the type checks that these tests put on every function hide from Gradio which of
them are generators.
"""

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from gradio.events import api

from hfsae.demo import Choice, act, build, looks, open_subject

warnings.simplefilter("ignore")
subject = open_subject(Choice(sys.argv[1]))


def hooks() -> int:
    """Forward hooks on the language model."""
    modules = subject.lm.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


generate_pair, told = act.generate_pair, {"begun": 0, "under_way": 0, "length": 0}
MORE_WORK = torch.ones(1024, 1024)  # a token, as of a larger model: there is time to leave


def counted(*args: Any, **options: Any) -> Iterator[Any]:
    told["begun"] += 1
    told["under_way"] += 1
    told["length"], mine = 0, told["begun"]
    try:
        for pair in generate_pair(*args, **options):
            if mine == told["begun"]:
                told["length"] = len(pair.steered_ids)
            yield pair
            MORE_WORK @ MORE_WORK
    finally:
        told["under_way"] -= 1


def writing() -> dict[str, int]:
    """Texts under way, and tokens of the last."""
    return dict(told)


act.generate_pair = counted
blocks = build(subject)
with blocks:
    api(hooks, api_name="hooks")
    api(writing, api_name="writing")
blocks.launch(**looks(), server_name="127.0.0.1", server_port=int(sys.argv[2]), quiet=True)
