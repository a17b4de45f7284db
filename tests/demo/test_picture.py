"""A steered text as a picture and as a page: what is in them, whatever the text."""

import io

import pytest
from PIL import Image

from hfsae.demo import share
from hfsae.demo.share import Steered

from .conftest import HOSTILE, texts

HOT = (240, 140, 26)


def steered(text: str = " a ship", raised: float = 4.0, **changed: str) -> Steered:
    one = Steered("a model", "an SAE", "Latent 3, “sea”", "By", " air", [], "me.hf.space")
    return one._replace(tokens=[{"text": text, "raised": raised}], **changed)


def drawn(card: Steered) -> Image.Image:
    image = Image.open(io.BytesIO(share.png(card)))
    assert (image.format, image.size) == ("PNG", (1200, 630))
    return image.convert("RGB")


def coloured(image: Image.Image) -> int:
    """Pixels of the marks."""
    pixels = image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata()
    return sum(r > 230 and b < 190 and r - b > 50 for r, _, b in pixels)


def test_what_steering_made_likelier_is_marked():
    assert coloured(drawn(steered(raised=4.0))) > 500
    assert coloured(drawn(steered(raised=0.5))) == 0


@pytest.mark.parametrize(
    "text", ["", "x" * 4000, "word " * 900, "\n" * 300, "\u200d🔬 日本 שלום\x00"]
)
def test_any_text_stays_within_its_column(text):
    image = drawn(steered(text, plain=text, what="w" * 400, prompt=text[:200], link="l" * 400))
    for edge in ((0, 0, 40, 630), (1160, 0, 1200, 630), (0, 614, 1200, 630)):
        assert len(image.crop(edge).getcolors()) == 1, edge


def test_the_page_holds_the_texts_as_text_and_loads_nothing():
    link = "https://me.hf.space/?tab=steer&latents=3"
    page = share.page(steered(HOSTILE, plain=HOSTILE, link=link))
    assert "<img" not in page and "<script" not in page and page.count("&lt;img") >= 2
    assert 'href="https://me.hf.space/?tab=steer&amp;latents=3"' in page and "<mark" in page
    assert "href=" not in share.page(steered(link=""))


def test_a_picture_holds_the_link_that_shows_it():
    link = "https://me.hf.space/?tab=steer&latents=3:6&prompt=" + "a" * 300
    image = Image.open(io.BytesIO(share.png(steered(link=link))))
    assert image.text == {"Title": "Latent 3, “sea”", "Source": link}
    assert Image.open(io.BytesIO(share.png(steered(link="")))).text.keys() == {"Title"}
    assert share.short_link("https://me.hf.space/?a=b") == "me.hf.space/?a=b"
    assert share.short_link(link) == "me.hf.space"


@pytest.mark.browser
def test_a_steered_text_becomes_a_picture_to_take_away(visit):
    page = visit("tab=steer&prompt=the&latents=3:6&max_new_tokens=6&run=1")
    texts(page)
    page.get_by_role("button", name="Make a picture to share").click()
    image = page.locator("#steer-share img")
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1200
    for link, name in (("the picture", "steered-3.png"), ("as a web page", "steered-3.html")):
        with page.expect_download() as download:
            page.locator("#steer-share a", has_text=link).click()
        assert download.value.suggested_filename == name
