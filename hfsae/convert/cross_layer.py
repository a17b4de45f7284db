"""Cross-layer transcoders of two libraries, whose files hold one source, or half of one, each.

hfsae's SAE of one is a `jumprelu_clt` with `sites` and `target_sites` (hfsae/models/causal.py).

gemma_scope_2_layers: Gemma Scope 2's `clt/` and `crosscoder/`, `params_layer_{i}.safetensors` for
each source: w_enc [d, D], b_enc [D], threshold [D], w_dec [D, n, d] with rows to all n targets (0
to those before the source), b_dec [d]; optional affine_skip_connection [d, d], applied as x @ A at
the same layer. The files are numbered from 0 or by layer, and both are read. Some folders have no
config.json. Sites then follow from the published path:

| path | reads | writes |
| --- | --- | --- |
| `clt/width_262k_l0_...` | `layers.{i}.pre_feedforward_layernorm` | its `post_...` |
| `crosscoder/layer_7_13_17_22_width_...` | `layers.7`, `layers.13`, ... | the same |

Of another path they are called `unknown/0` and so on: assign `sae.config.sites`. hfsae writes a
config.json whose `hf_hook_point_in` and `hf_hook_point_out` are lists, one entry for each source.

circuit_tracer_clt: circuit-tracer's, two files for each layer, and `config.yaml`.
W_enc_{i}.safetensors: W_enc_{i} [D, d], b_enc_{i}, b_dec_{i}, optional threshold_{i} (z where
z > threshold, else relu(z)) and W_skip_{i} [d, d], applied as x @ W_skip; W_dec_{i}.safetensors:
W_dec_{i} [D, L - i, d], rows to layer i and later ones. The config has the hooks of all layers, as
for transcoders of one layer (circuit_tracer.py).
"""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..io.errors import Refused
from ..io.file_names import CONFIG
from ..io.files import opened_tensors, read_json, read_tensors
from ..models import SAE
from ..models.causal import Causal
from .build import Format, State, assembled, to_jumprelu
from .circuit_tracer import CONFIG as CONFIG_YAML
from .circuit_tracer import hooks_of, read_config, refuse_below_zero
from .circuit_tracer import site_of as site_of_hook
from .gemma_scope import config_of, hook_of, model_of, site_of
from .sites import hub_id

_FILE, _FILES = "params_layer_{}.safetensors", "params_layer_*.safetensors"
_NAMES = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
_SKIP = "affine_skip_connection"
_READ, _WRITTEN = "layers.{}.pre_feedforward_layernorm", "layers.{}.post_feedforward_layernorm"
_LARGEST_EARLIER = 1e-3  # of a file's rows' root mean square: what training leaves, not a use
_KIND = "cross_layer_transcoder"
_ENC, _DEC = "W_enc_{}.safetensors", "W_dec_{}.safetensors"


# A part is the tensors of one source: W_enc [w, D], b_enc [D], threshold [D], W_dec [D, T, w] with
# rows to its own target and to all later ones, b_dec [w] of its own target, and where there is one
# W_skip [w, w], applied as x @ W_skip from the source to its own target.
_PART = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec", "W_skip")


def joined(
    parts: Sequence[State],
    source: str,
    sites: list[str],
    target_sites: list[str] | None,
    model_name: str | None,
) -> SAE:
    """The SAE of these parts."""
    n, skips = len(parts), any("W_skip" in part for part in parts)
    width, size = parts[0]["W_enc"].shape
    state = {
        "W_enc": torch.cat([part["W_enc"] for part in parts], dim=1),
        **{n: torch.cat([part[n] for part in parts]) for n in ("b_enc", "threshold", "b_dec")},
        **{f"W_dec_{s}": part["W_dec"].flatten(1) for s, part in enumerate(parts)},
    }
    if skips:
        state["W_skip"] = torch.cat([part["W_skip"] for part in parts], dim=1)
    fields = {"d_in": n * width, "d_out": n * width, "d_sae": n * size, "model_name": model_name}
    fields |= {"sites": sites, "target_sites": target_sites, "skip_connection": skips}
    return assembled("jumprelu_clt", state, source, **fields)


def parts_of(sae: SAE, format_name: str) -> list[State]:
    """The parts of a cross-layer transcoder, in float32, all scales folded."""
    if not isinstance(sae, Causal):
        raise Refused(
            f"{format_name} files hold SAEs whose sources write at later targets too (jumprelu_clt,"
            f" batch_topk_clt), not a {type(sae).__name__}"
        )
    state = {n: t.detach().float().cpu() for n, t in to_jumprelu(sae).state_dict().items()}
    n, width = sae.n_sources, sae.width
    rows = [state[f"W_dec_{s}"].unflatten(1, (-1, width)) for s in range(n)]
    matrices = {name: state[name].chunk(n, dim=1) for name in ("W_enc", "W_skip") if name in state}
    by_source = {"W_dec": rows, **matrices}
    by_source |= {name: state[name].chunk(n) for name in ("b_enc", "threshold", "b_dec")}
    return [{name: of[s] for name, of in by_source.items()} for s in range(n)]


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


def load_gemma_scope(folder: Path, source: str) -> SAE:
    """Gemma Scope 2's cross-layer transcoder or weakly causal crosscoder in `folder`."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise Refused(f"{source}: architecture {config['architecture']!r} is not jump_relu")
    first = min(folder.glob(_FILES), key=lambda path: (len(path.name), path.name))
    with opened_tensors(first) as file:
        shape = file.get_slice("w_dec").get_shape()
    if len(shape) != 3:
        raise Refused(f"{source}: w_dec of {first.name} has shape {shape}, not [D, n, d]")
    n = shape[1]
    named = re.search(r"(?:^|/)layer((?:_\d+)+)_width", source)  # a crosscoder's; a clt has all
    layers = [int(layer) for layer in named[1].strip("_").split("_")] if named else []
    parts: list[State] = []
    by_number = [range(n)] + ([layers] if len(layers) == n else [])
    for s, i in enumerate(numbers_of(folder, _FILE, by_number)):
        path = folder / _FILE.format(i)
        tensors = read_tensors(path)[0]
        if missing := [name for name in _NAMES if name not in tensors]:
            raise Refused(f"{source}: {path.name} lacks {', '.join(missing)}")
        w_enc, b_enc, threshold, rows, b_dec = (tensors[name] for name in _NAMES)
        earlier, size = rows[:, :s].float(), rows.float().square().mean().sqrt()
        if s and (largest := earlier.abs().max()) > _LARGEST_EARLIER * size:
            raise Refused(
                f"{source}: {path.name} writes to layers before its own (w_dec[:, :{s}], up to "
                f"{float(largest):.2g}), which no source can in the order of a forward pass"
            )
        values = (w_enc, b_enc, threshold.clamp(min=0), rows[:, s:], b_dec)
        skip = {"W_skip": tensors[_SKIP]} if _SKIP in tensors else {}
        parts.append(dict(zip(_PART, values, strict=False)) | skip)
    hooks = [config.get(f"hf_hook_point_{end}") for end in ("in", "out")]
    if all(isinstance(hook, list) and len(hook) == n for hook in hooks):
        sites, targets = ([site_of(hook) or "unknown" for hook in end or []] for end in hooks)
    elif len(layers) == n:
        sites = targets = [f"layers.{layer}" for layer in layers]
    elif re.search(r"(?:^|/)clt/", f"{source}/"):
        sites, targets = ([site.format(i) for i in range(n)] for site in (_READ, _WRITTEN))
    else:
        sites = targets = [f"unknown/{i}" for i in range(n)]
    named = re.search(r"gemma-scope-2-(\w+)-(pt|it)\b", source)
    model_name = f"google/gemma-3-{named[1]}-{named[2]}" if named else None
    if config.get("model_name"):
        model_name = model_of(config["model_name"])
    return joined(parts, source, sites, None if targets == sites else targets, model_name)


def save_gemma_scope(sae: SAE, folder: Path) -> None:
    """Write a file for each source, numbered from 0, and config.json."""
    for s, part in enumerate(parts_of(sae, "Gemma Scope 2's clt and crosscoder")):
        rows = part["W_dec"]
        part["W_dec"] = torch.cat([torch.zeros(len(rows), s, rows.shape[-1]), rows], dim=1)
        names = zip(_PART, (*_NAMES, _SKIP), strict=True)
        tensors = {theirs: part[ours] for ours, theirs in names if ours in part}
        whole = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
        save_file(whole, folder / _FILE.format(s))
    read, written = (
        [hook_of(site) for site in sites.names] for sites in (sae.config.reads, sae.config.writes)
    )
    text = json.dumps(config_of(sae, read, written), indent=1) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


GEMMA_SCOPE = Format((_FILES,), load_gemma_scope, save_gemma_scope, optional=(CONFIG,))


def load_circuit_tracer(folder: Path, source: str) -> SAE:
    """circuit-tracer's cross-layer transcoder in `folder`."""
    config = read_config(folder / CONFIG_YAML, _KIND, source)
    n = max(len(list(folder.glob(name.format("*")))) for name in (_ENC, _DEC))
    for name in (_ENC, _DEC):
        numbers_of(folder, name, [range(n)])
    parts: list[State] = []
    for i in range(n):
        tensors: dict[str, Tensor] = {}
        for name in (_ENC, _DEC):
            tensors |= read_tensors(folder / name.format(i))[0]
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        W_enc, b_enc, W_dec, b_dec = (tensors[f"{name}_{i}"] for name in names)
        threshold = tensors.get(f"threshold_{i}", torch.zeros_like(b_enc))
        refuse_below_zero(threshold, f"{source}: layer {i}")
        values, skip = (W_enc.T, b_enc, threshold, W_dec, b_dec), tensors.get(f"W_skip_{i}")
        more = {} if skip is None else {"W_skip": skip}
        parts.append(dict(zip(_PART, values, strict=False)) | more)
    n_targets = parts[0]["W_dec"].shape[1]
    if n_targets != n:
        numbers_of(folder, _ENC, [range(n_targets)])
    model_name = hub_id(config.get("model_name"))
    sites, targets = (
        [
            site_of_hook(config.get(f"feature_{end}_hook"), i, model_name) or f"unknown/{done}/{i}"
            for i in range(n)
        ]
        for end, done in (("input", "read"), ("output", "written"))
    )
    return joined(parts, source, sites, targets, model_name)


def save_circuit_tracer(sae: SAE, folder: Path) -> None:
    """Write two files for each layer, and config.yaml; thresholds that are all 0 are left out.

    Raises:
        ValueError: the SAE is not one whose sources write at later targets too, has a skip
            connection, which circuit-tracer does not read from files, or is not of all layers
            from 0.
    """
    import yaml

    parts, config = parts_of(sae, "circuit-tracer's cross-layer"), sae.config
    if config.skip_connection:
        raise Refused(
            "circuit-tracer does not read a cross-layer transcoder's skip connection from its "
            "files; hfsae's own format holds it"
        )
    places = zip(config.reads.names, config.writes.names, strict=True)
    first, *others = [hooks_of(sites, i, config.model_name) for i, sites in enumerate(places)]
    if any(about != first for about in others) or any("blocks." in f"{h}" for h in first.values()):
        raise Refused(
            f"circuit-tracer's layers are all, from 0, and have the same hooks; got {config.where}"
        )
    about = {"model_kind": _KIND, "model_name": config.model_name}
    about |= {**first, "scan": config.model_name}
    is_relu = not any(part["threshold"].any() for part in parts)
    for i, part in enumerate(parts):
        read = {"W_enc": part["W_enc"].T, "b_enc": part["b_enc"], "b_dec": part["b_dec"]}
        if not is_relu:
            read["threshold"] = part["threshold"]
        plain = {f"{name}_{i}": tensor.contiguous() for name, tensor in read.items()}
        save_file({n: t.clone() for n, t in plain.items()}, folder / _ENC.format(i))
        save_file({f"W_dec_{i}": part["W_dec"].contiguous()}, folder / _DEC.format(i))
    shown = {name: value for name, value in about.items() if value is not None}
    (folder / CONFIG_YAML).write_text(yaml.safe_dump(shown, sort_keys=False), encoding="utf-8")


CIRCUIT_TRACER = Format(
    (_ENC.format("*"), _DEC.format("*"), CONFIG_YAML), load_circuit_tracer, save_circuit_tracer
)
