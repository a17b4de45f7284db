"""Names of sites, and of the models that they are in. Importing this imports no torch.

Where several models read the same tokens, to be compared, as a base model and its chat version, a
place names its model before a slash, `chat/layers.13`; no module's path has one.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..io.errors import Refused, closest

GRAMMAR = "'<module path>[:in|:out]', such as 'layers.12' or 'layers.12.self_attn.o_proj:in'"
SLASH = "/"


class Site(NamedTuple):
    """A module path under the decoder, and which side of that module."""

    module: str
    port: Literal["in", "out"] = "out"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that a name describes.

        Raises:
            ValueError: the name has another form.
        """
        if not isinstance(text, str):
            example = f"layers.{text}" if isinstance(text, int) else "layers.12"
            raise Refused(f"site {shown(text)} is not text; a site is a path, such as {example!r}")
        module, colon, port = text.partition(":")
        if not module or (colon and port not in ("in", "out")):
            raise Refused(f"site {text!r} does not have the form {GRAMMAR}")
        return cls(module, "in" if port == "in" else "out")

    def __str__(self) -> str:
        return self.module if self.port == "out" else f"{self.module}:in"


def model_and_path(site: str, names: Iterable[str]) -> tuple[str, str]:
    """The name of a place's model, and the place in it: ("chat", "layers.13").

    Args:
        names: of the models.

    Raises:
        ValueError: no name stands before a slash, or one that no model has.
    """
    name, slash, path = site.partition(SLASH)
    names = [*names]
    if not slash:
        raise Refused(
            f"site {site!r} names no model of lms; put one before it, as in {names[0]}/{site}"
        )
    if name not in names:
        near = closest(name, names) or f"; lms has {', '.join(names)}"
        raise Refused(f"site {site!r} names a model that lms lacks, {name!r}{near}")
    return name, path


def by_model(sites: Iterable[str], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """By a model's name, the place in it of each of its sites: {"chat": {"chat/layers.13":
    "layers.13"}}; models without a site are left out.

    Raises:
        ValueError: as `model_and_path`.
    """
    names, divided = [*names], dict[str, dict[str, str]]()
    for site in sites:
        name, path = model_and_path(site, names)
        divided.setdefault(name, {})[site] = path
    return {name: divided[name] for name in names if name in divided}


def shown(value: object) -> str:
    """A value on one line, short enough for a sentence."""
    return " ".join(repr(value).split())[:40]
