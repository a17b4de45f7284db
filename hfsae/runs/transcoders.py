"""A set of transcoders with the names and pages of their features, for graphs."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..features import FeatureStore, feature_page
from ..features.labels import read_names
from ..hub import files_beside, load_set
from ..io import file_names as names
from ..models import SAE

_BESIDE = (names.META, names.LATENTS, names.EXAMPLES, names.LABELS)
_BESIDE += (names.EXPLANATIONS, names.EXPLANATIONS_RECORD, names.EVIDENCE)


class Transcoders(NamedTuple):
    """A set, by the paths of its transcoders below the source."""

    saes: dict[str, SAE]
    labels: dict[str, dict[int, str]]
    """people's labels, else names that `hfsae explain` gave"""
    pages: dict[str, Callable[[int], Mapping[str, Any]]]
    """{path: a latent's page}, of those with a feature store"""


def open_transcoders(
    source: str | Path, *, subfolder: str = "", revision: str | None = None
) -> Transcoders:
    """All of a folder or a repository, with what lies beside their weights.

    Raises:
        ValueError: as `hfsae.load_set`; or what lies beside them is damaged or of other weights.
    """
    saes = load_set(source, subfolder=subfolder, revision=revision)
    found = Transcoders(saes, {}, {})
    for path in saes:
        home = files_beside(source, _BESIDE, subfolder=path, revision=revision)
        found.labels[path] = {} if home is None else read_names(home)
        if home is not None and (home / names.META).is_file():
            found.pages[path] = partial(feature_page, FeatureStore.load(home))
    return found
