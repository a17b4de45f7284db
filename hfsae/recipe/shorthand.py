"""Many places in few words: `layers.{10..15}`, or `layers.{10..15}.mlp:in -> layers.{}.mlp`.

`{10..15}` is each number from 10 to 15, `{10,13,16}` each that is listed, and `{}` the same one
again; `a -> b` reads at a and reconstructs b. In `sae.sites`, a list or a text with commas, arrows
fill `sae.target_sites`, for cross-layer transcoders.
"""

import re
from collections.abc import Mapping
from typing import Any

from ..lm import Site
from ..machine.refused import Refused

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LISTED = re.compile(r"\{(\w+(?:,\w+)+)\}")
_ARROW = "->"
_BETWEEN = re.compile(r",(?![^{}]*\})")  # commas that are not within braces
_MOST = 1000


def is_short(site: object) -> bool:
    """Whether a site is written for several."""
    return isinstance(site, str) and ("{" in site or _ARROW in site)


def places_in(text: str) -> list[tuple[str, str | None]]:
    """Each place that a text names, with its target or None.

    Raises:
        ValueError: braces of another form.
    """
    return [_place(text.replace("{}", "{0}"), value) for value in _values(text)]


def _values(text: str) -> list[str]:
    ranges, lists = _RANGE.findall(text), _LISTED.findall(text)
    rest = _LISTED.sub("", _RANGE.sub("", text)).replace("{}", "")
    if len(ranges) + len(lists) > 1 or "{" in rest or (not ranges and not lists and "{}" in text):
        raise Refused(
            f"site {text!r} has braces of another form; use {{10..15}} or {{10,13,16}} once, and "
            "{} for the same number again"
        )
    if lists:
        return lists[0].split(",")
    if not ranges:
        return [""]
    first, last = map(int, ranges[0])
    if not first <= last < first + _MOST:
        raise Refused(f"site {text!r} counts from {first} to {last}; give the smaller number first")
    return [str(number) for number in range(first, last + 1)]


def _place(text: str, value: str) -> tuple[str, str | None]:
    spelt = _LISTED.sub(value, _RANGE.sub(value, text)).replace("{0}", value)
    site, arrow, target = (part.strip() for part in spelt.partition(_ARROW))
    if arrow and not (site and target):
        raise Refused(f"site {text!r} lacks a side of its arrow; write `a -> b`")
    return site, target or None


def spelt_sites(sae: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an SAE with each place of its `sites` and `target_sites` on its own.

    Raises:
        ValueError: no list of texts, braces of another form, or an arrow that does not fit.
    """
    fields = dict(sae)
    for name in ("sites", "target_sites"):
        if not fields.get(name):
            continue
        places = _listed_places(name, fields[name])
        targets = [target for _, target in places if target]
        fields[name] = [site for site, _ in places]
        if not targets:
            continue
        if name == "target_sites" or sae.get("target_sites"):
            raise Refused(
                f"sae.{name} has an arrow ({_ARROW}), and sae.target_sites names targets too; "
                "leave out one"
            )
        if len(targets) != len(places):
            raise Refused("sae.sites has places with an arrow and places without; write all alike")
        fields["target_sites"] = targets
    return fields


def _listed_places(name: str, given: object) -> list[tuple[str, str | None]]:
    texts = _BETWEEN.split(given) if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise Refused(f"sae.{name} must be a list of places such as 'layers.12', got {given!r}")
    each = (places_in(t) if is_short(t) else [(t, None)] for t in map(str.strip, texts))
    return [place for places in each for place in places]


def spelt(
    sae: Mapping[str, Any], saes: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The sections sae and saes with places in full: a site for several makes an SAE at each.

    Raises:
        ValueError: braces of another form, or several SAEs are named already.
    """
    sae = spelt_sites(sae)
    saes = {name: spelt_sites(own) for name, own in saes.items()}
    if not is_short(site := sae.get("site")):
        return sae, saes
    places = places_in(str(site))
    if saes or sae.get("target_site"):
        other = "saes names SAEs" if saes else "there is a target_site"
        raise Refused(
            f"sae.site {site!r} makes an SAE at each place, and {other} too; leave out one"
        )
    if len(places) == 1:
        return {**sae, "site": places[0][0], "target_site": places[0][1]}, saes
    del sae["site"]
    each = {Site.parse(at).module: {"site": at, "target_site": to} for at, to in places}
    return sae, {name: {k: v for k, v in own.items() if v} for name, own in each.items()}
