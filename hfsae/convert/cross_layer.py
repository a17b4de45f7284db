"""Cross-layer transcoders in other libraries' files, which have one part, or two, for each source.

hfsae's SAE of it is a `jumprelu_clt` with `sites` and `target_sites` (hfsae/models/causal.py).
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.errors import Refused
from ..models import SAE
from ..models.causal import Causal
from .build import assembled, to_jumprelu

_MOST_LAYERS = 10_000
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Part(NamedTuple):
    """What one source reads and writes, and the bias of the target that is its own."""

    W_enc: Float[Tensor, "w D"]
    b_enc: Float[Tensor, " D"]
    threshold: Float[Tensor, " D"]
    W_dec: Float[Tensor, "D T w"]
    """rows to its own target and to all later ones, in their order"""
    b_dec: Float[Tensor, " w"]
    W_skip: Float[Tensor, "w w"] | None = None
    """applied as x @ W_skip, from the source to its own target"""


def joined(
    parts: Sequence[Part],
    source: str,
    sites: list[str],
    target_sites: list[str] | None,
    model_name: str | None,
) -> SAE:
    """The SAE of these parts.

    Raises:
        ValueError: a part has tensors of another shape than the first, or numbers that are not
            floating-point or not finite.
    """
    n, skips = len(parts), [part.W_skip is not None for part in parts]
    width, size = parts[0].W_enc.shape
    for s, part in enumerate(parts):
        shapes = [[width, size], [size], [size], [size, n - s, width], [width], [width, width]]
        for name, tensor, shape in zip(Part._fields, part, shapes, strict=True):
            what = f"{source}: {name} of source {s}"
            if tensor is not None and list(tensor.shape) != shape:
                raise Refused(
                    f"{what} has shape {list(tensor.shape)}, but source 0 asks for {shape}"
                )
            if tensor is not None and tensor.dtype not in _DTYPES:
                raise Refused(f"{what} is stored as {tensor.dtype}, not as floating-point numbers")
    if any(skips) and not all(skips):
        raise Refused(f"{source}: source {skips.index(False)} has no skip connection, others have")
    state = {
        "W_enc": torch.cat([part.W_enc for part in parts], dim=1),
        "b_enc": torch.cat([part.b_enc for part in parts]),
        "threshold": torch.cat([part.threshold for part in parts]),
        **{f"W_dec_{s}": part.W_dec.flatten(1) for s, part in enumerate(parts)},
        "b_dec": torch.cat([part.b_dec for part in parts]),
    }
    if all(skips):
        skipped = [part.W_skip for part in parts if part.W_skip is not None]
        state["W_skip"] = torch.cat(skipped, dim=1)
    fields = {"d_in": n * width, "d_out": n * width, "d_sae": n * size, "model_name": model_name}
    fields |= {"sites": sites, "target_sites": target_sites, "skip_connection": all(skips)}
    return assembled("jumprelu_clt", state, source, **fields)


def parts_of(sae: SAE, format_name: str) -> list[Part]:
    """The parts of a cross-layer transcoder, in float32, all scales folded.

    Raises:
        ValueError: it is another SAE.
    """
    if not isinstance(sae, Causal):
        raise Refused(
            f"{format_name} files hold SAEs whose sources write at later targets too (jumprelu_clt,"
            f" batch_topk_clt), not a {type(sae).__name__}"
        )
    state = {n: t.detach().float().cpu() for n, t in to_jumprelu(sae).state_dict().items()}
    n, width = sae.n_sources, sae.width
    rows = [state[f"W_dec_{s}"].unflatten(1, (-1, width)) for s in range(n)]
    columns = (state["W_enc"].chunk(n, dim=1), state["b_enc"].chunk(n), state["threshold"].chunk(n))
    skips = state["W_skip"].chunk(n, dim=1) if "W_skip" in state else [None] * n
    return list(map(Part, *columns, rows, state["b_dec"].chunk(n), skips))


def numbers_of(folder: Path, pattern: str, expected: Sequence[Collection[int]]) -> list[int]:
    """The numbers in the names of a folder's files, all of which are there.

    Args:
        pattern: a file's name with {} for its number.
        expected: the numbers that may be there: the first that holds all of those that are.

    Raises:
        ValueError: a file is missing; the sentence names it.
    """
    names = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    found = [match for path in folder.iterdir() if (match := names.fullmatch(path.name))]
    numbers = {int(match[1]) for match in found}
    if (most := max(map(len, expected))) > _MOST_LAYERS:
        raise Refused(f"{folder}: its files write to {most:,} layers, more than any model has")
    whole = next((each for each in expected if numbers <= {*each}), expected[0])
    if missing := sorted({*whole} - numbers):
        raise Refused(
            f"{folder} has no {pattern.format(missing[0])}: a layer is missing of the {len(whole)} "
            "that its files write to; fetch it too"
        )
    if more := sorted(numbers - {*whole}):
        raise Refused(
            f"{folder} has {pattern.format(more[0])}, but its files write to {len(whole)} layers; "
            "move it elsewhere"
        )
    return sorted(numbers)
