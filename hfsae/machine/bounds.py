"""Bounds of settings. A number beyond any known use is taken for a mistake, and refused."""

from .refused import Refused

MOST_TOKENS = 10**13
_MOST_SEED = 2**63 - 1  # of torch's generators


def check_most(name: str, value: int | float, most: int) -> None:
    """Check that a setting is not above its limit.

    Raises:
        ValueError: the value is larger.
    """
    if value > most:
        raise Refused(f"{name} must be at most {most:,}, got {value:,}")


def check_least(settings: object, prefix: str = "", **least: int) -> None:
    """Check that settings are not below their limits.

    Args:
        settings: an object with fields of these names; those that hold no number pass.
        prefix: of the names in the sentence.
        least: the smallest value of each.

    Raises:
        ValueError: a value is smaller.
    """
    for name, limit in least.items():
        value = getattr(settings, name)
        if isinstance(value, int | float) and value < limit:
            raise Refused(f"{prefix}{name} is {value}; it must be {limit} or more")


def check_seed(name: str, value: int) -> None:
    """Check that a seed suits every generator of random numbers.

    Raises:
        ValueError: no generator can start from it.
    """
    if not 0 <= value <= _MOST_SEED:
        raise Refused(f"{name} must be a whole number from 0 to {_MOST_SEED:,}, got {value:,}")
