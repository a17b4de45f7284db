"""A sketch of a language model's weights: with it alone, another model's can be compared.

It holds a few sums, with fixed random signs, of the weights in some rows of some matrices. The
difference of two such sums has on average the size of the difference of those rows (Johnson and
Lindenstrauss 1984), and every number of the rows counts. Rows are cast to the model's dtype first:
the sketch of a model in bfloat16 is that of the same model in float32, cast by the comparison.
"""

import base64
import struct
from functools import lru_cache
from hashlib import blake2b, shake_256
from itertools import chain
from math import inf, isfinite, sqrt
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float64, Int8
from torch import Tensor, nn

from ..io.errors import Refused
from .sites import unwrapped

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


def parse(text: str) -> tuple[int, _Sums]:
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
    lm, (width, theirs) = unwrapped(lm), parse(text)
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
            matrices[_tag(name, weight.shape[-1])] = name, weight
    return matrices


@lru_cache(maxsize=2**14)
def _tag(name: str, width: int) -> int:
    return int.from_bytes(blake2b(f"{name} {width}".encode(), digest_size=4).digest(), "little")


def _sums(weight: Tensor, dtype: torch.dtype) -> tuple[tuple[float, ...], float]:
    """Signed sums of a matrix's rows, and the sum of their squares."""
    rows = weight.detach().flatten(0, -2)[::_STEP][:_ROWS]
    values: Float64[np.ndarray, " n"] = rows.cpu().to(dtype).double().numpy().ravel()
    sums = _signs(values.size) @ values
    return tuple(sums.tolist()), float(values @ values)


@lru_cache(maxsize=8)
def _signs(n: int) -> Int8[np.ndarray, "sums n"]:
    """Fixed random signs: from a hash, since random generators differ by version and device."""
    digest = shake_256(b"hfsae").digest(_SUMS * n // 8 + 1)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[: _SUMS * n]
    return (2 * bits.astype(np.int8) - 1).reshape(_SUMS, n)
