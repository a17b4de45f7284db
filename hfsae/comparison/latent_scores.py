"""Scores of an SAE's latents, one by one, in its own folder and in the report's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..explanations.report import ShownLatent
from ..machine.checksums import of_others, stamp
from ..machine.files import read_tensors, write_tensors
from ..machine.names import EXPLAINED, JUDGED

Columns = Mapping[str, Float[Tensor, " n"]]


class Explained(NamedTuple):
    """The scores of one SAE's latents and of its controls; empty: not measured.

    Names of columns have a part before them: "latents/density", "directions/pearson",
    "untrained/shuffled_pearson". NaN: a latent has no such score.
    """

    lexical: Mapping[str, Tensor] = {}
    lexical_args: str = ""
    """settings, as JSON text"""
    examples: Sequence[ShownLatent] = ()
    """latents with their evidence"""
    refused: str = ""
    """why there are no scores"""
    judged: Mapping[str, Tensor] = {}
    """scores by a judge, of fewer latents"""
    judged_args: str = ""

    def as_plain(self) -> dict[str, Any]:
        """All but the columns, for JSON."""
        return {
            "lexical": self.lexical_args,
            "judged": self.judged_args,
            "refused": self.refused,
            "examples": [example._asdict() for example in self.examples],
        }

    def as_tensors(self) -> dict[str, Tensor]:
        """The columns, by name."""
        parts = {"lexical": self.lexical, "judged": self.judged}
        return {f"{part}/{k}": t for part, columns in parts.items() for k, t in columns.items()}


def from_plain(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Explained:
    """What `as_plain` and `as_tensors` gave.

    Raises:
        KeyError, TypeError: it is something else.
    """
    if not plain:
        return Explained()
    lexical, judged = (
        {k.removeprefix(part): t for k, t in tensors.items() if k.startswith(part)}
        for part in ("lexical/", "judged/")
    )
    examples = [ShownLatent(**example) for example in plain["examples"]]
    return Explained(lexical, plain["lexical"], examples, plain["refused"], judged, plain["judged"])


def write_lexical(folder: Path, explained: Explained) -> None:
    """Write explained.safetensors."""
    plain = explained.as_plain()
    facts = {"args": explained.lexical_args, "refused": explained.refused}
    facts["examples"] = json.dumps(plain["examples"])
    write_tensors(folder / EXPLAINED, dict(explained.lexical), {**facts, **stamp(folder)})


def write_judged(folder: Path, explained: Explained) -> None:
    """Write judged.safetensors."""
    facts = {"args": explained.judged_args, **stamp(folder)}
    write_tensors(folder / JUDGED, dict(explained.judged), facts)


def read_explained(folder: Path, kept: Explained) -> Explained:
    """The scores of the weights in a folder; those it lacks are the report's.

    Raises:
        ValueError: a file is damaged.
    """
    explained = kept
    if _is_there(folder, EXPLAINED):
        columns, facts = read_tensors(folder / EXPLAINED)
        examples = [ShownLatent(**example) for example in json.loads(facts["examples"])]
        explained = Explained(columns, facts["args"], examples, facts["refused"])
        explained = explained._replace(judged=kept.judged, judged_args=kept.judged_args)
    if _is_there(folder, JUDGED):
        columns, facts = read_tensors(folder / JUDGED)
        explained = explained._replace(judged=columns, judged_args=facts["args"])
    return explained


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_file() and not any(of_others(folder, [name]))
