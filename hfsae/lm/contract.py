"""The activation contract: the origin of an SAE's activations, compared with a model.

An SAE is valid for activations of one model at one site, made as in training: same tokenizer, BOS
token, dtype, and attention implementation. A training run writes these `terms` into the SAE's
config; `check` compares a model with them. Activations are always raw, so there is no normalisation
to agree on. Other code checks sites and widths where it uses them.
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
    in_training: str
    now: str
    severity: Literal["error", "warning"]
    consequence: str

    def __str__(self) -> str:
        return (
            f"{self.term} is {self.now}, and was {self.in_training} in training: {self.consequence}"
        )


def terms(lm: PreTrainedModel, tokenizer: Any, bos: str) -> dict[str, str | None]:
    """Config fields for an SAE trained on this model's activations."""
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
    unequal = []

    def compare(term: str, field: str, now: Any, severity: Any, consequence: str) -> None:
        in_training = getattr(config, field, None)
        if in_training is not None and now is not None and str(in_training) != str(now):
            unequal.append(Difference(term, str(in_training), str(now), severity, consequence))

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
        "activations differ a little, so latents near their thresholds may switch",
    )
    compare(
        "its attention implementation",
        "model_attention",
        getattr(lm.config, "_attn_implementation", None),
        "warning",
        "some omit a part of the model (Gemma 2: logit soft-capping)",
    )
    if tokenizer is not None:
        now = tokenizer_hash(tokenizer)
        compare("the tokenizer's hash", "tokenizer_hash", now, "error", "text has other ids")
    return unequal


def check(config: Any, lm: PreTrainedModel, tokenizer: Any = None) -> None:
    """Warn of each difference that may matter.

    Raises:
        ValueError: a difference makes all latents meaningless.
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
            f"SAE at {config.site}: the text does not begin with BOS (id {bos_id}), unlike all "
            "training text: prepend tokenizer.bos_token",
            stacklevel=3,
        )
