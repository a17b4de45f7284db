"""SAEs that are installed: the one in this package, and those in packages of their own."""

from pathlib import Path
from typing import NamedTuple

from ..machine.refused import Refused
from .installed import package_folder

SHIPPED_SAE = Path(__file__).parent.with_name("shipped_sae")
"""A small SAE of SmolLM2-135M, in this package itself: its README.md has its metrics."""


class SeparateSAE(NamedTuple):
    """An SAE that is too large for this package: a package of its own, which a script makes."""

    module: str
    lm: str
    """name of its language model"""

    def folder(self, name: str) -> Path:
        """Where it is installed.

        Raises:
            ValueError: it is not; the sentence names the commands.
        """
        folder = package_folder(self.module)
        if folder is None:
            raise Refused(
                f"the SAE {name!r} of {self.lm} is not installed: in a clone of hfsae, `python "
                f"scripts/packaged_sae.py {name}` trains it and makes its package, and `pip "
                f"install ./dist/{self.module}` installs it; `hfsae train gemma3_270m` trains "
                "another in minutes"
            )
        return folder


SEPARATE_SAES = {"gemma": SeparateSAE("hfsae_gemma3_270m", "google/gemma-3-270m")}
"""By the name that `hfsae demo` takes."""
