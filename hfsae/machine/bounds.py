"""Upper bounds of settings: a number beyond any known use is a slip, and is refused."""

from .refused import Refused

MOST_TOKENS = 10**13
_MOST_SEED = 2**63 - 1  # of torch's generators


def check_most(name: str, value: int | float, most: int) -> None:
    """
    Raises:
        ValueError: the value is larger.
    """
    if value > most:
        raise Refused(f"{name} must be at most {most:,}, got {value:,}")


def check_seed(name: str, value: int) -> None:
    """
    Raises:
        ValueError: no generator can start from it.
    """
    if not 0 <= value <= _MOST_SEED:
        raise Refused(f"{name} must be a whole number from 0 to {_MOST_SEED:,}, got {value:,}")
