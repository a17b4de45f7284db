"""Bounds of settings. A number beyond any known use is taken for a mistake, and refused."""

from typing import Any, Literal, get_args, get_origin

from .errors import Refused

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


def check_n_latents(d_sae: int | None, target_l0: int | float | None, prefix: str = "") -> None:
    """Check the number of latents and the goal of L0; None passes.

    Args:
        prefix: of the names in the sentence.

    Raises:
        ValueError: there is no latent, or the goal is 0 or less, or no less than all latents.
    """
    if d_sae is not None and not d_sae > 0:
        raise Refused(f"{prefix}d_sae must be positive, got {d_sae}")
    if target_l0 is not None and d_sae is not None and not 0 < target_l0 < d_sae:
        raise Refused(f"{prefix}target_l0 must lie between 0 and d_sae ({d_sae}), got {target_l0}")


def check_type(name: str, value: object, type_: Any) -> None:
    """Check that a setting has a value of its type; a number is no truth value.

    Raises:
        ValueError: it has another one.
    """
    if get_origin(type_) is Literal:
        choices = get_args(type_)
        if value not in choices:
            raise Refused(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    elif (isinstance(value, bool) and type_ is not bool) or not isinstance(value, type_):
        raise Refused(f"{name} must be {in_words(type_)}, got {value!r}")


def in_words(type_: Any) -> str:
    """A type in words, for an error sentence."""
    if get_origin(type_) is Literal:
        return " or ".join(map(repr, get_args(type_)))
    if get_origin(type_) is dict:
        is_of_texts = get_args(type_)[1] is str
        return "names with a text each, as {name: text}" if is_of_texts else "a section of fields"
    if parts := [part for part in get_args(type_) if part is not type(None)]:
        parts = [part for part in parts if part is not int or float not in parts]
        is_list = get_origin(type_) is list
        words = "a list" if is_list else " or ".join(dict.fromkeys(map(in_words, parts)))
        return f"{words}, or null" if type(None) in get_args(type_) else words
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return {**names, list: "a list", tuple: "a list"}.get(type_, "a section of fields")


def check_seed(name: str, value: int) -> None:
    """Check that a seed suits every generator of random numbers.

    Raises:
        ValueError: no generator can start from it.
    """
    if not 0 <= value <= _MOST_SEED:
        raise Refused(f"{name} must be a whole number from 0 to {_MOST_SEED:,}, got {value:,}")
