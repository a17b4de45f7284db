"""Apps in a process of their own, one for each line of the standard input.

A line "PORT FOLDER" is an app with three endpoints more: how many hooks the model carries, how many
texts are written at the moment, and how many callers the app remembers. A line that is a JSON list
is a command, `hfsae demo` with its arguments, whose app is as people have it. In both, a text of
ENDLESS tokens ends only where somebody ends it.

A process, since the type checks that these tests put on every function hide from Gradio which of
them are generators.
"""

import json
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import api

from hfsae.cli import main
from hfsae.demo import Choice, build, looks, open_subject, steer_actions

warnings.simplefilter("ignore")
generate_pair, told = steer_actions.generate_pair, {"under_way": 0}
ENDLESS, SHOWN = 230, 3  # tokens
PAUSE = threading.Event()


def counted(*args: Any, **options: Any) -> Iterator[Any]:
    *_, how, stopped = args
    told["under_way"] += 1
    try:
        for pair in generate_pair(*args, **options):
            yield pair
            while how.max_new_tokens == ENDLESS and len(pair.steered_ids) == SHOWN:
                if stopped() or PAUSE.wait(0.5):  # seconds: the browser draws each pair
                    break
                yield pair  # where a closed tab ends it
    finally:
        told["under_way"] -= 1


def writing() -> int:
    """Texts under way."""
    return told["under_way"]


def serve(port: int, folder: str) -> None:
    """Begin to serve the app of an SAE's folder."""
    subject = open_subject(Choice(folder))
    blocks = build(subject)

    def hooks() -> int:
        """Forward hooks on the language model."""
        modules = subject.lm.modules()
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    def sessions() -> int:
        """Callers that are remembered."""
        return len(blocks.state_holder.session_data)

    with blocks:
        api(hooks, api_name="hooks")
        api(writing, api_name="writing")
        api(sessions, api_name="sessions")
    shows = looks(uploads=subject.encoder is not None)
    where = {"server_name": "127.0.0.1", "server_port": port}
    blocks.launch(**shows, **where, quiet=True, prevent_thread_lock=True)


def serve_command(argv: list[str]) -> None:
    """The command line, which would stay until Ctrl-C: a command that ends early ends all apps."""
    stays: list[gr.Blocks] = []
    gr.Blocks.block_thread = lambda blocks: stays.append(blocks)
    assert main(argv) == 0 and len(stays) == 1, argv


steer_actions.generate_pair = counted
for line in sys.stdin:
    if line.startswith("["):
        serve_command(json.loads(line))
    else:
        port, folder = line.rstrip("\n").split(" ", 1)
        serve(int(port), folder)
