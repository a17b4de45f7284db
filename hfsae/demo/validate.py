"""Checks of input from a browser, a link or a program: the value, or an error in one sentence."""

from collections.abc import Callable

from ..io.errors import Refused

# the least and the largest number that a caller may give: `number(value, name, *SHARE)`
SHARE = (0, 1)
SEED = (0, 2**31 - 1)

MAX_CHARACTERS = 8_000
MAX_LATENTS = 8  # steered at once


def text(
    value: object,
    name: str = "the prompt",
    *,
    limit: int = MAX_CHARACTERS,
    empty: str | None = "there is no text; write a prompt",
) -> str:
    """A string that is not too long and, unless `empty` is None, not blank."""
    if not isinstance(value, str):
        raise Refused(f"{name} must be text, got {_kind(value)}")
    if len(value) > limit:
        raise Refused(f"{name} has {len(value):,} characters; at most {limit:,} fit here")
    if empty is not None and not value.strip():
        raise Refused(empty)
    # a lone surrogate is no text that a tokenizer could read
    return value.encode("utf-8", "replace").decode("utf-8").replace("\x00", "")


def number(value: object, name: str, low: int | float, high: int | float, unit: str = "") -> float:
    """A finite number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{name} must be a number, got {_kind(value)}")
    if not low <= value <= high:  # NaN fails too
        raise Refused(f"{name} is {_typed(value)}; it can be {low:g} to {high:g}{unit}")
    return float(value)


def whole(value: object, name: str, low: int | float, high: int | float) -> int:
    """A whole number from low to high."""
    parsed = number(value, name, low, high)
    if parsed != int(parsed):
        raise Refused(f"{name} is {_typed(parsed)}; it must be a whole number")
    return int(parsed)


def flag(value: object, name: str) -> bool:
    """True or False; numbers and words are refused."""
    if not isinstance(value, bool):
        raise Refused(f"{name} must be true or false, got {_kind(value)}")
    return value


def choice(value: object, name: str, options: tuple[str, ...]) -> str:
    """One of the options."""
    if not isinstance(value, str) or value not in options:
        raise Refused(f"{name} is {_short(value)}; it can be {', '.join(options)}")
    return value


def latent(value: object, d_sae: int) -> int:
    """A valid latent index."""
    if value is None or value == "":
        raise Refused("no latent is chosen; give a number, or take a random one")
    value = _as_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise Refused(f"a latent is a whole number, got {_short(value)}")
    if not 0 <= value < d_sae:
        last = f"{d_sae - 1:,}"
        raise Refused(f"there is no latent {_typed(value)}; this SAE has {d_sae:,}, 0 to {last}")
    return int(value)


def strengths(
    value: object,
    d_sae: int,
    limit: int | float,
    latent_of: Callable[[str], int] | None = None,
    *,
    unit: str = "max",
) -> dict[int, float]:
    """{latent: strength} of a mapping, or of text such as "12:1.5, 7:-2"; at most +-limit in the
    unit.

    Args:
        latent_of: gives the latent that a word stands for; None: words are refused.
    """
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, str):
        pairs = []
        for part in filter(None, map(str.strip, value.split(","))):
            if part.count(":") != 1:
                how = "latents are written as 12:1.5, 7:-2, or by a word, sea:1.5"
                raise Refused(f"{how}; {_short(part)} is not")
            pairs.append(tuple(map(str.strip, part.split(":"))))
    else:
        raise Refused(f"latents must be text such as 12:1.5, got {_kind(value)}")
    if not pairs:
        raise Refused("no latent is chosen to steer; add one with its strength, such as 12:1.5")
    if len(pairs) > MAX_LATENTS:
        raise Refused(f"{len(pairs)} latents are chosen; at most {MAX_LATENTS} fit here")
    by_latent = {}
    for key, strength in pairs:
        is_word = isinstance(key, str) and any(map(str.isalpha, key))
        index = latent_of(key) if latent_of and is_word else latent(key, d_sae)
        if index in by_latent:
            raise Refused(f"latent {index} is given twice; give it one strength")
        name = f"the strength of latent {index}"
        by_latent[index] = number(_as_number(strength), name, -limit, limit, f" in the unit {unit}")
    return by_latent


def _as_number(value: object) -> object:
    """The number that a string spells; other strings are left for the next check to refuse."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _kind(value: object) -> str:
    return "nothing" if value in (None, "") else f"a {type(value).__name__}"


def _typed(value: int | float) -> str:
    """A number as people write it: no .0 after a whole one, and no digit lost."""
    whole = isinstance(value, float) and value.is_integer()
    return _short(int(value) if whole else value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
