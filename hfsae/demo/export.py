"""Files of one latent to take away: its direction, its page as JSON, its examples as CSV."""

import csv
import io
import json
from pathlib import Path

from ..machine.files import write_whole
from .rows import Json
from .subject import Subject

_COLUMNS = ("latent", "kind", "rank", "document", "position", "activation", "token", "text")


def files_of(subject: Subject, view: Json) -> tuple[Path, Path]:
    """Paths of a latent's page as JSON, and of its examples as CSV; see `inspect_actions.feature`.

    The files lie in a folder that is deleted when the app ends.
    """
    name = subject.directions / f"latent-{view['latent']}"
    write_whole(name.with_suffix(".json"), json.dumps(view, ensure_ascii=False, indent=1) + "\n")
    write_whole(name.with_suffix(".csv"), table(view))
    return name.with_suffix(".json"), name.with_suffix(".csv")


def table(view: Json) -> str:
    """A line for each example, with a heading."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for group in view.get("groups", []):
        for rank, e in enumerate(group["examples"]):
            token = next((t["text"] for t in e["tokens"] if t["firing"]), "")
            # without text the window is places
            window = e["text"] if "places" in e else "".join(t["text"] for t in e["tokens"])
            place = (e["document"], e["position"], f"{e['activation']:.6g}")
            lines.writerow([view["latent"], group["kind"], rank, *place, token, window])
    return text.getvalue()
