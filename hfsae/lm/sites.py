"""Sites, which are places in a language model: what their names mean, and which an SAE has.

A site is written `<module path>[:in|:out]`: a module as `named_modules()` of `lm.base_model`
spells it, and its first input or its (first) output, which is the default. The longer path that
`named_modules()` of `lm` itself gives ('model.layers.12') is accepted too. In a 26-layer Gemma 2:

    layers.12                              residual stream after block 12 = hidden_states[13]
    layers.25                              after the last block; hidden_states[-1] is *not* it, as
                                           the final norm has been applied to that one
    layers.12.self_attn.o_proj:in          the heads' outputs, concatenated, before W_O
    layers.12.pre_feedforward_layernorm    what the MLP reads
    layers.12.post_feedforward_layernorm   what the MLP adds to the residual stream
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..io.errors import Refused, closest
from .places import GRAMMAR, Site, shown

_MISSPELT = 0.9  # similarity of two paths from which on one is the other, misspelt


@runtime_checkable
class Autoencoder(Protocol):
    """The least that an SAE must have to reconstruct, so that others' own classes work, too.

    Of its config `site` alone is needed. Where an SAE only encodes, or only its place matters,
    functions ask for `encode` and `config`, or for `config`.
    """

    @property
    def config(self) -> Any:
        """It names the SAE's site."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Latents [*batch, d_sae] of raw activations [*batch, d_in]."""
        ...

    def decode(self, latents: Tensor, x: Tensor, /) -> Tensor:
        """Raw activations [*batch, d_out] of latents, and of the input that they are of."""
        ...


class Sites(tuple[tuple[str, int], ...]):
    """The sites that an SAE reads, or those that it writes, each with the width of activations
    there. Of several sites the SAE has the activations side by side, in this order."""

    @classmethod
    def one(cls, site: str | None, width: int) -> "Sites":
        """A single site.

        Raises:
            ValueError: the site is None.
        """
        if site is None:
            raise Refused(
                "this SAE names no site; give --site on the command line, or set "
                "sae.config.site, for example to 'layers.12'"
            )
        return cls([(site, width)])

    @property
    def names(self) -> tuple[str, ...]:
        """The sites without their widths."""
        return tuple(site for site, _ in self)

    @property
    def only_site(self) -> str:
        """The single site.

        Raises:
            ValueError: there are several.
        """
        if len(self) > 1:
            raise Refused(
                f"this SAE has {len(self)} sites ({self}), but this function needs a "
                "single site; give an SAE with one site"
            )
        return self.names[0]

    def joined(self, activations: Mapping[str, Tensor]) -> Float[Tensor, "*batch d"]:
        """Activations at these sites, side by side; of a single site, as they are."""
        parts = [activations[site] for site in self.names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def split(self, x: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """The columns of x that belong to each site: the inverse of `joined`."""
        parts = [x] if len(self) == 1 else x.split([width for _, width in self], dim=-1)
        return dict(zip(self.names, parts, strict=True))

    def __str__(self) -> str:
        return ", ".join(self.names)


def reads_of(config: Any) -> Sites:
    """The sites that an SAE reads.

    Args:
        config: anything with `reads`, or else with `site`, and a width of 0 if it has no `d_in`.

    Raises:
        ValueError: no site is named.
    """
    return getattr(config, "reads", None) or Sites.one(config.site, getattr(config, "d_in", 0))


def writes_of(config: Any) -> Sites:
    """The sites that an SAE reconstructs.

    Args:
        config: anything with `writes`, or else with `site`; with a `target_site` of its own, it is
            a transcoder's. Its width is 0 if it has no `d_out`.

    Raises:
        ValueError: no site is named.
    """
    if own := getattr(config, "writes", None):
        return own
    target = config.site and (getattr(config, "target_site", None) or config.site)
    return Sites.one(target, getattr(config, "d_out", 0))


def widths_of(*configs: Any) -> dict[str, int]:
    """By site the width of activations, wherever one of these SAEs reads or writes."""
    sides = (side(config) for config in configs for side in (reads_of, writes_of))
    return {site: width for side in sides for site, width in side}


def unwrapped(lm: nn.Module) -> PreTrainedModel:
    """The transformers model inside what `torch.compile` and PEFT wrap around it.

    Raises:
        ValueError: `lm` is not a model of transformers.
    """
    while not isinstance(lm, PreTrainedModel):
        if isinstance(lm, nn.Module) and "_orig_mod" in lm._modules:
            lm = cast(nn.Module, lm._modules["_orig_mod"])
        elif hasattr(lm, "get_base_model"):
            lm = cast(Any, lm).get_base_model()
        else:
            raise Refused(
                f"lm is {shown(lm)}; pass a language model of transformers, such as "
                "hfsae.load_lm(name).lm"
            )
    return lm


def check_arguments(call: str, lm: object, *saes: object) -> None:
    """Check that `lm` is a language model and `sae` an SAE, and not the other way round.

    Args:
        call: name of the function under `hfsae`.

    Raises:
        ValueError: one sentence that shows the right call.
    """
    first = next(iter(lm.values()), None) if isinstance(lm, Mapping) else lm
    if hasattr(first, "encode") and hasattr(first, "decode") and hasattr(first, "config"):
        raise Refused(
            f"hfsae.{call} got an SAE as its first argument; the language model comes first: "
            f"hfsae.{call}(lm, sae, ...)"
        )
    unwrapped(cast(Any, lm))
    for sae in saes:
        if not (hasattr(sae, "encode") and hasattr(sae, "config")):
            raise Refused(f"sae is {shown(sae)}; pass an SAE, such as hfsae.load(folder)")


def named(sites: str | Iterable[str]) -> list[str]:
    """One site or several, each once.

    Raises:
        ValueError: one is not text, or of another form.
    """
    is_one = isinstance(sites, str) or not isinstance(sites, Iterable)
    several: list[Any] = list(dict.fromkeys([sites] if is_one else sites))
    for site in several:
        Site.parse(site)
    return several


def find_module(lm: nn.Module, site: str) -> nn.Module:
    """The module that a site names, looked up under `lm.base_model`, under `lm` itself and, where a
    multimodal model nests its language model deeper, under that.

    Raises:
        ValueError: no such module (with the nearest ones), or a layer number past the last layer.
    """
    path, whole = Site.parse(site).module, unwrapped(lm)
    paths = (path, path.removeprefix(f"{whole.base_model_prefix}."))
    for root in (whole.base_model, lm, whole.get_decoder()):
        modules = dict(root.named_modules())
        for spelling in paths:
            if spelling in modules:
                return modules[spelling]
    path, name = paths[1], type(whole).__name__
    stacks = {p: len(m) for p, m in modules.items() if isinstance(m, nn.ModuleList)}
    for stack, n in stacks.items():
        index, dot, inside = path.removeprefix(f"{stack}.").partition(".")
        if path.startswith(f"{stack}.") and index.isdigit() and int(index) >= n:
            last = f"{stack}.{n - 1}"
            nearest = f"{last}{dot}{inside}" if f"{last}{dot}{inside}" in modules else last
            raise Refused(
                f"site {path!r} is past the end: {name} has {n} {stack}, 0 to {n - 1}; the "
                f"nearest is {nearest!r}"
            )
    # Name the modules of the block, or of its part, that the path begins with: spelling alone would
    # mislead there, as another model's name for what the MLP adds is most like the name of what
    # this one's MLP reads. Elsewhere name those that are spelt most like it.
    holder = path.rpartition(".")[0]
    while holder and holder not in modules:
        holder = holder.rpartition(".")[0]
    inside = [f"{holder}.{child}" for child, _ in modules[holder].named_children()]
    if not holder or not inside or isinstance(modules[holder], nn.ModuleList):
        near = closest(path, [*modules], cutoff=0.0)  # however far: no list of all would be read
    else:
        below = [module for module in modules if module.startswith(f"{holder}.")]
        near = closest(path, below, cutoff=_MISSPELT)
        near = near or f"; {holder!r} holds {', '.join(map(repr, inside))}"
    layers = [f"{stack}.0 to {stack}.{n - 1}" for stack, n in stacks.items() if "." not in stack]
    raise Refused(
        f"site {path!r} is not in {name}{near}; its layers: {', '.join(layers)}; a site is "
        f"{GRAMMAR}"
    )


def blocks_below(lm: nn.Module, site: str) -> list[nn.Module]:
    """Decoder blocks that end before `site` begins; none if it is not inside a list of blocks."""
    path = Site.parse(site).module.split(".")
    for depth in range(1, len(path)):
        parent = find_module(lm, ".".join(path[:depth]))
        if isinstance(parent, nn.ModuleList):
            return list(parent[: int(path[depth])])
    return []
