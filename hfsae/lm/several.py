"""Several language models that read the same tokens, to be compared: a base model and its chat
version, say. A place names its model before a slash, `chat/layers.13`; no module's path has one.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..io.errors import Refused
from .load import LoadedLM
from .places import model_and_path


class LoadedLMs(NamedTuple):
    """Language models by the names that stand before the slash, with one vocabulary."""

    each: dict[str, LoadedLM]

    @property
    def lms(self) -> dict[str, PreTrainedModel]:
        """The models alone."""
        return {name: loaded.lm for name, loaded in self.each.items()}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The first one's: all have its vocabulary."""
        return next(iter(self.each.values())).tokenizer

    @property
    def device(self) -> torch.device:
        """The first one's."""
        return next(iter(self.lms.values())).device


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


def refuse_other_vocabularies(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Refuse models to which the same ids are other tokens.

    Args:
        tokenizers: by the names of their models.

    Raises:
        ValueError: two tokenizers differ; the sentence has the first id that does.
    """
    tokens = {
        name: {id_: token for token, id_ in tokenizer.get_vocab().items()}
        for name, tokenizer in tokenizers.items()
    }
    for (one, ours), (other, theirs) in combinations(tokens.items(), 2):
        unlike = (i for i in sorted({*ours, *theirs}) if ours.get(i) != theirs.get(i))
        if (id_ := next(unlike, None)) is not None:
            raise Refused(
                f"the tokenizers of {one} and {other} differ: id {id_} is {_shown(ours, id_)} in "
                f"{one} and {_shown(theirs, id_)} in {other}; models that read the same tokens "
                "need the same vocabulary"
            )


def _shown(tokens: Mapping[int, str], id_: int) -> str:
    return repr(tokens[id_]) if id_ in tokens else "no token"
