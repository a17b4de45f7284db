"""The site of guides and the API reference:  python scripts/docs.py FOLDER

FOLDER/index.html leads to the guides by six doors. The reference begins at FOLDER/hfsae.html: pages
made of the docstrings. The `dev` extra brings pdoc.
"""

import sys
import warnings
from pathlib import Path

import guides
import pdoc

REPOSITORY = f"{guides.GITHUB}hfsae/"
TEMPLATES = Path(__file__).parent / "reference"
# What is sent to the Hub with an SAE, what `python -m hfsae` runs, addresses of the app: no part of
# the interface.
LEFT_OUT = ("!hfsae.hub.modeling_hfsae", "!hfsae.__main__", "!hfsae.demo.address")
# Rooms that are no name of `hfsae`, so that pdoc does not find them.
ROOMS = ("hfsae.comparison", "hfsae.tuning", "hfsae.diffing", "hfsae.demo", "hfsae.cli")


def build(folder: Path) -> None:
    """Write the reference, with a link from each member to its source, and the guides."""
    pdoc.render.configure(
        docformat="google",
        show_source=False,
        edit_url_map={"hfsae": REPOSITORY},
        search=True,
        template_directory=TEMPLATES,
    )
    with warnings.catch_warnings():
        # transformers writes `problem_type` of every config as a string that only its own file can
        # evaluate
        warnings.filterwarnings("ignore", r"Error parsing type annotation Literal\['regression'")
        # and the type of `kernels_mode` from a file that the newest `kernels` has no more
        warnings.filterwarnings("ignore", r"(Failed to run|Error parsing).* Mode \| None")
        pdoc.pdoc("hfsae", *ROOMS, *LEFT_OUT, output_directory=folder)
    guides.build(folder)  # its first page takes the place of pdoc's


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/docs.py FOLDER")
    build(Path(sys.argv[1]))
