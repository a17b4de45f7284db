"""Errors that users can cause: one sentence each, distinguished by class.

Refused (a ValueError)     a setting, an argument, a folder that does not fit
  Damaged                  a file that cannot be what its name says
  HubRefused               the Hub: not found, not allowed, not reachable
"""


class Refused(ValueError):
    """Bad input. The message says what, got, and what would work."""


class Damaged(Refused):
    """A file is damaged, or made by something else than its name says."""


class HubRefused(Refused):
    """The Hub has no such thing, does not allow it, or cannot be reached."""
