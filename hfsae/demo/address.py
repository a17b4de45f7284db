"""The state of the app as a link: which page, and its fields.

A page's state is one frozen dataclass; a link has the fields that differ from their defaults. So a
page can be sent to somebody else, and opened again.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_type_hints
from urllib.parse import urlencode

from ..io.errors import Refused
from ..steering.pair import Sampling
from .validate import MAX_CHARACTERS


@dataclass(frozen=True)
class Address:
    """The state of a page, each of which has a subclass."""

    tab: ClassVar[str]
    """the page's name in links"""
    kinds: ClassVar[dict[str, type["Address"]]] = {}
    """all of them by that name"""

    def __init_subclass__(cls) -> None:
        cls.tab = cls.__name__.lower()
        Address.kinds[cls.tab] = cls


@dataclass(frozen=True)
class Inspect(Address):
    """A text, with a latent to colour it by and a token whose latents are listed."""

    prompt: str = ""
    latent: int | None = None
    token: int | None = None
    chat: bool = False
    versus: str = ""


@dataclass(frozen=True)
class Picture(Address):
    """A picture, by its document's number or the name of an uploaded one, and a latent to colour it
    by."""

    picture: str = ""
    latent: int | None = None


@dataclass(frozen=True)
class Feature(Address):
    """A latent, and a text to try it on."""

    latent: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Query(Address):
    """Words that a page looks for."""

    query: str = ""


@dataclass(frozen=True)
class Search(Query):
    """A search for latents; see `inspect_actions.search`."""

    by: str = "word"


class Map(Query):
    """What is highlighted on the map of latents."""


class Labels(Query):
    """The table of latents that tell labels apart, or its rows with some words."""


@dataclass(frozen=True)
class Diff(Address):
    """Latents of one of two language models or of both, in an order; see `table_actions`."""

    group: str = ""
    by: str = "explained"


@dataclass(frozen=True)
class Steer(Address):
    """A prompt, the latents to steer, how to steer, and how to draw the tokens of both texts;
    `steer_actions.check` refuses what is invalid."""

    prompt: str = ""
    latents: dict[int, float] = field(default_factory=dict)
    mode: str = "add"
    unit: str = "max"
    """of the strengths: multiples of the largest activation, per cent of the norm, raw"""
    scope: str = "all"
    """which tokens are steered: all, those of the prompt, or those generated"""
    error_term: bool = True
    """whether what the SAE does not explain is kept"""
    chat: bool = False
    """whether the prompt is a user's message in the model's chat template"""
    temperature: float = Sampling.temperature
    max_new_tokens: int = Sampling.max_new_tokens
    repetition_penalty: float = Sampling.repetition_penalty
    seed: int = Sampling.seed
    turns: tuple[str, ...] = ()
    """a conversation's earlier messages; their answers are written again from the settings"""
    run: bool = False
    """whether the texts were requested, and so are generated when the link is opened"""


STEERING = ("mode", "unit", "scope", "error_term", "chat")
SETTINGS = (*STEERING, "temperature", "max_new_tokens", "repetition_penalty", "seed")
"""the fields of `Steer` that say how to steer, and these with those that say how to draw tokens:
each a field of `Sampling`, too. `content` of page.js names them again; `Steer` is made by
position"""


@dataclass(frozen=True)
class Why(Address):
    """A text whose next token is explained, and a token to contrast it with."""

    prompt: str = ""
    target: str = ""
    contrast: str = ""


@dataclass(frozen=True)
class Graph(Address):
    """A kept attribution graph, or the text of one and its tokens, as `Why` has them."""

    name: str = ""
    prompt: str = ""
    target: str = ""
    contrast: str = ""


@dataclass(frozen=True)
class Health(Address):
    """A text to measure."""

    text: str = ""


@dataclass(frozen=True)
class Compare(Address):
    """Another SAE, and a text that both read."""

    other: str = ""
    text: str = ""


class About(Address):
    """The card; its link has no fields."""


def to_query(address: Address) -> str:
    """`tab=...&field=...`, without fields that are empty, at their defaults, or longer than a page
    allows."""
    pairs = [("tab", address.tab)]
    default = type(address)()
    for f in fields(address):
        value = text = getattr(address, f.name)
        if isinstance(value, dict):
            text = ",".join(f"{latent}:{strength:g}" for latent, strength in value.items())
        elif isinstance(value, tuple):
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        elif isinstance(value, bool):
            text = str(int(value))
        elif isinstance(value, float):
            text = f"{value:g}"
        is_refused = isinstance(value, str | tuple) and len(text) > MAX_CHARACTERS
        if value not in (None, getattr(default, f.name)) and not is_refused:
            pairs.append((f.name, str(text)))
    return urlencode(pairs)


def from_query(query: dict[str, str], pages: Iterable[str] = ()) -> Address:
    """The state in a link; without a page, the first one; other keys are ignored.

    Args:
        pages: those that there are, to be named where one is unknown.

    Raises:
        ValueError: an unknown page, or a value that cannot be read.
    """
    kinds = Address.kinds
    tab = query.get("tab") or query.get("page") or next(iter(kinds))  # people guess `page`
    if tab not in kinds:
        raise Refused(f"there is no page {tab[:40]!r}; known: {', '.join(pages or kinds)}")
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(kinds[tab]).items():
        if name not in query or name in ("tab", "kinds"):
            continue
        text = query[name]
        try:
            if kind == dict[int, float]:
                pairs = [part.split(":") for part in text.split(",") if part]
                values[name] = {int(latent): float(strength) for latent, strength in pairs}
            elif kind is bool:
                values[name] = {"0": False, "1": True}[text]
            elif kind == tuple[str, ...]:
                texts = json.loads(text)
                if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
                    raise ValueError("not a list of texts")
                values[name] = tuple(texts)
            elif kind is str:
                values[name] = text
            else:
                values[name] = float(text) if kind is float else int(text)
        except (ValueError, KeyError, RecursionError):
            raise Refused(f"this link is damaged: {name} is {text[:40]!r}") from None
    return kinds[tab](**values)
