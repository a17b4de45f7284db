"""Processes that have hfsae at once: they are forked from a server that has imported it."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm"])


def start(work: Callable[..., None], *arguments: object, **variables: str):
    """A process that runs `work(*arguments)`, with variables of the environment."""
    process = _CONTEXT.Process(target=_run, args=(variables, work, arguments))
    process.start()
    return process


def start_ranks(n: int, work: Callable[..., None], *arguments: object) -> list:
    """`work(*arguments)` in n processes with the environment that torchrun gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
    ranks = []
    for rank in range(n):
        variables = shared | {"RANK": rank, "LOCAL_RANK": rank}
        variables = {name: str(value) for name, value in variables.items()}
        ranks.append(start(work, *arguments, **variables))
    return ranks


def _run(variables: dict[str, str], work: Callable[..., None], arguments: tuple) -> None:
    os.environ |= variables
    # After a fork torch makes its pool of threads anew, at first use. That is here, since where two
    # threads come first at once (the backward pass has its own) it aborts: "Invalid thread pool!".
    torch.set_num_threads(1)
    work(*arguments)


def exit_codes(ranks: list, seconds: float = 120) -> list[int | None]:
    """None is of a process that had to be killed, because it did not end by itself."""
    for rank in ranks:
        rank.join(seconds)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


def hfsae(argv: list[str], log: Path) -> None:
    """The command line; what it prints goes to the log."""
    from hfsae.cli import main

    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(argv))
