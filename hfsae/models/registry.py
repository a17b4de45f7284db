"""Variants in users' own modules, imported by name or as a file."""

import importlib
import os
import sys
from pathlib import Path

from ..io.errors import Refused
from .base import SAE
from .config import SAEConfig, variants

IMPORT_HINT = "import the module of a variant of your own first (a command: --import MODULE)"


def register_variants(module: str) -> None:
    """Import a module, whose variants `AutoModel` then knows.

    Args:
        module: its dotted name, for a module that lies in this folder or is installed; or its file,
            with .py.

    Raises:
        ValueError: there is no such module, importing it fails, or a config has no SAE class.
    """
    folder, name = os.getcwd(), module
    if module.endswith(".py"):
        folder, name = str(Path(module).resolve().parent), Path(module).stem
    if folder not in sys.path:
        sys.path.insert(0, folder)  # which the installed command does not search
    try:
        importlib.import_module(name)
    except Exception as error:  # a user's code may raise anything
        why = f"{type(error).__name__}: {error}"
        raise Refused(
            f"--import {module}: {why}; give a file with .py, or the dotted name of a module that "
            "lies in this folder or is installed"
        ) from error
    refuse_configs_alone()


def refuse_configs_alone() -> None:
    """Refuse a variant's config that has no SAE class.

    Raises:
        ValueError: a config has no SAE class.
    """
    types = {config.model_type for config in _classes()}
    for config_class in variants():
        if config_class.model_type not in types:
            raise Refused(f"no SAE has config_class = {config_class.__name__}; define one")


def refuse_unknown_variant(model_type: str | None, where: str | Path) -> None:
    """Refuse a model_type that no variant has.

    Raises:
        ValueError: no imported module defines this model_type.
    """
    types = sorted(config.model_type for config in variants())
    if model_type not in types:
        raise Refused(
            f"{where} is not an SAE: its config.json describes a {model_type!r} "
            f"model, and SAEs are {', '.join(types)}; {IMPORT_HINT}"
        )


def class_of(model_type: str | None) -> type[SAE] | None:
    """The variant of this model_type; None where no imported module defines it."""
    configs = {config.model_type: config for config in variants()}
    return _classes().get(configs[model_type]) if model_type in configs else None


def _classes() -> dict[type[SAEConfig], type[SAE]]:
    classes: dict[type[SAEConfig], type[SAE]] = {}
    waiting: list[type[SAE]] = [SAE]
    while waiting:
        base = waiting.pop(0)
        if base is not SAE:
            classes.setdefault(base.config_class, base)  # a class before those derived from it
        waiting[:0] = base.__subclasses__()
    return classes
