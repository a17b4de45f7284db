"""The judge that arguments name."""

from pathlib import Path

from .base import JudgeArguments
from .batch_file import BatchFileJudge
from .calls import Judge
from .local import Local
from .remote import Remote


def judge_of(args: JudgeArguments, calls: Path | None = None) -> Judge:
    """The judge that the arguments name.

    Args:
        calls: features/calls.jsonl, with the answers of earlier runs; None: they are not kept.

    Raises:
        ValueError: a key or a package is missing, or a file of answers cannot be read.
    """
    if args.is_by_file:
        return BatchFileJudge(args, calls)
    return Remote(args, calls) if args.is_served else Local(args, calls)
