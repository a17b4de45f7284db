"""Errors that users can cause: one sentence each, distinguished by class.

Refused (a ValueError)     a setting, argument or folder is wrong
  Damaged                  a file is damaged, or of another kind than its name
  HubRefused               the Hub: not found, not allowed, not reachable
"""


class Refused(ValueError):
    """Bad input. The message names the problem, the value, and what would work."""


class Damaged(Refused):
    """A file is damaged, or of another kind than its name."""


class HubRefused(Refused):
    """The Hub does not have it, does not allow it, or cannot be reached."""
