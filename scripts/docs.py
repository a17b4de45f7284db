"""The API reference, made of the docstrings:  python scripts/docs.py FOLDER

One page a module, beginning at FOLDER/index.html. The `dev` extra brings pdoc.
"""

import sys
import warnings
from pathlib import Path

import pdoc

REPOSITORY = "https://github.com/hfsae/hfsae/blob/main/hfsae/"
# What is sent to the Hub with an SAE, and what `python -m hfsae` runs: no part of the interface.
MODULES = ("hfsae", "!hfsae.hub.modeling_hfsae", "!hfsae.__main__")


def build(folder: Path) -> None:
    """Write the pages, with a link from each member to its source."""
    pdoc.render.configure(
        docformat="google", show_source=False, edit_url_map={"hfsae": REPOSITORY}, search=True
    )
    with warnings.catch_warnings():
        # transformers writes `problem_type` of every config as a string that only its own file can
        # evaluate
        warnings.filterwarnings("ignore", r"Error parsing type annotation Literal\['regression'")
        pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/docs.py FOLDER")
    build(Path(sys.argv[1]))
