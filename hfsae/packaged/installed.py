"""Folders of installed Python packages."""

import importlib.util
from pathlib import Path

from ..machine.refused import Refused


def package_folder(module: str) -> Path | None:
    """The folder of an installed package, which is not imported; None if there is none."""
    spec = importlib.util.find_spec(module)  # a top-level name: found without being executed
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def required_folder(module: str, requirement: str) -> Path:
    """The folder of an installed package.

    Raises:
        ValueError: it is not installed; the sentence has the command.
    """
    folder = package_folder(module)
    if folder is None:
        raise Refused(f"package {module!r} is not installed: `pip install --no-deps {requirement}`")
    return folder


def distribution(requirement: str) -> str:
    """The package's name in "name==version"."""
    return requirement.partition("==")[0]
