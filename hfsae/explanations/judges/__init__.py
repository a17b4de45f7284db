"""Who answers questions about latents: a packaged or local language model, or a server's.

base        a question, an answer, what every judge does; the settings
calls       calls.jsonl: every answer, so that none is asked for twice
counted     the judge of a dry run, which only counts
local       a language model on this machine
scoring     its log-probabilities, batch by batch
wording     its tokens of a question
remote      a server's language model
filed       a language model that is asked by file: requests, and answers to them
bodies      a question in the form that servers and files have
transport   one request, and what went wrong with it
replies     a server's reply, read
forms       the form that an answer is to have
tokens      how many tokens a question has
"""

from pathlib import Path

from .base import Answer as Answer
from .base import Judge as Judge
from .base import JudgeArguments as JudgeArguments
from .base import Question as Question
from .base import Usage as Usage
from .base import Waits as Waits
from .counted import Counted as Counted
from .filed import Filed as Filed
from .local import Local as Local
from .remote import Remote as Remote


def judge_of(args: JudgeArguments, calls: Path | None = None) -> Judge:
    """The judge that the arguments name.

    Args:
        calls: features/calls.jsonl, with the answers of earlier runs; None: they are not kept.

    Raises:
        ValueError: a key is missing, or a file of answers cannot be read.
    """
    if args.is_by_file:
        return Filed(args, calls)
    return Remote(args, calls) if args.is_served else Local(args, calls)
