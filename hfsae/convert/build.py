"""What formats share: `Format`, an SAE built from tensors, and the checks of every writer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from ..io.errors import Refused
from ..models import SAE, BatchTopKSAE, GatedSAE, JumpReLUCLT, JumpReLUSAE, ReLUSAE
from ..models.base import fold_decoder_norms as fold_decoder_norms
from ..models.causal import Causal

State = dict[str, Tensor]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Format(NamedTuple):
    """A file format of SAEs."""

    files: tuple[str, ...]
    """patterns of the file names that mark a folder as this format; a|b: either"""
    load: Callable[..., SAE]
    save: Callable[[SAE, Path], None] | None
    """None: the format is only read"""
    config: str | None = None
    """the JSON file among these that describes the SAE, where paths leave that out"""
    about: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """site (or a hook, which names the layer), d_sae, k and target_l0 in that file's content"""
    optional: tuple[str, ...] = ()
    """further files that `load` reads where they are there"""
    is_file: bool = False
    """each file of the first pattern is an SAE, and the folder is not"""
    save_set: Callable[[Sequence[SAE], Path], None] | None = None
    """writes several SAEs, of which the format makes one folder"""


def build(model_type: str, state: State, where: str | Path, **fields: object) -> SAE:
    """The SAE of these tensors, in hfsae's names and layout; the tensors give the widths.

    Raises:
        ValueError: a tensor is missing, unexpected, of a wrong shape, or not finite.
    """
    for name in ("W_enc", "W_dec"):
        if name not in state or state[name].ndim != 2:
            raise Refused(f"{where}: {name} is missing, or is not a matrix")
    check_plain(state, where)
    d_in, d_sae = state["W_enc"].shape
    widths = {"d_in": d_in, "d_sae": d_sae, "d_out": state["W_dec"].shape[1]}
    if widths["d_out"] != d_in and not fields.get("target_site"):
        fields["target_site"] = "unknown"
    return assembled(model_type, state, where, **widths, **fields)


def assembled(model_type: str, state: State, where: str | Path, **fields: object) -> SAE:
    """The SAE of these tensors and these fields of its config, widths included.

    Raises:
        ValueError: a tensor is missing, unexpected, of a wrong shape, or not finite.
    """
    config = AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        sae: SAE = AutoModel.from_config(config)
    shapes = {name: tuple(t.shape) for name, t in sae.state_dict().items()}
    if set(shapes) != set(state):
        missing, extra = sorted(set(shapes) - set(state)), sorted(set(state) - set(shapes))
        raise Refused(f"{where}: missing tensors {missing}, unexpected tensors {extra}")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise Refused(
                f"{where}: {name} has shape {list(state[name].shape)}, but the other tensors ask "
                f"for {list(shape)}"
            )
        if state[name].dtype not in DTYPES:
            raise Refused(f"{where}: {name} is stored as {state[name].dtype}, not as float numbers")
        if not state[name].isfinite().all():
            raise Refused(f"{where}: {name} holds values that are NaN or infinite")
    dtypes = {n: torch.float32 for n in sae.float32_parameters}
    dtype = state["W_dec" if "W_dec" in state else "W_enc"].dtype
    state = {n: t.detach().to(dtypes.get(n, dtype)).contiguous() for n, t in state.items()}
    sae.load_state_dict(state, assign=True)
    return sae.eval().requires_grad_(True)


def check_plain(state: State, where: str | Path) -> None:
    """Check before any arithmetic, which would turn integers into weights, and broadcast tensors of
    wrong shapes.

    Raises:
        ValueError: a tensor is not floating-point, or W_enc, W_dec and b_enc differ in the number
            of latents.
    """
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES:
            raise Refused(
                f"{where}: {name} is stored as {tensor.dtype}; weights of an SAE are float32, "
                "bfloat16, float16 or float64"
            )
        if tensor.ndim > (2 if name.startswith("W_") else 1):
            raise Refused(f"{where}: {name} has shape {list(tensor.shape)}, too many dimensions")
    d_sae = state["W_enc"].shape[1:]
    for name in ("W_dec", "b_enc"):
        if name in state and state[name].shape[:1] != d_sae:
            raise Refused(
                f"{where}: {name} has shape {list(state[name].shape)}, but W_enc has "
                f"{list(d_sae)} latents"
            )


@torch.no_grad()
def to_jumprelu(sae: SAE) -> JumpReLUSAE:
    """The same function as a JumpReLU SAE, folded.

    A ReLU SAE has threshold 0, a BatchTopK SAE one threshold for all latents, and a Matryoshka SAE
    is used as the variant that it nests. For a Gated SAE the magnitude's encoder is taken, and the
    threshold is where the gate opens (arXiv:2404.16014, appendix E): max(0, b_mag - exp(r_mag)
    b_gate).

    Raises:
        ValueError: the SAE is TopK, whose threshold differs from token to token.
    """
    folded = sae.folded()
    state = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
    if type(folded) is JumpReLUSAE or isinstance(folded, JumpReLUCLT):
        return folded
    if isinstance(sae, GatedSAE):
        stretch = state.pop("r_mag").exp()
        gate, state["b_enc"] = state["b_enc"], state.pop("b_mag")
        state["W_enc"] = state["W_enc"] * stretch
        state["threshold"] = (state["b_enc"] - stretch * gate).float().clamp(min=0)
    elif isinstance(sae, ReLUSAE):
        state["threshold"] = torch.zeros_like(state["b_enc"], dtype=torch.float32)
    elif isinstance(sae, BatchTopKSAE):
        state["threshold"] = state["threshold"].expand(sae.config.d_sae).clone()
    elif not isinstance(sae, JumpReLUSAE):
        raise Refused(
            f"a {type(sae).__name__} cannot be written as a JumpReLU SAE: other latents would fire"
        )
    if isinstance(folded, Causal):
        names = ("d_in", "d_sae", "d_out", "target_sites", "target_scales")
        fields = {name: getattr(folded.config, name) for name in names}
        fields |= {n: v for n, v in shared_fields(folded).items() if n != "target_site"}
        jumprelu = assembled("jumprelu_clt", state, "converted", **fields)
    else:
        jumprelu = build("jumprelu_sae", state, "converted", **shared_fields(folded))
    assert isinstance(jumprelu, JumpReLUSAE)
    return jumprelu


def shared_fields(sae: SAE) -> dict[str, Any]:
    """Config fields of every variant: the SAE's places and models, and how it decodes."""
    names = ("site", "target_site", "model_name", "model_revision", "skip_connection", "token_norm")
    names += ("model_dtype", "model_attention", "model_weights", "tokenizer_hash", "bos")
    names += ("sites", "widths", "site_scales", "scales_folded", "row_norm", "model_names")
    return {name: getattr(sae.config, name) for name in names}


def exported(sae: SAE) -> State:
    """The folded SAE's tensors in float32: no scale, no decoder bias subtracted before encoding."""
    folded = sae.folded()
    return {n: t.detach().float().cpu().contiguous() for n, t in folded.state_dict().items()}


def refuse(sae: SAE, format_name: str, **unless: bool) -> None:
    """Raise ValueError for an SAE that a format cannot represent.

    Args:
        unless: skip_connection=True and so on, for what the format can represent.
    """
    config = sae.config
    problems = {
        "sites": config.sites is not None and f"several sites ({config.where})",
        "skip_connection": config.skip_connection and "a skip connection",
        "token_norm": config.token_norm != "none" and f"token_norm={config.token_norm!r}",
        "causal": config.is_causal and "latents that write at later sites (a cross-layer one)",
        "transcoder": config.is_transcoder and "a transcoder",
    }
    for name, problem in problems.items():
        if problem and not unless.get(name):
            raise Refused(f"{format_name} files cannot represent {problem}; hfsae's own format can")
