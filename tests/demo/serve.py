"""The app as a process of its own, with one endpoint more: how many hooks the model carries.

A process, since the type checks that these tests put on every function hide from Gradio which of
them are generators.
"""

import sys
import warnings

from gradio.events import api

from hfsae.demo import Choice, build, looks, open_subject

warnings.simplefilter("ignore")
subject = open_subject(Choice(sys.argv[1]))


def hooks() -> int:
    """Forward hooks on the language model."""
    modules = subject.lm.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


blocks = build(subject)
with blocks:
    api(hooks, api_name="hooks")
blocks.launch(**looks(), server_name="127.0.0.1", server_port=int(sys.argv[2]), quiet=True)
