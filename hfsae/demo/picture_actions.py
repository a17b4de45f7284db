"""Actions that look at a picture: which latents fire in it, and where."""

from typing import Annotated

from . import validate
from .rows import Json, check_latent, firing_rows, hidden, largest_of
from .seeing import Seen, seen
from .subject import Subject


def inspect_picture(
    subject: Subject,
    picture: str,
    latent: int | None = None,
    max_density: Annotated[float, validate.SHARE] = 1.0,
) -> Json:
    """Latents of the SAE that fire in a picture: on the whole, and where one of them does.

    The most telling come first: those near their largest activation that fire on few patches. Those
    that fire on many patches are apart, under "dense".

    Args:
        picture: a picture's file (JPEG, PNG, WebP, GIF or BMP) in base64; or the number of a
            document that examples are from, as text, and of a crop: "17", "17.3".
        latent: index of the latent whose activation to give for every patch; null: the first that
            is listed.
        max_density: leave out latents that fire on more than this share of all patches.

    Returns:
        name (str): of the picture.
        rows (int): of patches; they are counted from the top left, row by row.
        columns (int): of patches.
        latent (int | None): the latent of "activations".
        label (str): its name; empty if it has none.
        activations (list): of "latent" on each patch, raw units; 0: it does not fire.
        ranking (list[Latent]): latents that fire in the picture, the most telling first: "value" is
            the largest activation here, "share" that over the latent's largest anywhere, "peak" the
            number of the patch where it is.
        dense (dict): {n, rows} of those that fire on many patches; "n_rest": how many others fire.
        usual_max (float | None): the largest activation of "latent" anywhere.
        l0 (float): latents that fire on a patch, on average.
        fvu (float | None): fraction of the activations' variance that the SAE leaves unexplained.
    """
    if latent is not None:
        latent = check_latent(subject, latent)
    hide, there = hidden(subject, max_density), seen(subject, picture)
    ranking, dense = firing_rows(subject, there.inspection, hide)
    if latent is None and ranking:
        latent = ranking[0]["latent"]
    return {
        "name": there.picture.name,
        "rows": there.grid.rows,
        "columns": there.grid.columns,
        "latent": latent,
        "label": "" if latent is None else subject.name_of(latent),
        "activations": activations_of(there, latent),
        "ranking": ranking,
        "dense": dense,
        "usual_max": largest_of(subject, latent),
        "l0": sum(there.inspection.l0) / max(1, there.inspection.n_kept),
        "fvu": there.inspection.fvu if there.inspection.fvu == there.inspection.fvu else None,
    }


def activations_of(there: Seen, latent: int | None) -> list[float]:
    """Of a latent on each patch."""
    if latent is None:
        return [0.0] * len(there.inspection.tokens.ids)
    return there.inspection.trace(latent)
