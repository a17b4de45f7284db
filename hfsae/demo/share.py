"""A picture to share of a text beside its steered version: an SVG, share.svg, of which the browser
makes a PNG (page.js).
"""

import math
import re
from dataclasses import replace
from urllib.parse import urlsplit

from .address import Steer, to_query
from .parts import cited, data_link, document, html
from .rows import Json, as_rows
from .subject import Subject

_MARKED, _STRONGEST = 1.0, 5.0  # nats that steering adds to a token
_ROOM = 200_000  # characters of a column of the picture, times the square of their size
_SIZES = (16, 28)  # of the texts, pixels
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HOW = {
    "add": "added at",
    "clamp": "clamped to",
    "scale": "scaled by",
    "ablate": "left out",
    "orthogonal": "set to",
    "cap": "capped at",
}
_UNITS = {"max": " x its largest activation", "norm": " % of the norm", "raw": " raw units"}
_OWN = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def share_panel(subject: Subject, address: Steer, view: Json, origin: str) -> str:
    """HTML of the picture, with a link that holds it.

    Args:
        view: the texts of the address, as `steer_actions.write` gives them.
        origin: scheme and host of the app as the visitor reaches it.
    """
    is_public = urlsplit(origin).hostname not in (*_OWN, None)
    unit = "" if address.mode == "scale" else _UNITS[address.unit]
    latents = [{"latent": i, "value": s} for i, s in address.latents.items()]
    texts = []
    for i, row in enumerate(as_rows(subject, latents)):
        name = row["label"] or row["auto"] or next(iter(row.get("fires_on", [])), "")
        strength = "" if address.mode == "ablate" else f" {row['value']:g}{unit}"
        latent = f"{'latent' if i else 'Latent'} {row['latent']}"
        how = f"{_HOW[address.mode]}{strength}"
        texts.append(f"{latent}{f', {cited(name)},' if name else ''} {how}")
    steered = {
        "model": (subject.public_lm_name or "a language model").rpartition("/")[2],
        "sae": subject.name,
        "what": ", and ".join(texts),
        "prompt": address.prompt + ("\n\n" if address.chat else ""),
        "plain": view["plain"],
        "tokens": view["steered_tokens"] or [{"text": view["steered"], "raised": 0.0}],
        "link": f"{origin}/?{to_query(replace(address, run=True))}" if is_public else "",
    }
    drawn = data_link(picture(steered).encode(), "image/svg+xml")
    name = f"steered-{'-'.join(map(str, address.latents))}"
    shown = {"name": name, "svg": drawn, "what": steered["what"], "link": steered["link"]}
    return html("shared", shown)


def picture(steered: Json) -> str:
    """The picture as an SVG, 1200 x 630 pixels; texts that are too long end at its edge.

    Args:
        steered: `model`, `sae`, `what` (the latents with their names and strengths), `prompt`,
            `plain`, `tokens` of the steered text (`text`, and `raised`, the nats that steering
            added), and `link`, which shows it in the app; empty if others cannot reach it.
    """
    texts = (steered["plain"], "".join(token["text"] for token in steered["tokens"]))
    longest = len(steered["prompt"]) + max(map(len, texts))
    least, most = _SIZES
    size = min(most, max(least, round(math.sqrt(_ROOM / max(longest, 1)))))
    return _NOT_IN_XML.sub("", document("share.svg", **_marked(steered), size=size))


def _marked(steered: Json) -> Json:
    """With `mark`, 0 to 1, of each token that steering made likelier."""
    tokens = []
    for token in steered["tokens"]:
        raised = token.get("raised") or 0.0
        mark = min(1.0, raised / _STRONGEST) if raised > _MARKED else 0.0
        tokens.append({**token, "mark": mark})
    return {**steered, "tokens": tokens}
