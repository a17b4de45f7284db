"""Names of the room, and where each is imported from at its first use."""

from .base import Answer as Answer
from .base import JudgeArguments as JudgeArguments
from .base import PendingAnswers as PendingAnswers
from .base import Question as Question
from .base import Usage as Usage
from .batch_file import BatchFileJudge as BatchFileJudge
from .calls import Judge as Judge
from .judge import DryRunJudge as DryRunJudge
from .judge import judge_of as judge_of
from .local import Local as Local
from .remote import Remote as Remote
