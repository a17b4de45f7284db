"""A fingerprint: activations with the latents they must give, kept beside the weights.

`fingerprint.safetensors` holds raw activations x [n, d_in], the firing latents of each (indices and
values), and reconstructions; its metadata holds the SHA-256 of every weight, of the config and of
the file of weights. With it two questions can be answered: are the weights those that were saved,
to the bit? And do this machine, dtype and version compute the same latents from them?

Results, such as the largest activations of latents, are kept with `decoder_hash`, which shows to
which SAE they belong: one in memory has no file whose hash could be compared, and may be in another
dtype, or not folded, where its latents are the same.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..io.checksums import stamp
from ..io.errors import Damaged, Refused, one_line
from ..io.file_names import FINGERPRINT
from ..io.files import json_value, opened_tensors, read_tensors, write_tensors
from .config import SAEConfig

N_TOKENS = 64
DECODER = "decoder_sha256"
"""The hash's key in features/meta.json."""
_MOST_ENTRIES = 2**16  # entries; those of the largest decoder are hashed in milliseconds
_OF_DECODER = "_of_decoder"  # attribute of a tensor
_KEY = "fingerprint"
"""Key of the hash of the recorded tensors."""
_TENSORS = ("x", "counts", "indices", "values", "recon")
_FULL = (torch.float32, torch.float64)
_FLOATS, _INTEGERS = (*_FULL, torch.bfloat16, torch.float16), (torch.int64,)
_KINDS = {"x": (_FLOATS, 2), "recon": (_FLOATS, 2), "values": (_FLOATS, 1)}
_KINDS |= {"counts": (_INTEGERS, 1), "indices": (_INTEGERS, 1)}
# Tolerances for another order of summation and for lower precision: differences of values, as a
# fraction of the largest; latents so near their threshold that they cross it, as a fraction of
# those that fire.
_TOLERANCE, _TOLERANCE_LOW = 1e-4, 0.05
_FLIPS, _FLIPS_LOW = 0.01, 0.1
# Config keys that do not affect the function, or change with every version.
_NOT_THE_FUNCTION = {"_name_or_path", "auto_map", "architectures", "dtype", "transformers_version"}
_NOT_THE_FUNCTION |= {"model_weights"}  # may be set to None to go on with another model


class Verification(NamedTuple):
    """The result of `verify`: the SAE on this machine compared with its fingerprint."""

    weights_are_intact: bool | None
    """None where weights were cast, so that their bits cannot be compared"""
    damaged: list[str]
    """parts that differ from what was saved: names of weights, "config", "fingerprint" """
    latents_difference: float
    """largest absolute difference, as a fraction of the largest latent"""
    recon_difference: float
    flipped: float
    """latents that fire only here or only in the fingerprint, as a fraction of those that fire"""
    tolerance: float
    flips_tolerance: float
    dtype: torch.dtype
    n_tokens: int

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged and all differences are within tolerance."""
        close = max(self.latents_difference, self.recon_difference) <= self.tolerance
        return not self.damaged and close and self.flipped <= self.flips_tolerance

    def __str__(self) -> str:
        numbers = (
            f"{self.n_tokens} tokens in {str(self.dtype).removeprefix('torch.')}: latents differ "
            f"by {self.latents_difference:.1e} of the largest, reconstructions by "
            f"{self.recon_difference:.1e} (tolerance {self.tolerance:.0e}), {self.flipped:.1%} "
            f"fire on one side only (tolerance {self.flips_tolerance:.0%})"
        )
        if self.damaged:
            return f"DAMAGED: {', '.join(self.damaged)} differ from what was saved; {numbers}"
        if not self.ok:
            return f"NOT REPRODUCED; {numbers}"
        bits = "weights are intact to the bit" if self.weights_are_intact else "weights were cast"
        return f"reproduced; {bits}; {numbers}"


@torch.no_grad()
def write_fingerprint(sae: Any, x: Float[Tensor, "n d_in"], folder: str | Path) -> Path:
    """Write `fingerprint.safetensors` for the SAE saved in `folder`, from raw activations x."""
    x = x.to(sae.device, sae.dtype)
    latents, recon = _run(sae, x)
    where = latents != 0
    tensors = {
        "x": x.cpu().contiguous(),
        "counts": where.sum(-1).cpu(),
        "indices": where.nonzero()[:, 1].cpu(),
        "values": latents[where].cpu(),
        "recon": recon.cpu().contiguous(),
    }
    hashes = {name: _hash(t) for name, t in sae.state_dict().items()}
    hashes |= {"config": _hash_config(sae.config), _KEY: _hash_all(tensors)}
    path = Path(folder) / FINGERPRINT
    write_tensors(path, tensors, {"sha256": json.dumps(hashes), **stamp(path.parent)})
    return path


def renamed(path: Path, config: Any, names: Mapping[str, Any]) -> bytes:
    """The content of the fingerprint at `path`, adapted to a config with other `names`, such as
    another `model_name`.

    Args:
        config: the SAE's present config; the hash of one made with another is left unchanged.
    """
    with opened_tensors(path) as file:
        metadata = file.metadata() or {}
    tensors, hashes = _read(path)
    if hashes.get("config") == _hash_config(config):
        other = config.from_dict({**config.to_dict(), **names})
        metadata |= {"sha256": json.dumps({**hashes, "config": _hash_config(other)})}
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / FINGERPRINT
        write_tensors(copy, tensors, metadata)
        return copy.read_bytes()


@torch.no_grad()
def verify(sae: Any, path: Path) -> Verification:
    """Compare `sae`, on this machine and in its present dtype, with a fingerprint.

    Raises:
        ValueError: the fingerprint is damaged, or belongs to an SAE with other widths.
    """
    tensors, hashes = _read(path)
    damaged = [] if _hash_all(tensors) == hashes.get(_KEY) else [_KEY]
    if _hash_config(sae.config) != hashes.get("config"):
        damaged.append("config")
    state = sae.state_dict()
    was_cast = tensors["x"].dtype != sae.dtype
    if not was_cast:
        damaged += [name for name, tensor in state.items() if _hash(tensor) != hashes.get(name)]
    x = tensors["x"]
    if x.shape[-1] != sae.config.d_in or tensors["recon"].shape[-1] != sae.config.d_out:
        raise Refused(f"{path} belongs to another SAE: its activations are {x.shape[-1]} wide")
    latents, recon = _run(sae, x.to(sae.device, sae.dtype))
    counts, indices, d_sae = tensors["counts"], tensors["indices"], sae.config.d_sae
    expected = torch.zeros(len(counts), d_sae)
    # Other indices are damage, which the hash has already shown.
    if not len(indices) or 0 <= int(indices.min()) <= int(indices.max()) < d_sae:
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        expected[rows, indices] = tensors["values"].float()
    flips = (latents != 0) != (expected != 0)
    same, expected_recon = ~flips.any(-1), tensors["recon"].float()
    is_full = sae.dtype in _FULL and x.dtype in _FULL
    return Verification(
        weights_are_intact=None if was_cast else not damaged,
        damaged=damaged,
        latents_difference=_difference(latents[~flips], expected[~flips]),
        recon_difference=_difference(recon[same], expected_recon[same]),
        flipped=float(flips.sum() / tensors["counts"].sum().clamp(min=1)),
        tolerance=_TOLERANCE if is_full else _TOLERANCE_LOW,
        flips_tolerance=_FLIPS if is_full else _FLIPS_LOW,
        dtype=sae.dtype,
        n_tokens=len(x),
    )


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, as a fraction of the largest value; infinite for a NaN."""
    if not expected.numel():
        return 0.0
    largest = expected.abs().max().clamp(min=1e-12)
    return float(((actual - expected).abs() / largest).nan_to_num(float("inf")).max())


def _run(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    latents = sae.encode(x)
    return latents.float().cpu(), sae.decode(latents, x).float().cpu()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors, metadata = read_tensors(path)
        hashes = json_value(metadata.get("sha256", "null"))
        if {*tensors} != {*_TENSORS} or not isinstance(hashes, dict):
            raise Refused(f"it holds {sorted(tensors)}, or no hashes")
        for name, tensor in tensors.items():
            numbers, rank = _KINDS[name]
            if tensor.dtype not in numbers or tensor.ndim != rank or not tensor.isfinite().all():
                raise Refused(f"{name} is {tensor.dtype} {[*tensor.shape]}, or not finite")
        x, counts, indices, values, recon = (tensors[name] for name in _TENSORS)
        are_rows = len(x) == len(counts) == len(recon) > 0 and int(counts.min()) >= 0
        if not are_rows or not int(counts.sum()) == len(indices) == len(values):
            raise Refused("its counts are not those of its activations and latents")
    except (OSError, ValueError) as error:
        raise Damaged(
            f"{path} is damaged, or is not a fingerprint: {one_line(error)}; "
            "`hfsae.write_fingerprint` makes one"
        ) from error
    return tensors, hashes


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    head = f"{plain.dtype} {list(plain.shape)} ".encode()
    return hashlib.sha256(head + plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def state_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 of all weights, whatever format they were read from."""
    each = "".join(f"{name} {_hash(tensor)} " for name, tensor in sorted(weights.items()))
    return hashlib.sha256(each.encode()).hexdigest()


def _hash_all(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256("".join(_hash(tensors[n]) for n in _TENSORS).encode()).hexdigest()


def _hash_config(config: SAEConfig) -> str:
    """Hash of the fields that differ from their defaults: new fields do not change it."""
    values = config.to_dict()
    plain = {
        field.name: values[field.name]
        for field in fields(config)
        if field.name in values
        and field.name not in _NOT_THE_FUNCTION
        and values[field.name] != field.default
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def decoder_hash(W_dec: Float[Tensor, "d_sae d_out"]) -> str | None:
    """Hash of up to 65,536 evenly spaced entries of a decoder, rounded to bfloat16: the same for an
    SAE loaded in float32 and in bfloat16, folded or not. None in float16, which rounds otherwise.
    """
    if W_dec.dtype == torch.float16:
        return None
    entries = W_dec.detach().reshape(-1)
    entries = entries[:: -(-len(entries) // _MOST_ENTRIES)].to(torch.bfloat16)
    return state_hash({"W_dec": entries}) if len(entries) else None


def marked(values: Tensor, decoder_sha256: str | None) -> Tensor:
    """The same tensor, marked as belonging to the SAE with this decoder. Results of operations on
    it lose the mark."""
    setattr(values, _OF_DECODER, decoder_sha256)
    return values


def refuse_values_of_others(values: object, W_dec: Tensor, name: str) -> None:
    """Refuse a tensor that is marked as another SAE's; one without a mark is accepted.

    Raises:
        ValueError: it belongs to another SAE than the one with this decoder.
    """
    theirs = getattr(values, _OF_DECODER, None)
    ours = None if theirs is None else decoder_hash(W_dec)
    if ours is not None and theirs != ours:
        raise Refused(
            f"{name} is another SAE's: its decoder differs from this one's; pass this SAE's, such "
            "as FeatureStore.load(folder).max_activations of its own folder"
        )
