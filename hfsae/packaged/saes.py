"""SAEs that come with hfsae: the one in this package, and those in its repository alone."""

from pathlib import Path
from typing import NamedTuple

from ..machine.names import CONFIG
from ..machine.refused import Refused

SHIPPED_SAE = Path(__file__).parent.with_name("shipped_sae")
"""A small SAE of SmolLM2-135M, in this package itself: its README.md has its metrics."""
_CLONE = Path(__file__).parents[2]


class SeparateSAE(NamedTuple):
    """An SAE that lies in hfsae's repository and not in what pip installs: its language model, and
    so it too, comes under terms of its own."""

    place: str
    """its folder in a clone"""
    lm: str
    """name of its language model"""

    @property
    def path(self) -> Path:
        """Its folder, if hfsae runs from a clone."""
        return _CLONE / self.place

    def folder(self, name: str) -> Path:
        """Its folder.

        Raises:
            ValueError: hfsae does not run from a clone; the sentence names what to do.
        """
        if not (self.path / CONFIG).is_file():
            raise Refused(
                f"the SAE {name!r} of {self.lm} is in hfsae's repository, and not in what pip "
                f"installs: clone the repository and open its folder {self.place}, or train "
                "another in minutes, `hfsae train gemma3_270m`"
            )
        return self.path


SEPARATE_SAES = {"gemma": SeparateSAE("model_cards/gemma3_270m_shipped", "google/gemma-3-270m")}
"""By the name that `hfsae demo` takes."""


class Shipped(NamedTuple):
    """An SAE that comes with hfsae, in words."""

    name: str
    """of the folder for what a user adds to it"""
    shown: str
    in_python: str


def shipped_at(folder: str | Path) -> Shipped | None:
    """Which SAE that comes with hfsae a folder is, however it is written; None: another one."""
    resolved = Path(folder).resolve()
    if resolved == SHIPPED_SAE.resolve():
        code = "hfsae.load(hfsae.packaged.SHIPPED_SAE)"
        return Shipped("shipped", "the small SAE that comes with hfsae", code)
    for name, sae in SEPARATE_SAES.items():
        if resolved == sae.path.resolve():
            code = f'hfsae.load(hfsae.packaged.SEPARATE_SAES["{name}"].folder("{name}"))'
            of = sae.lm.rpartition("/")[2]
            return Shipped(name, f"the small SAE of {of} that comes with hfsae", code)
    return None
