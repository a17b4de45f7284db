"""Who answers questions about latents: a language model here, at a server, or asked by files.

base        questions, answers, what every judge does; the settings
judge       the judge that these name, and the one that only counts what would be asked
calls       calls.jsonl: every answer, so that none is asked for twice
local       a language model on this machine, and its tokens of a question
remote      a server's language model, by the `openai` client
batch_file  a language model that is asked by files: requests, and answers to them
chat        requests and replies in the form of OpenAI's chat completions, for both
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
