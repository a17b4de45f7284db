"""The repository's Markdown pages as HTML: guides, and the reports that they link.

A page has the path that it has in the repository, and so have pictures and, in the reference,
modules: most links differ from those in Markdown by their suffix alone. Other files are linked on
GitHub.
"""

import html
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import house
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/hfsae/hfsae/blob/main/"
HOUSE = "house.svg"

GUIDES = {
    "Begin": ["README.md"],
    "Train": [
        "scripts/recipes/README.md",
        "scripts/recipes/quickstart.md",
        "scripts/recipes/variants.md",
        "scripts/recipes/short_runs.md",
        "scripts/recipes/search.md",
        "scripts/recipes/gpus.md",
    ],
    "Look at latents, and steer": [
        "scripts/recipes/names.md",
        "scripts/recipes/ratings.md",
        "scripts/recipes/probing.md",
        "scripts/packaged.md",
        "scripts/presets.md",
        "scripts/steering_effect.md",
        "scripts/telling.md",
        "scripts/studies/README.md",
    ],
    "Compare": [
        "scripts/comparisons/README.md",
        "scripts/comparisons/verdict.md",
        "scripts/comparisons/tuned_alike.md",
        "scripts/comparisons/frontier.md",
        "scripts/comparisons/sites.md",
        "scripts/comparisons/ablations.md",
        "scripts/comparisons/latents.md",
    ],
    "Speed, files and reliability": [
        "scripts/bench/README.md",
        "scripts/interop/README.md",
        "scripts/trials/README.md",
    ],
}
"""{heading on the first page: pages below it}"""
STYLE = """:root{color-scheme:light dark}
body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:0 auto 4rem;padding:0 1rem}
nav{padding:1rem 0;border-bottom:1px solid #8884}nav a{margin-right:1.5rem}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px;margin:1rem 0}
td,th{border:1px solid #8886;padding:.25rem .6rem;text-align:left;vertical-align:top}
pre{background:#8882;padding:.7rem;overflow-x:auto;font-size:14px}
img{max-width:100%;background:#fff}li{margin:.3rem 0}"""


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

    @property
    def first_sentence(self) -> str:
        """That of the first paragraph."""
        at = next(i for i, token in enumerate(self._tokens) if token.type == "paragraph_open")
        return re.split(r"(?<=[.?])\s", _words(self._tokens[at + 1]))[0]

    def html(self) -> str:
        body = self._markdown.renderer.render(self._tokens, self._markdown.options, {})
        return document(self.title, body, "../" * self.path.count("/"))

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


def document(title: str, body: str, up: str) -> str:
    """An HTML page; `up` leads to the folder of the first page."""
    links = {"Guides": "index.html", "Reference": "hfsae.html", "GitHub": GITHUB}
    nav = "".join(
        f'<a href="{link if "://" in link else up + link}">{name}</a>'
        for name, link in links.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><nav>{nav}</nav>\n{body}</body></html>\n"
    )


def first_page(pages: Mapping[str, Page]) -> str:
    """The guides with a line each, and the plan of the house."""
    parts = [
        "<h1>hfsae: guides and reference</h1>\n"
        "<p>The <a href='hfsae.html'>reference</a> has a page for each module.</p>"
    ]
    for heading, paths in GUIDES.items():
        items = "\n".join(map(_item, map(pages.__getitem__, paths)))
        parts.append(f"<h2>{heading}</h2>\n<ul>\n{items}\n</ul>")
    parts.append(
        "<h2>The plan of the house</h2>\n<p>The packages of hfsae are rooms on "
        "their floors. An arrow is an import; one is left out where others lead the same way "
        "through rooms between. Imports go down, never sideways.</p>\n"
        f'<p><a href="{HOUSE}"><img src="{HOUSE}" alt="Rooms and who imports whom"></a></p>'
    )
    return document("hfsae", "\n".join(parts), "")


def _item(page: Page) -> str:
    address = page.path.removesuffix(".md") + ".html"
    words = html.escape(page.title), html.escape(page.first_sentence)
    return f'<li><a href="{address}">{words[0]}</a>: {words[1]}</li>'


def build(folder: Path) -> None:
    """Write the guides, all that they link, the plan of the house, and the first page."""
    pages: dict[str, Page] = {}
    todo = [path for paths in GUIDES.values() for path in paths]
    while todo:
        path = todo.pop()
        if path not in pages:
            pages[path] = Page(path)
            todo += pages[path].linked
    for path, page in pages.items():
        _write(folder / path.replace(".md", ".html"), page.html())
        for picture in page.pictures:
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / picture, folder / picture)
    house.draw(folder / HOUSE)
    _write(folder / "index.html", first_page(pages))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
