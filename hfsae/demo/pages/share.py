"""A steered text as a picture to share, and as a web page in one file."""

from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from .. import address as at
from ..address import to_query
from ..parts import cited, html, panel
from ..picture import Steered, as_link, page, png
from ..rows import Json, as_rows

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


class Share:
    """What the steer page's last texts look like to others."""

    def __init__(self, steer_page: Any) -> None:
        self.page, self.panel = steer_page, panel(elem_id="steer-share")

    def wire(self) -> None:
        """A button under the texts makes the picture."""
        self.page.output.select(
            self._draw,
            self.page.written,
            self.panel,
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=[self.panel],
        )

    def _draw(self, event: gr.EventData, request: gr.Request, written: Any) -> Any:
        data = event._data if isinstance(event._data, dict) else {}
        if written is None or data.get("do") != "share":
            return gr.skip()
        return self.drawn(written.address, written.view, str(request.headers.get("origin") or ""))

    def drawn(self, address: at.Steer, view: Json, origin: str) -> str:
        """The picture with its links, as HTML.

        Args:
            view: the texts, as `steer_actions.write` gives them.
            origin: scheme and host of the app as the visitor reaches it.
        """
        public = origin if urlsplit(origin).hostname not in (*_OWN, None) else ""
        link = f"{public}/?{to_query(replace(address, run=True))}" if public else ""
        steered = self._steered(address, view, link)
        name = f"steered-{'-'.join(map(str, address.latents))}"
        files = {
            "png": as_link(png(steered), "image/png"),
            "html": as_link(page(steered).encode(), "text/html"),
        }
        return html("shared", {"name": name, "files": files, "what": steered.what, "link": link})

    def _steered(self, address: at.Steer, view: Json, link: str) -> Steered:
        subject, tokens = self.page.subject, view["steered_tokens"]
        return Steered(
            model=(subject.public_lm_name or "a language model").rpartition("/")[2],
            sae=subject.name,
            what=", and ".join(self._latents(address)),
            prompt=address.prompt + ("\n\n" if address.chat else ""),
            plain=view["plain"],
            tokens=tokens or [{"text": view["steered"], "raised": 0.0}],
            link=link,
        )

    def _latents(self, a: at.Steer) -> list[str]:
        """Each steered latent in words."""
        unit = "" if a.mode == "scale" else _UNITS[a.unit]
        rows = as_rows(self.page.subject, [{"latent": i, "value": s} for i, s in a.latents.items()])
        texts = []
        for i, row in enumerate(rows):
            name = row["label"] or row["auto"] or next(iter(row.get("fires_on", [])), "")
            strength = "" if a.mode == "ablate" else f" {row['value']:g}{unit}"
            latent = f"{'latent' if i else 'Latent'} {row['latent']}"
            texts.append(f"{latent}{f', {cited(name)},' if name else ''} {_HOW[a.mode]}{strength}")
        return texts
