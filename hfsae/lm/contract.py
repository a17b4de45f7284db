"""The activation contract: what an SAE's activations came from, and whether a model gives the same.

An SAE is right for activations of one model at one site, made the way it was trained on: with that
tokenizer, a BOS token, a dtype, an attention implementation. `terms` are what a training run writes
into the SAE's config; `check` holds a model against them. Activations are always raw, so there is
no normalisation to agree on. Sites and widths are checked where they are used.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel

from ..machine.refused import Refused

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Difference(NamedTuple):
    """One term on which a model differs from training."""

    term: str
    wanted: str
    found: str
    severity: Literal["error", "warning"]
    consequence: str

    def __str__(self) -> str:
        return f"{self.term} is {self.found}, and was {self.wanted} in training: {self.consequence}"


def terms(lm: PreTrainedModel, tokenizer: Any, bos: str) -> dict[str, str | None]:
    """Config fields of an SAE that is trained on this model's activations."""
    return {
        "model_dtype": str(lm.dtype).removeprefix("torch."),
        "model_attention": getattr(lm.config, "_attn_implementation", None),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "bos": bos,
    }


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of the vocabulary with its ids, special tokens included."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def differences(config: Any, lm: PreTrainedModel, tokenizer: Any = None) -> list[Difference]:
    """Terms on which `lm` and `tokenizer` differ from training; unknown terms count as equal."""
    found = []

    def compare(term: str, field: str, here: Any, severity: Any, consequence: str) -> None:
        wanted = getattr(config, field, None)
        if wanted is not None and here is not None and str(wanted) != str(here):
            found.append(Difference(term, str(wanted), str(here), severity, consequence))

    name = getattr(lm, "name_or_path", "") or None
    if name is not None and (Path(name).expanduser().exists() or "/" not in name):
        name = None  # a folder's name does not identify a model
    commit = getattr(lm.config, "_commit_hash", None)
    if not _COMMIT.fullmatch(str(getattr(config, "model_revision", ""))) or not commit:
        commit = None
    compare("the model", "model_name", name, "warning", "latents may mean something else")
    compare("its revision", "model_revision", commit, "warning", "its weights may differ")
    compare(
        "its dtype",
        "model_dtype",
        str(lm.dtype).removeprefix("torch."),
        "warning",
        "activations differ a little, and latents near their thresholds with them",
    )
    compare(
        "its attention implementation",
        "model_attention",
        getattr(lm.config, "_attn_implementation", None),
        "warning",
        "some leave out what the model has (Gemma 2: logit soft-capping)",
    )
    if tokenizer is not None:
        here = tokenizer_hash(tokenizer)
        compare("the tokenizer's hash", "tokenizer_hash", here, "error", "text has other ids")
    return found


def check(config: Any, lm: PreTrainedModel, tokenizer: Any = None) -> None:
    """Warn of each difference that may matter.

    Raises:
        ValueError: one that makes all latents meaningless.
    """
    for difference in differences(config, lm, tokenizer):
        if difference.severity == "error":
            raise Refused(f"this SAE is not for this model: {difference}")
        warnings.warn(f"SAE at {config.site}: {difference}", stacklevel=3)


def check_bos(config: Any, lm: PreTrainedModel, input_ids: Int64[Tensor, "rows ctx"]) -> None:
    """Warn if the SAE was trained on text with BOS, and a row here has none."""
    bos_id = getattr(lm.config, "bos_token_id", None)
    if getattr(config, "bos", None) in (None, "none") or not isinstance(bos_id, int):
        return
    if input_ids.shape[1] > 1 and not (input_ids == bos_id).any(dim=1).all():
        warnings.warn(
            f"SAE at {config.site}: the text does not begin with BOS (id {bos_id}), and always did "
            "in training: prepend tokenizer.bos_token",
            stacklevel=3,
        )
