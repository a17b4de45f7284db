"""The activation contract: the origin of an SAE's activations, compared with a model.

An SAE is valid for activations of one model at one site, made as in training: same weights, same
tokenizer, BOS token, dtype, and attention implementation, no dropout. A training run writes these
`terms` into the SAE's config; every call that runs an SAE in a model compares them by
`check_model`. Activations are always raw, so there is no normalisation to agree on. Other code
checks sites and widths where it uses them.

A difference that makes all latents meaningless is an error, one that changes some latents a
warning. To continue deliberately, set the field that the sentence names to None: what is None is
not compared, as in SAEs of other libraries and from before the field. Each warning comes once for a
model and an SAE.

**Weights.** Their distance from training's is measured on a sketch. With noise of that size on
SmolLM2's weights, of the firings of an SAE (layers.12, 3,072 latents) or of those under noise this
share was common to both (2,000 tokens), and the language model's own loss was:

    distance   0     1 %   3 %   5 %   10 %  20 %  30 %  50 %
    common     1     .95   .88   .81   .65   .38   .18   .06
    nats       3.95  3.97  4.02  4.11  4.68  7.21  11.0  16.3

So a fine-tuned or quantised copy is a warning, with its distance, and 30 % or more an error: these
are other weights, not a copy. A change that only a cast explains is none. The sketch is a sample,
eight rows of eight matrices: training changes all of them, but an edit of one other matrix is not
seen.

**A sketch** of a language model's weights: with it alone, another model's can be compared. It holds
a few sums, with fixed random signs, of the weights in some rows of some matrices. The difference of
two such sums has on average the size of the difference of those rows (Johnson and Lindenstrauss
1984), and every number of the rows counts. Rows are cast to the model's dtype first: the sketch of
a model in bfloat16 is that of the same model in float32, cast by the comparison.
"""

import base64
import hashlib
import json
import re
import struct
import warnings
from collections.abc import Mapping
from hashlib import blake2b, shake_256
from itertools import chain, takewhile
from math import inf, isfinite, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..io.errors import Refused
from .hooks import unwrapped
from .load import known_tokenizer

_MATRICES, _ROWS, _STEP, _SUMS = 8, 8, 97, 3
_WIDTH = struct.Struct("<I")  # of the residual stream
_RECORD = struct.Struct(f"<I{_SUMS}f")  # a matrix by its hash, and its sums
_SAME = 1e-5  # a distance of equal weights, summed in another order
_Sums = dict[int, tuple[float, ...]]


def sketch(lm: nn.Module) -> str | None:
    """The sketch of a model, 176 characters; None where no matrix is in floating point."""
    matrices, dtype = list(_matrices(lm).items()), unwrapped(lm).dtype
    last, n = len(matrices) - 1, min(_MATRICES, len(matrices))
    chosen = [matrices[round(i * last / max(1, n - 1))] for i in range(n)]
    records = [_RECORD.pack(tag, *_sums(weight, dtype)[0]) for tag, (_, weight) in chosen]
    width = unwrapped(lm).config.get_text_config().hidden_size
    packed = _WIDTH.pack(width) + b"".join(records)
    return base64.b64encode(packed).decode() if records else None


def parse_sketch(text: str) -> tuple[int, _Sums]:
    """The width of a sketched model, and the sums of each matrix by its hash.

    Raises:
        ValueError: the text is not a sketch.
    """
    try:
        packed = base64.b64decode(text, validate=True)
        (width,), records = _WIDTH.unpack_from(packed), _RECORD.iter_unpack(packed[_WIDTH.size :])
        sums = {tag: tuple(sums) for tag, *sums in records}
    except (ValueError, struct.error) as error:
        raise Refused(f"{text[:40]!r} is not a sketch of weights: {error}") from error
    if not sums or not all(map(isfinite, chain(*sums.values()))):
        raise Refused(f"{text[:40]!r} is not a sketch of weights: it has no finite sums")
    return width, sums


Distance = tuple[float | None, float, bool]
_distances: WeakKeyDictionary[nn.Module, tuple[object, Distance]] = WeakKeyDictionary()


def distance(lm: nn.Module, text: str, dtype: str | None) -> Distance | None:
    """How far the model's weights are from a sketch; None if its residual stream is of another
    width, which no SAE of the sketched model can read.

    That is the root mean square of the weights' differences, as a fraction of that of the weights,
    or None if the two models have none of the sketched matrices in common; up to which distance it
    can come from casting equal weights to another dtype; and whether the model carries an adapter
    (PEFT) that the sketched one did not.

    Computed again only after the sketched weights changed in place, or were cast or moved.

    Args:
        dtype: the sketched model's, such as "bfloat16"; None: unknown.
    """
    lm, (width, theirs) = unwrapped(lm), parse_sketch(text)
    if width != lm.config.get_text_config().hidden_size:
        return None
    matrices = _matrices(lm)
    common = {tag: matrices[tag][1] for tag in theirs if tag in matrices}
    adapters = {tag for tag, (name, _) in matrices.items() if "lora_" in name}
    # what changes with a weight: its place and, but for inference tensors, its version
    of_weights = (
        (w.data_ptr(), w.dtype, None if w.is_inference() else w._version) for w in common.values()
    )
    state, known = (text, dtype, bool(adapters), *of_weights), _distances.get(lm)
    if known is not None and known[0] == state:
        return known[1]
    cast: Any = getattr(torch, dtype or "", None)
    is_known = isinstance(cast, torch.dtype) and cast.is_floating_point
    cast, squares, tolerance = cast if is_known else lm.dtype, list[float](), _SAME
    for tag, weight in common.items():
        ours, size = _sums(weight, cast)
        difference = sum((a - b) ** 2 for a, b in zip(ours, theirs[tag], strict=True)) / _SUMS
        squares += [difference / size] if size else []
        if weight.dtype not in (cast, torch.float32, torch.float64):
            coarsest = max(torch.finfo(weight.dtype).eps, torch.finfo(cast).eps)
            tolerance = max(tolerance, coarsest / 2)  # half a unit in the last place
    relative = sqrt(sum(squares) / len(squares)) if squares else None
    if relative is not None and not isfinite(relative):
        relative = inf
    if not is_known:  # it may have been any
        tolerance = torch.finfo(torch.bfloat16).eps / 2
    elif relative is None:
        tolerance = _SAME
    new_adapter = bool(adapters) and adapters.isdisjoint(theirs)
    _distances[lm] = state, (relative, tolerance, new_adapter)
    return _distances[lm][1]


def _matrices(lm: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Name and weight of each matrix in floating point, by the hash of its name and width."""
    matrices, whole = {}, unwrapped(lm)
    reads_text = whole.main_input_name == "input_ids"  # elsewhere sites lie before the decoder
    for name, weight in (whole.get_decoder() if reads_text else whole).named_parameters():
        if weight.ndim > 1 and weight.is_floating_point() and not weight.is_meta:
            name = name.replace(".base_layer.", ".")  # where an adapter wraps it
            tag = blake2b(f"{name} {weight.shape[-1]}".encode(), digest_size=4).digest()
            matrices[int.from_bytes(tag, "little")] = name, weight
    return matrices


def _sums(weight: Tensor, dtype: torch.dtype) -> tuple[tuple[float, ...], float]:
    """Signed sums of a matrix's rows, and the sum of their squares."""
    rows = weight.detach().flatten(0, -2)[::_STEP][:_ROWS]
    values: Float64[np.ndarray, " n"] = rows.cpu().to(dtype).double().numpy().ravel()
    n = _SUMS * values.size
    # Signs from a hash, since random generators differ by version and device.
    bits = np.unpackbits(np.frombuffer(shake_256(b"hfsae").digest(n // 8 + 1), np.uint8))[:n]
    sums = (2 * bits.astype(np.int8) - 1).reshape(_SUMS, -1) @ values
    return tuple(sums.tolist()), float(values @ values)


Severity = Literal["error", "warning"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OTHER_MODEL = 0.3  # distance of weights: see above
_MAX_ADDED = 256  # tokens that a longer vocabulary may have more
_OF_ONE = ("model_revision", "model_dtype", "model_attention", "model_weights")
_WHICH = ("model_name", "model_weights")  # fields that tell one model from another


class Difference(NamedTuple):
    """One term on which a model differs from training."""

    field: str | None
    """the field of the SAE's config; None there leaves it out of the comparison"""
    sentence: str
    severity: Severity

    def __str__(self) -> str:
        return self.sentence

    @property
    def advice(self) -> str:
        """The sentence, and how to leave out this comparison."""
        if self.field is None:
            return self.sentence
        return f"{self.sentence}; if that is meant, set sae.config.{self.field} = None"


def terms(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, bos: str | None = None
) -> dict[str, str | None]:
    """Config fields for an SAE trained on this model's activations.

    Args:
        tokenizer: None, as `bos`, for a model that reads no text.
    """
    return {
        "model_dtype": str(lm.dtype).removeprefix("torch."),
        "model_attention": getattr(lm.config, "_attn_implementation", None),
        "model_weights": sketch(lm),
        "tokenizer_hash": None if tokenizer is None else tokenizer_hash(tokenizer),
        "bos": bos,
    }


def terms_together(
    lms: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, bos: str
) -> dict[str, Any]:
    """`terms` of several models, and their commits: one value where they share it, else by name."""
    each = {
        name: {"model_revision": getattr(lm.config, "_commit_hash", None)}
        | terms(lm, tokenizer, bos)
        for name, lm in lms.items()
    }
    by_field = {
        key: {name: of[key] for name, of in each.items()} for key in next(iter(each.values()))
    }
    return {
        key: next(iter(values.values())) if len({*values.values()}) == 1 else values
        for key, values in by_field.items()
    }


def check_model(
    lm: nn.Module,
    sae: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dropout: Severity = "error",
) -> None:
    """Compare a model and a tokenizer with those of an SAE's training, before the SAE is used.

    Cheap enough for every call. Each warning comes once for a model and an SAE.

    Args:
        tokenizer: the one that made the text's ids; None: it is not compared.
        dropout: whether active dropout is an "error" or only a "warning", as in blocks inside which
            a model may be trained.

    Raises:
        ValueError: a difference makes all latents meaningless, dropout is active, or the SAE reads
            several models.
    """
    lm = unwrapped(lm)
    if several := getattr(sae.config, "model_names", None):
        raise Refused(
            f"this SAE reads several language models at once ({', '.join(several)}), so it cannot "
            "run inside one of them; give an SAE of a single model, or capture the activations of "
            "each and encode sae.join of them, as its card shows"
        )
    unequal = differences(sae.config, lm, tokenizer)
    if active := _dropout(lm):
        unequal.append(Difference(None, active, dropout))
    for difference in unequal:
        if difference.severity == "error":
            subject = "" if difference.field is None else "this SAE is not for this model: "
            raise Refused(f"{subject}{difference.advice}")
        _warn_once(lm, sae, difference)


def check_models(
    lms: Mapping[str, nn.Module], sae: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    """`check_model` for an SAE over several models, which have a vocabulary in common.

    Raises:
        ValueError: a model is missing, is another than in training or has another's name, the
            tokenizer is another, or dropout is active.
    """
    of = [*(getattr(sae.config, "model_names", None) or ())]
    if missing := [name for name in of if name not in lms]:
        raise Refused(f"this SAE reads {', '.join(of)}, and there is no model {missing[0]!r}")
    in_training = dict[str, Any]()  # by model its terms, as in the config of an SAE of it alone
    names = getattr(sae.config, "model_names", None) or {}
    for name in of:
        values = {field: getattr(sae.config, field, None) for field in (*_OF_ONE, "tokenizer_hash")}
        own = {field: v.get(name) if isinstance(v, Mapping) else v for field, v in values.items()}
        in_training[name] = SimpleNamespace(site=sae.config.site, model_name=names.get(name), **own)
    for name, one in in_training.items():
        lm = unwrapped(lms[name])
        if active := _dropout(lm):
            raise Refused(f"{name}: {active}")
        unequal = differences(one, lm, tokenizer)
        is_another = any(d.field in _WHICH for d in unequal)
        for other, theirs in in_training.items() if is_another else ():
            if other != name and not any(d.field in _WHICH for d in differences(theirs, lm)):
                raise Refused(
                    f"the model given as {name} is the one that was {other} in training, so that "
                    "the SAE would read each in the place of another: give each its own name (lms "
                    "in recipe.yaml)"
                )
        for difference in unequal:
            if difference.severity == "error":
                raise Refused(f"{name}: this SAE is not for this model: {difference.advice}")
            field = None if difference.field == "model_name" else difference.field
            _warn_once(lm, sae, Difference(field, f"{name}: {difference}", "warning"))


def intend(lm: nn.Module, sae: Any, field: str) -> None:
    """Silence `check_model`'s warning of an intended difference, such as a copy in another dtype.

    Args:
        field: the field of the SAE's config whose difference is intended.
    """
    meant = (d for d in differences(sae.config, unwrapped(lm)) if d.field == field)
    _sentences(lm, sae).update(str(d) for d in meant if d.severity == "warning")


def differences(
    config: Any, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Difference]:
    """Terms on which `lm` and `tokenizer` differ from training; unknown terms count as equal."""
    commit = getattr(lm.config, "_commit_hash", None)
    if not _COMMIT.fullmatch(str(getattr(config, "model_revision", ""))) or not commit:
        commit = None
    name = getattr(lm, "name_or_path", "") or None
    if name is not None and (Path(name).expanduser().exists() or "/" not in name):
        name = None  # a folder's name does not identify a model
    plain = [
        ("the model", "model_name", name, "latents may mean something else"),
        ("its revision", "model_revision", commit, "its weights may differ"),
        (
            "its dtype",
            "model_dtype",
            str(lm.dtype).removeprefix("torch."),
            "activations differ a little, so latents near their thresholds may switch",
        ),
        (
            "its attention implementation",
            "model_attention",
            getattr(lm.config, "_attn_implementation", None),
            "some omit a part of the model (Gemma 2: logit soft-capping)",
        ),
    ]
    unequal = [
        Difference(field, _was(term, now, getattr(config, field), consequence), "warning")
        for term, field, now, consequence in plain
        if getattr(config, field, None) is not None
        and now is not None
        and str(getattr(config, field)) != str(now)
    ]
    others = [_of_weights(config, lm), _of_vocabulary(config, tokenizer)]
    return unequal + [difference for difference in others if difference is not None]


def _was(term: str, now: object, in_training: object, consequence: str) -> str:
    return f"{term} is {now}, and was {in_training} in training: {consequence}"


def _of_weights(config: Any, lm: PreTrainedModel) -> Difference | None:
    weights = getattr(config, "model_weights", None)
    found = weights and distance(lm, weights, getattr(config, "model_dtype", None))
    if not found:  # unknown, or of other widths, which are checked where they are used
        return None
    relative, tolerance, has_new_adapter = found
    if relative is None:
        sentence = "its weights have other names than in training, so they cannot be compared"
    elif relative >= _OTHER_MODEL:
        sentence = (
            f"its weights differ from those in training by {relative:.0%} of their size, so they "
            "are those of another model: load the SAE's own"
        )
        return Difference("model_weights", sentence, "error")
    elif relative > tolerance:
        sentence = (
            f"its weights differ from those in training by {relative:.2g} of their size, as in a "
            "fine-tuned or quantised copy"
        )
    elif has_new_adapter:
        sentence = "it carries an adapter that it did not have in training"
    else:
        return None
    return Difference("model_weights", f"{sentence}: latents may mean something else", "warning")


def _of_vocabulary(config: Any, tokenizer: Any) -> Difference | None:
    in_training = getattr(config, "tokenizer_hash", None)
    if tokenizer is None or in_training is None:
        return None
    now = tokenizer_hash(tokenizer)
    if now == in_training:
        return None
    # without the tokens that were added to its end, it may be the same
    vocabulary = tokenizer.get_vocab()
    added = set(tokenizer.get_added_vocab().values())
    last = sorted(vocabulary.values(), reverse=True)[:_MAX_ADDED]
    entries = [(i, json.dumps((t, i), ensure_ascii=False)) for t, i in sorted(vocabulary.items())]
    for n_added, id_ in enumerate(takewhile(added.__contains__, last), start=1):
        entries = [entry for entry in entries if entry[0] != id_]
        if _hash(f"[{', '.join(text for _, text in entries)}]") == in_training:
            return Difference(
                "tokenizer_hash",
                f"tokens were added to the vocabulary after training ({n_added}), and the others "
                "have the same ids: latents may mean something else where the new ones occur",
                "warning",
            )
    sentence = _was("the tokenizer's hash", now, in_training, "text has other ids")
    return Difference("tokenizer_hash", f"{sentence}; give the SAE's own tokenizer", "error")


_hashes: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary with its ids, special tokens included."""
    known = _hashes.get(tokenizer)
    if known is None or known[0] != len(tokenizer):  # tokens were added
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        known = _hashes[tokenizer] = len(tokenizer), _hash(vocabulary)
    return known[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dropout(lm: nn.Module) -> str | None:
    """The sentence on the first active dropout."""
    for name, module in lm.named_modules():
        if not module.training:
            continue
        named = {k: v for k, v in vars(module).items() if "dropout" in k or "layerdrop" in k}
        rates = [module.p] if isinstance(module, _DropoutNd) else named.values()
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return f"dropout is active in {name}, so activations are random: call lm.eval()"
    return None


def check_bos(
    lm: nn.Module, sae: Any, input_ids: Int[Tensor, "rows ctx"], mask: Tensor | None = None
) -> None:
    """Warn if texts begin without BOS, with BOS, or with two of them, unlike the training text.

    Args:
        mask: 0 on padding; without such a mask padding is what has its id.
    """
    bos, bos_id = getattr(sae.config, "bos", None), _bos_id(lm)
    if bos is None or bos_id is None or input_ids.shape[1] < 2:
        return
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape or bool(mask.all()):
        padding = {*_ids(lm, "pad_token_id")} - {bos_id}
        mask = ~torch.isin(input_ids, torch.tensor([*padding], device=input_ids.device))
    first = mask.to(input_ids.device).int().argmax(dim=1, keepdim=True)  # that is not padding
    is_bos = input_ids == bos_id
    begins = is_bos.gather(1, first)[:, 0]
    is_twice = begins & is_bos.gather(1, (first + 1).clamp(max=input_ids.shape[1] - 1))[:, 0]
    ends_texts = bos_id in _ids(lm, "eos_token_id")  # so that it may stand there as EOS
    has_bos = is_bos.any(dim=1) if bos == "document" else begins  # a row may begin within one
    if bos == "none":
        if begins.any() and not ends_texts:
            _warn_of_bos(lm, sae, f"begins with BOS (id {bos_id})", "leave out BOS")
    elif not has_bos.all():
        found = f"does not begin with BOS (id {bos_id})"
        _warn_of_bos(lm, sae, found, "prepend tokenizer.bos_token")
    elif is_twice.any() and not ends_texts:
        _warn_of_bos(lm, sae, f"begins with two BOS tokens (id {bos_id})", "leave out one")


def check_rows(
    lm: nn.Module,
    sae: Any,
    input_ids: Int[Tensor, "rows ctx"],
    document: Int[Tensor, "rows ctx"],
) -> None:
    """`check_bos` for rows packed from documents.

    Args:
        document: the number of each token's document.
    """
    bos_id = _bos_id(lm)
    if getattr(sae.config, "bos", None) != "document" or bos_id is None:
        return check_bos(lm, sae, input_ids)
    starts = document[:, 1:] != document[:, :-1]
    if (input_ids[:, 1:][starts] != bos_id).any():
        found = f"has documents that do not begin with BOS (id {bos_id})"
        _warn_of_bos(lm, sae, found, "pack it with bos='document'")


def _warn_of_bos(lm: nn.Module, sae: Any, found: str, remedy: str) -> None:
    sentence = f"the text {found}, unlike all training text: {remedy}"
    _warn_once(lm, sae, Difference("bos", sentence, "warning"))


def _bos_id(lm: nn.Module) -> int | None:
    """That of the tokenizer which `load_lm` loaded with the model, or else of the config."""
    tokenizer = known_tokenizer(lm)
    of_config = _ids(lm, "bos_token_id")
    of_tokenizer = getattr(tokenizer, "bos_token_id", None)
    return of_tokenizer if of_tokenizer is not None else next(iter(of_config), None)


def _ids(lm: nn.Module, name: str) -> list[int]:
    """Ids of a special token in the model's config."""
    lm = unwrapped(lm)
    ids = getattr(lm.config, name, None) or getattr(lm.config.get_text_config(), name, None)
    return [ids] if isinstance(ids, int) else list(ids or ())


_warned: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Any, set[str]]] = WeakKeyDictionary()


def _warn_once(lm: nn.Module, sae: Any, difference: Difference) -> None:
    """Warn, unless this model and SAE got the same warning before."""
    sentences = _sentences(lm, sae)
    if str(difference) not in sentences:
        sentences.add(str(difference))
        place = getattr(sae.config, "where", sae.config.site)
        warnings.warn(f"SAE at {place}: {difference.advice}", stacklevel=4)


def _sentences(lm: nn.Module, sae: Any) -> set[str]:
    """The warnings that were given about this model and SAE."""
    warned = _warned.setdefault(unwrapped(lm), WeakKeyDictionary())
    try:
        return warned.setdefault(sae, set())
    except TypeError:  # an SAE of a class without weak references
        return set()
