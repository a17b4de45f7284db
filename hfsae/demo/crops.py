"""Pictures of examples for pages: where a patch is, and how strongly a latent fires around it.

A latent's activations lie over a picture as a small picture of their own, a pixel a patch, whose
opacity is the activation as a share of the latent's largest. Where all patches are known, those on
which it does not fire are darkened: orange alone is lost on skin and wood.
"""

from collections.abc import Iterable, Mapping
from io import BytesIO

from ..features.pictures import Grid, Key, Picture
from .picture import as_link
from .rows import Json
from .seeing import part_name
from .subject import Subject

_HOT = (240, 140, 26)
_DARK = (15, 23, 38, round(0.5 * 255))
_FAINTEST, _MOST_OPAQUE = 0.1, 0.6  # what is in the picture is seen through it


def crop(
    picture: Picture,
    grid: Grid,
    position: int | None,
    shares: Mapping[int, float],
    *,
    is_whole: bool = False,
) -> Json:
    """What a page shows of a picture: its pixels as a link, the patch's box, and the latent's
    activations over it.

    Args:
        position: of the patch to outline; None: no patch is.
        shares: of patches, the activation over the latent's largest.
        is_whole: whether those of all patches are known.
    """
    box = None if position is None else grid.box(position)
    return {
        "name": picture.name,
        "src": as_link(picture.content, "image/jpeg"),
        "box": box,
        "heat": heat(grid, shares, is_whole=is_whole),
        "across": grid.columns * grid.width,
        "down": grid.rows * grid.height,
    }


def heat(grid: Grid, shares: Mapping[int, float], *, is_whole: bool = False) -> str:
    """A link to a PNG with a pixel for each patch; empty if the latent fires nowhere.

    Args:
        is_whole: whether patches without a share are darkened.
    """
    from PIL import Image

    if not any(share > 0 for share in shares.values()):
        return ""
    pixels = bytearray(_DARK if is_whole else bytes(4)) * (grid.rows * grid.columns)
    for position, share in shares.items():
        if share > 0 and (cell := grid.cell(position)) is not None:
            at = 4 * (cell[0] * grid.columns + cell[1])
            opacity = max(_FAINTEST, _MOST_OPAQUE * min(1.0, share))
            pixels[at : at + 4] = (*_HOT, round(255 * opacity))
    image, done = Image.frombytes("RGBA", (grid.columns, grid.rows), bytes(pixels)), BytesIO()
    image.save(done, "PNG")
    return as_link(done.getvalue(), "image/png")


def add_crops(subject: Subject, groups: Iterable[Json]) -> None:
    """Give each example of these groups, of `inspect_actions.feature`, its picture under "crop",
    where there is one."""
    grid, pictures = subject.grid, subject.pictures
    if grid is None or pictures is None:
        return
    examples = [example for group in groups for example in group["examples"]]
    keys = [(example["document"], grid.part(example["position"])) for example in examples]
    found = pictures.read(keys)
    for example, key in zip(examples, keys, strict=True):
        if key in found:
            tokens = zip(example["places"], example["tokens"], strict=True)
            # the strongest patch has its frame, and is to be seen
            shares = {place: t["share"] for place, t in tokens if not t["firing"]}
            example["crop"] = crop(found[key], grid, example["position"], shares)
            example["picture"] = part_name(key) if key[1] >= 0 else ""


def add_strongest(subject: Subject, rows: Iterable[Json]) -> None:
    """Give each row of a latent the picture of its strongest example under "crop", where there is
    one."""
    import pyarrow.compute as pc

    grid, pictures, store, rows = subject.grid, subject.pictures, subject.store, [*rows]
    if grid is None or pictures is None or store is None or not rows:
        return
    of_these = pc.field("latent").isin([row["latent"] for row in rows])
    first = of_these & (pc.field("kind") == "top") & (pc.field("rank") == 0)
    table = store.examples.to_table(columns=["latent", "document", "position"], filter=first)
    latents, documents, positions = (table[name].to_pylist() for name in table.column_names)
    keys: dict[int, Key] = {
        latent: (document, grid.part(position))
        for latent, document, position in zip(latents, documents, positions, strict=True)
    }
    places = dict(zip(latents, positions, strict=True))
    found = pictures.read([*keys.values()])
    for row in rows:
        latent = row["latent"]
        if latent in keys and keys[latent] in found:
            row["crop"] = crop(found[keys[latent]], grid, places[latent], {})
