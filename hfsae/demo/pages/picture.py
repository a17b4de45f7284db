"""Which latents fire in a picture, and where."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ...io.units import PATCH
from .. import address as at
from ..actions import Actions, in_queue
from ..parts import data_link, html, panel
from ..picture_latents import (
    MOST_BYTES,
    PictureLatents,
    add_strongest,
    crop,
    is_upload,
    part_name,
    picture_latents,
    upload,
)
from ..rows import Json, largest_of
from ..subject import Subject
from .page import App, Page, Updates, whole

_OFFERED = 10  # pictures of examples
_NO_MODEL = "No picture can be inspected, as the model of pictures is not loaded: "
_NONE_YET = "Upload a picture, and see which latents fire in it, and where."


class PicturePage(Page[at.Picture]):
    """A picture of one's own, or of an example, with each latent's activations over it."""

    title = "Inspect a picture"
    state = at.Picture

    @classmethod
    def fits(cls, subject: Subject) -> bool:
        """An SAE that reads a model of pictures."""
        return subject.unit == PATCH

    def __init__(self, actions: Actions) -> None:
        super().__init__(actions)
        self.offered = _example_pictures(self.subject)
        with gr.Row(elem_classes="hf-buttons"):
            self.upload = gr.UploadButton(
                "Upload a picture",
                variant="primary",
                file_types=["image"],
                min_width=170,
                scale=0,
                interactive=self.subject.encoder is not None,
                elem_id="picture-upload",
            )
            size = f"{MOST_BYTES / 1e6:.0f} MB"
            panel(html("hint", f"PNG, JPEG, WebP, GIF or BMP, at most {size}"))
        self.examples = panel(html("thumbs", self.offered), elem_id="picture-examples")
        self.notice = panel()
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self.shown = panel(elem_id="picture-shown")
            with gr.Column(scale=1, min_width=320):
                self.latents = panel(elem_id="picture-latents")
        self.field("picture", gr.State)
        self.field("latent", gr.State)
        self.outputs = (self.shown, self.latents)

    def first(self) -> at.Picture:
        """The first picture that examples are from."""
        offered = _example_pictures(self.subject)[:1] if self.subject.encoder is not None else []
        return at.Picture("".join(p["picture"] for p in offered))

    def render(self, address: at.Picture) -> Updates:
        """The picture, coloured by a latent, and all that fire in it."""
        if self.subject.encoder is None:
            sentence = f"{_NO_MODEL}{self.subject.why_no_lm}."
            return {self.shown: html("empty", sentence), self.latents: ""}
        if not address.picture:
            return {self.shown: html("empty", _NONE_YET), self.latents: ""}
        view = self.actions.inspect_picture(address.picture, address.latent)
        here = picture_latents(self.subject, address.picture)
        for row in [*view["ranking"], *view["dense"]["rows"]]:
            row["here"] = self._crop(here, row["latent"], row["peak"])
        add_strongest(self.subject, [*view["ranking"], *view["dense"]["rows"]])
        view["crop"] = self._crop(here, view["latent"], None)
        view["small"] = not is_upload(address.picture)
        return {self.shown: html("seen", view), self.latents: html("seen_latents", view)}

    def _crop(self, here: PictureLatents, latent: int | None, peak: int | None) -> Json:
        """The picture with a latent's activations over it."""
        trace = here.activations(latent)
        most = largest_of(self.subject, latent) or max([*trace, 0.0]) or 1.0
        shares = {i: activation / most for i, activation in enumerate(trace) if activation > 0}
        return crop(here.picture, here.grid, peak, shares, is_whole=True)

    def wire(self, app: App) -> None:
        """An uploaded picture is shown; clicks on latents keep it."""
        self.app = app
        self.upload.upload(
            self._upload,
            self.upload,
            app.outputs("picture"),
            show_progress="minimal",
            show_progress_on=[self.shown],
            api_visibility="private",
            **in_queue("look"),
        )
        app.on_select(self.examples, self._example, self, progress_on=[self.shown])
        for part in (self.shown, self.latents):
            app.on_select(part, self._click, self, leads_to=("feature",))

    def _upload(self, path: str | None) -> Updates:
        if path is None:
            return {self.notice: gr.skip()}
        try:
            with Path(path).open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            Path(path).unlink(missing_ok=True)  # it is not kept on disk
            name = upload(self.subject, content)
        except ValueError as error:
            return {self.notice: html("error", str(error))}
        return self.app.show(at.Picture(name))

    def _example(self, do: str, number: str, to: str, *values: object) -> at.Picture:
        return at.Picture(number)

    def _click(self, do: str, number: str, to: str, *values: object) -> at.Address:
        if do == "colour":
            return replace(self.address(*values), latent=whole(number))
        return at.Feature(latent=whole(number))


def _example_pictures(subject: Subject) -> list[dict[str, Any]]:
    """Pictures that examples are from, spread over all."""
    if subject.pictures is None or subject.encoder is None:
        return []
    keys = [key for key in subject.pictures.names if key[1] >= 0]
    keys = keys[:: max(1, len(keys) // _OFFERED)][:_OFFERED]
    pictures = subject.pictures.read(keys)
    return [
        {
            "picture": part_name(key),
            "name": pictures[key].name,
            "src": data_link(pictures[key].content, "image/jpeg"),
        }
        for key in keys
        if key in pictures
    ]
