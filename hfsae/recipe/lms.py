"""The language model of a recipe, or several that read the same tokens, and their SAEs' sites."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..lm import model_and_path
from ..lm.places import SLASH
from ..machine.refused import Refused, closest


@dataclass
class LMArguments:
    """The language model, and the dtype to load it in."""

    name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id or folder of a causal language model, or a .gguf file."""
    kind: Literal["auto"] | None = None
    """"auto": `name` is a vision model that `AutoModel` loads; it reads the recipe's
    images. None: a causal language model."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """dtype of the LM's weights and of harvested activations."""
    source: Literal["auto", "hub", "packaged"] = "auto"
    """"auto": the Hub, or if it cannot be reached, the copy in a Python package."""
    attn_implementation: str | None = None
    """As in transformers; Gemma 2 needs "eager"."""

    def __post_init__(self) -> None:
        for name in ("name", "dtype", "source"):
            if getattr(self, name) is None:
                raise Refused(f"lm.{name} is null; leave it out for the usual one, or give text")
        if isinstance(self.name, Path):
            self.name = str(self.name)
        if not isinstance(self.name, str):
            raise Refused(
                f"the language model must be a Hub id or a folder, as text, got a "
                f"{type(self.name).__name__}"
            )


def spelt_lms(given: object) -> dict[str, dict[str, Any]]:
    """The section lms with all fields of each model.

    Raises:
        ValueError: one model, a name with a slash, an unknown field, or a value that it cannot
            have.
    """
    if not given:
        return {}
    if not isinstance(given, Mapping) or not all(
        isinstance(one, Mapping) for one in given.values()
    ):
        raise Refused(
            "lms must hold language models by name, such as {base: {name: ...}, chat: {name: "
            f"...}}}}, got {given!r}"
        )
    if len(given) == 1:
        raise Refused(f"lms has one model, {next(iter(given))}; give lm for a single one")
    for name in given:
        if not isinstance(name, str) or not name or SLASH in name:
            raise Refused(f"lms cannot have {name!r}: a name stands before the slash of sites")
    return {name: _spelt(name, one) for name, one in given.items()}


def _spelt(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(LMArguments) if field.name != "kind"]
    if unknown := [key for key in given if key not in known]:
        near = closest(str(unknown[0]), known) or f"; it has {', '.join(known)}"
        raise Refused(f"lms.{name} has no field {unknown[0]!r}{near}")
    if "name" not in given:
        raise Refused(f"lms.{name} has no name, the Hub id or folder of a language model")
    try:
        plain = asdict(LMArguments(**given))
    except Refused as error:
        raise Refused(f"lms.{name}: {error}") from error
    return {key: value for key, value in plain.items() if key != "kind"}


def check_lms(lms: Iterable[str], lm: LMArguments, saes: Iterable[Mapping[str, Any]]) -> None:
    """Check that sites name models, where there are several.

    Args:
        lms: their names; none: a recipe of one model.
        saes: the fields of each SAE's config.

    Raises:
        ValueError: a section lm beside lms, a model without a site, a site without a model's name
            or with an unknown one, or sites of two models in an SAE that reads the earlier ones of
            a single forward pass.
    """
    names = [*lms]
    if names and lm != LMArguments():
        raise Refused(f"the recipe has lm and lms ({', '.join(names)}); leave out one of them")
    for given in saes:
        sites = _sites(given)
        if not names:
            if with_slash := [site for site in sites if SLASH in site]:
                raise Refused(
                    f"site {with_slash[0]!r} names a model, but the recipe has no lms; add lms, or "
                    f"give {with_slash[0].partition(SLASH)[2]}"
                )
            continue
        of = dict.fromkeys(model_and_path(site, names)[0] for site in sites)
        if len(of) > 1 and _is_causal(given):
            raise Refused(
                f"a {given.get('model_type', 'cross-layer transcoder')} has sites of several "
                f"models ({', '.join(of)}), and it reads a single forward pass; give it sites of "
                "one, or another variant"
            )
    if names and (unread := _unread(names, saes)):
        raise Refused(
            f"no site is of {unread[0]}, one of lms ({', '.join(names)}); give one, as "
            f"{unread[0]}/layers.1, or leave the model out"
        )


def _unread(names: Sequence[str], saes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The models that have none of the sites, where there are any."""
    read = {site.partition(SLASH)[0] for given in saes for site in _sites(given)}
    return [name for name in names if read and name not in read]


def _sites(given: Mapping[str, Any]) -> list[str]:
    """The places of an SAE."""
    lists = [[given.get("site"), given.get("target_site")]]
    lists += [given.get(name) or [] for name in ("sites", "target_sites")]
    return [site for sites in lists for site in sites if isinstance(site, str)]


def _is_causal(given: Mapping[str, Any]) -> bool:
    """Whether it is a cross-layer transcoder, or a crosscoder of the same form."""
    return bool(given.get("target_sites")) or str(given.get("model_type", "")).endswith("_clt")
