"""The repository's Markdown pages as HTML: guides, and the reports that they link.

A page has the path that it has in the repository, and so have pictures and, in the reference,
modules: most links differ from those in Markdown by their suffix alone. Other files are linked on
GitHub.
"""

import ast
import html
import json
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import house
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/hfsae/hfsae/blob/main/"
HOUSE, ROOMS = "house.svg", "scripts/rooms.md"

DOORS = {
    "Try it": (
        "An app with a small SAE, and twelve lines of Python.",
        "pip install -e '.[demo]' && hfsae demo",
        ["README.md", "scripts/recipes/quickstart.md", "scripts/recipes/coming_from.md"],
    ),
    "Train": (
        "From your model and your text to an SAE of its own.",
        "hfsae train quickstart --text.dataset my.jsonl --training.output_dir runs/mine",
        [
            "scripts/recipes/README.md",
            "scripts/recipes/variants.md",
            "scripts/citing/README.md",
            "scripts/recipes/short_runs.md",
            "scripts/recipes/search.md",
            "scripts/recipes/activations.md",
            "scripts/recipes/crosscoders.md",
            "scripts/recipes/first_hour.md",
            "scripts/recipes/gpus.md",
        ],
    ),
    "Look": (
        "What latents fire on, what they mean, and how sure that is.",
        "hfsae demo runs/mine",
        [
            "scripts/recipes/names.md",
            "scripts/recipes/probing.md",
            "scripts/recipes/circuits.md",
            "scripts/recipes/diffing.md",
            "scripts/recipes/ratings.md",
            "scripts/telling.md",
            "scripts/studies/README.md",
        ],
    ),
    "Steer": (
        "Change latents while the model writes.",
        "hfsae presets runs/mine",
        ["scripts/presets.md", "scripts/steering_effect.md", "scripts/packaged.md"],
    ),
    "Share": (
        "The Hub, and files of other libraries, both ways.",
        "hfsae push runs/mine me/my-sae --dry_run",
        ["scripts/interop/README.md", "scripts/interop/PARITY.md", "scripts/interop/SAEBENCH.md"],
    ),
    "Understand": (
        "Which variant is best, how fast, and how the package is built.",
        "hfsae compare scripts/comparisons/frontier.yaml",
        [
            "scripts/comparisons/README.md",
            "scripts/comparisons/verdict.md",
            "scripts/comparisons/tuned_alike.md",
            "scripts/comparisons/frontier.md",
            "scripts/comparisons/sites.md",
            "scripts/comparisons/ablations.md",
            "scripts/comparisons/latents.md",
            "scripts/bench/README.md",
            "scripts/trials/README.md",
            "scripts/rooms.md",
        ],
    ),
}
"""{door: (what is behind it, a first command, its pages)}"""
PICTURES = {
    "demo/pictures/inspect.png": ("scripts/recipes/names.md", "A text, coloured by one latent"),
    "demo/pictures/steer.png": ("scripts/presets.md", "A prompt as it is, and steered"),
    "scripts/recipes/digits.png": ("scripts/recipes/activations.md", "Latents of pictures"),
    "scripts/comparisons/equal/figures/difference.png": (
        "scripts/comparisons/verdict.md",
        "Which variant loses least, at equal L0",
    ),
}
"""{picture of the first page: (page that it leads to, words below it)}"""
ASSETS = Path(__file__).parent / "reference"


class Page:
    """A Markdown page of the repository, which lies in `root`."""

    def __init__(self, path: str, root: Path = ROOT) -> None:
        self.path, self._root = path, root
        self.linked: set[str] = set()
        """Paths of pages of the site."""
        self.pictures: set[str] = set()
        self._markdown = MarkdownIt("commonmark").enable("table")
        self._tokens = self._markdown.parse((root / path).read_text(encoding="utf-8"))
        self._name_headings()
        for token in self._tokens:
            for part in token.children or ():
                for name in {"href", "src"} & part.attrs.keys():
                    part.attrs[name] = self._address(str(part.attrs[name]))

    @property
    def title(self) -> str:
        return _words(self._tokens[1])

    def html(self) -> str:
        body = self._markdown.renderer.render(self._tokens, self._markdown.options, {})
        if self.path == ROOMS:
            start, *rooms = re.split(r'<h2 id="(\w+)">', body)
            pairs = zip(rooms[::2], rooms[1::2], strict=True)
            body = start + "".join(f'<h2 id="{r}">{text}{names_of(r)}' for r, text in pairs)
            body += f'<p><img src="../{HOUSE}" alt="Rooms and who imports whom"></p>'
        return document(self.title, body, self.path)

    @property
    def words(self) -> str:
        """What the search looks through."""
        parts = (t.content for t in self._tokens if t.type in ("inline", "fence"))
        return re.sub(r"[|`*#\s]+", " ", re.sub(r"\]\([^)]*\)", "]", " ".join(parts)))

    @property
    def headings(self) -> list[tuple[str, str]]:
        """(anchor, words) of each section."""
        pairs = zip(self._tokens, self._tokens[1:], strict=False)
        return [(str(t.attrs["id"]), _words(i)) for t, i in pairs if t.type == "heading_open"][1:]

    def _name_headings(self) -> None:
        """Give headings the ids that GitHub gives them."""
        seen = Counter[str]()
        for token, inline in zip(self._tokens, self._tokens[1:], strict=False):
            if token.type == "heading_open":
                name = re.sub(r"[^\w -]", "", _words(inline).lower()).replace(" ", "-")
                token.attrSet("id", f"{name}-{seen[name]}" if seen[name] else name)
                seen[name] += 1

    def _address(self, link: str) -> str:
        """Where a link leads on the site.

        Raises:
            ValueError: it leads to nothing in the repository.
        """
        at, _, anchor = link.partition("#")
        if not at or "://" in at:
            return link
        target = normpath(join(dirname(self.path), at))
        if not (self._root / target).exists():
            raise ValueError(f"{self.path} links {link}, which is not there")
        there = self._on_site(target)
        address = relpath(there, dirname(self.path) or ".") if there else GITHUB + target
        return f"{address}#{anchor}" if anchor else address

    def _on_site(self, target: str) -> str | None:
        """The path on the site of a file of the repository; None: it is not there."""
        stem, _, suffix = target.rpartition(".")
        if suffix == "md" and target.startswith(("README", "scripts/")):
            self.linked.add(target)
            return f"{stem}.html"
        if suffix in ("png", "svg"):
            self.pictures.add(target)
            return target
        is_module = suffix == "py" and target.startswith("hfsae/")
        return f"{stem.removesuffix('/__init__')}.html" if is_module else None


def _words(inline: Token) -> str:
    return "".join(
        " " if part.type == "softbreak" else part.content for part in inline.children or ()
    )


def names_of(room: str) -> str:
    """The public names of a room as HTML, each with a link to where the reference explains it."""
    home = ROOT / "hfsae" / room
    stub = home / "__init__.pyi"  # of a room whose names pdoc has on the room's own page
    files = (stub, home / "__init__.py", home.with_suffix(".py"))
    tree = ast.parse(next(filter(Path.is_file, files)).read_text(encoding="utf-8"))
    places = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [] if stub.exists() or node.module is None else node.module.split(".")
            page = "/".join([room, *parts]) + ".html"
            for alias in node.names:
                if alias.asname:
                    places[alias.asname] = f"{page}#{alias.name}" if node.module else page
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            places[node.name] = f"{room}.html#{node.name}"
    links = "".join(
        f' <a href="../hfsae/{places[name]}"><code>{name}</code></a>'
        for name in sorted(places, key=str.casefold)
        if not name.startswith("_")
    )
    return f'<p class="names"><a href="../hfsae/{room}.html">Reference</a>{links}</p>\n'


def document(title: str, body: str, path: str) -> str:
    """An HTML page at a path, with the sidebar and the search."""
    up = "../" * path.count("/")
    parts = []
    for door, (_, _, paths) in DOORS.items():
        items = "".join(
            f'<li><a{" aria-current=page" if each == path else ""} href="{up}{_href(each)}">'
            f"{html.escape(_title(each))}</a></li>"
            for each in paths
        )
        opened = " open" if path in paths else ""
        parts.append(f"<details{opened}><summary>{door}</summary><ul>{items}</ul></details>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="stylesheet" href="{up}site.css">'
        f'<script src="{up}search-index.js" defer></script>'
        f'<script src="{up}site.js" defer></script></head><body data-up="{up}">\n'
        f'<nav><a class="home" href="{up}index.html">hfsae</a>'
        '<input type="search" placeholder="Search the guides" aria-label="Search the guides">'
        '<ol id="found"></ol><button aria-expanded="false">Menu</button>'
        f'<div class="menu">{"".join(parts)}<p><a href="{up}hfsae.html">Reference</a><br>'
        f'<a href="https://github.com/hfsae/hfsae">GitHub</a></p></div></nav>\n'
        f"<main>\n{body}</main></body></html>\n"
    )


def _href(path: str) -> str:
    return path.removesuffix(".md") + ".html"


@cache
def _title(path: str) -> str:
    """A page's title, as the sidebar has it."""
    (title,) = re.findall(r"\A# (.+)", (ROOT / path).read_text(encoding="utf-8"))
    return "Start" if path == "README.md" else re.sub(r", in \S+ at \S+$", "", title)


def first_page() -> str:
    """Six doors, and pictures."""
    cards = []
    for door, (about, command, paths) in DOORS.items():
        items = "\n".join(
            f'<li><a href="{_href(path)}">{html.escape(_title(path))}</a></li>' for path in paths
        )
        cards.append(
            f'<section><h2><a href="{_href(paths[0])}">{door}</a></h2><p>{about}</p>'
            f"<pre>{html.escape(command)}</pre><ul>\n{items}\n</ul></section>"
        )
    shown = "".join(
        f'<figure><a href="{_href(page)}"><img src="{picture}" alt="{words}"></a>'
        f"<figcaption>{words}</figcaption></figure>"
        for picture, (page, words) in PICTURES.items()
    )
    body = (
        "<h1>hfsae</h1>\n<p class='lead'>Sparse autoencoders as Hugging Face models: train one on "
        "the activations of any causal language model, look at its latents, steer with them, and "
        f"share it.</p>\n<div class='doors'>{''.join(cards)}</div>\n"
        f"<div class='pictures'>{shown}</div>\n"
    )
    return document("hfsae", body, "index.html")


def build(folder: Path) -> None:
    """Write the guides, all that they link, the plan of the house, and the first page."""
    pages: dict[str, Page] = {}
    todo = [path for _, _, paths in DOORS.values() for path in paths]
    while todo:
        path = todo.pop()
        if path not in pages:
            pages[path] = Page(path)
            todo += pages[path].linked
    for path, page in pages.items():
        _write(folder / _href(path), page.html())
    for picture in {*PICTURES, *(p for page in pages.values() for p in page.pictures)}:
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / picture, folder / picture)
    for name in ("site.css", "site.js"):
        shutil.copyfile(ASSETS / name, folder / name)
    index = [
        {"title": page.title, "href": _href(path), "headings": page.headings, "text": page.words}
        for path, page in sorted(pages.items())
    ]
    _write(folder / "search-index.js", f"const PAGES = {json.dumps(index)};\n")
    house.draw(folder / HOUSE)
    _write(folder / "index.html", first_page())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
