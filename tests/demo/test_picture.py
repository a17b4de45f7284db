"""A steered text as a picture: what is in it, whatever the text."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from hfsae.demo import share

from .conftest import HOSTILE, texts


def steered(text: str = " a ship", raised: float = 4.0, **changed: str) -> dict:
    own = {"model": "a model", "sae": "an SAE", "what": "Latent 3, “sea”", "prompt": "By"}
    own |= {"plain": " air", "link": "me.hf.space", "tokens": [{"text": text, "raised": raised}]}
    return {**own, **changed}


def test_what_steering_made_likelier_is_marked():
    assert '<mark style="--h:0.80"> a ship</mark>' in share.picture(steered(raised=4.0))
    assert "<mark" not in share.picture(steered(raised=0.5))


@pytest.mark.parametrize(
    "text", ["", "x" * 4000, "\n" * 300, "\u200d🔬 日本 שלום\x00\ufffe", HOSTILE, "]]>&<![CDATA["]
)
def test_a_picture_of_any_text_can_be_read_and_holds_it_as_text(text):
    drawn = steered(text, plain=text, what=f"w{text}", prompt=text[:200], link="l" * 400)
    root = ElementTree.fromstring(share.picture(drawn))
    kept = text.replace("\x00", "").replace("\ufffe", "")
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text == f"w{kept}"
    paragraphs = [p for p in root.iter("{http://www.w3.org/1999/xhtml}p")]
    assert "".join(paragraphs[1].itertext()) == kept[:200] + kept
    assert not [e for e in root.iter() if e.tag.endswith(("}img", "}script"))]


def test_long_texts_are_drawn_smaller():
    def size(n: int) -> int:
        return int(share.picture(steered(plain="x" * n)).partition("font: ")[2].split("px")[0])

    assert size(1) == 28 > size(500) > size(5000) == 16


def test_a_picture_holds_its_link_where_there_is_one():
    drawn = share.picture(steered(link="https://me.hf.space/?tab=steer&latents=3"))
    assert 'href="https://me.hf.space/?tab=steer&amp;latents=3"' in drawn
    assert "href=" not in share.picture(steered(link=""))


@pytest.mark.browser
def test_a_steered_text_becomes_a_picture_to_take_away(visit):
    page = visit("tab=steer&prompt=the&latents=3:6&max_new_tokens=6&run=1")
    texts(page)
    page.get_by_role("button", name="Make a picture to share").click()
    image = page.locator("#steer-share img")
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1200
    page.wait_for_selector("#steer-share a[data-png][href]")
    with page.expect_download() as download:
        page.locator("#steer-share a", has_text="the picture").click()
    assert download.value.suggested_filename == "steered-3.png"
    png = Image.open(Path(download.value.path()))
    assert (png.format, png.size) == ("PNG", (1200, 630))
    dark = sum(n for n, (r, g, b, _) in png.convert("RGBA").getcolors(10**6) if r + g + b < 300)
    assert dark > 2000  # letters
