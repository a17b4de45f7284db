"""Who answers questions about latents: a packaged or local language model, or a server's.

opening     the judge that arguments name
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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
