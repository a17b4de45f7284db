"""Variants in users' own modules: imported by name, and registered with transformers."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from ..machine.refused import Refused
from .base import SAE
from .config import SAEConfig, variants

IMPORT_HINT = "import the module of a variant of your own first (a command: --import MODULE)"


def register_variants(module: str) -> None:
    """Import a module, and register each variant that it defines under its model_type.

    Raises:
        ValueError: there is no such module, it fails, or a config has no SAE class; one sentence.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # which the installed command does not search
    try:
        importlib.import_module(module)
    except Exception as error:  # a user's code may raise anything
        why = f"{type(error).__name__}: {error}"
        raise Refused(
            f"--import {module}: {why}; give a module's dotted name, without .py, that lies in "
            "this folder or is installed"
        ) from error
    register_defined()


def register_defined() -> None:
    """Register with transformers the variants of modules that are imported by now.

    Raises:
        ValueError: a config has no SAE class.
    """
    classes = _classes()
    for config_class in variants():
        if config_class.model_type in CONFIG_MAPPING:
            continue
        if config_class not in classes:
            raise Refused(f"no SAE has config_class = {config_class.__name__}; define one")
        AutoConfig.register(config_class.model_type, config_class)
        AutoModel.register(config_class, classes[config_class])


def refuse_unknown_variant(model_type: str | None, where: str | Path) -> None:
    """
    Raises:
        ValueError: no imported module defines this model_type.
    """
    types = sorted(config.model_type for config in variants())
    if model_type not in types:
        raise Refused(
            f"{where} is no SAE: its config.json is of a {model_type!r} model, and SAEs are "
            f"{', '.join(types)}; {IMPORT_HINT}"
        )


def class_of(model_type: str | None) -> type[SAE] | None:
    """The variant of this model_type; None where no imported module defines it."""
    configs = {config.model_type: config for config in variants()}
    return _classes().get(configs[model_type]) if model_type in configs else None


def _classes() -> dict[type[SAEConfig], type[SAE]]:
    return {sae.config_class: sae for sae in _below(SAE)}


def _below(base: type[SAE]) -> Iterator[type[SAE]]:
    for derived in base.__subclasses__():
        yield derived
        yield from _below(derived)
