"""Who answers questions about latents: a packaged or local language model, or a server's.

base        a question, an answer, what every judge does; the settings
calls       calls.jsonl: every answer, so that none is asked for twice
counted     the judge of a dry run, which only counts
remote      a server's language model
transport   one request, and what went wrong with it
replies     a server's reply, read
tokens      how many tokens a question has
"""

from .base import Answer as Answer
from .base import Judge as Judge
from .base import JudgeArguments as JudgeArguments
from .base import Question as Question
from .base import Usage as Usage
from .counted import Counted as Counted
from .remote import Remote as Remote
