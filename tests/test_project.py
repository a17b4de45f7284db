"""What surrounds the code: metadata, workflows, and the site of guides and reference."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from itertools import combinations
from pathlib import Path

import pytest
import yaml

import hfsae

from .helpers import run_python

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
YAML = [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".github/CITATION.cff"]
DISTRIBUTIONS = {"yaml": "pyyaml"}  # where the name that is imported is another


def imported_on_top(path: Path) -> set[str]:
    """Packages that the file imports when it is imported; not under `if`, nor in functions."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module))
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_what_the_public_names_import_is_declared_and_nothing_else():
    """But for what the extras bring."""
    listed = "import sys, hfsae\n"
    listed += "apart = {'Recipe', 'Trainer', 'TrainingArguments', 'explain', 'probe', 'train'}\n"
    listed += "rooms = {'runs', 'training', 'explanations'}\n"
    listed += "for name in {*hfsae.__all__} - apart - rooms: getattr(hfsae, name)\n"
    listed += "hfsae.cards.render_card\n"
    listed += "for name, module in sys.modules.items():\n"
    listed += "    if name.split('.')[0] == 'hfsae': print(module.__file__)\n"
    done = run_python(listed)
    files = [Path(line) for line in done.stdout.splitlines()]
    assert len(files) > 20, done.stderr
    needed = {name for file in files for name in imported_on_top(file)}
    core = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, re.DOTALL | re.MULTILINE)
    assert core is not None
    declared = re.findall(r'^    "([\w-]+)', core[1], re.MULTILINE)
    assert {DISTRIBUTIONS.get(name, name) for name in needed} == set(declared)


def test_the_package_is_typed_for_those_who_install_it():
    assert (ROOT / "hfsae/py.typed").is_file()


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_of_the_repository_parses(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        assert content["jobs"] and content[True]  # YAML 1.1 reads the key `on` as true
        assert all(job["steps"] for job in content["jobs"].values())
    elif path.parent.name == "ISSUE_TEMPLATE":
        assert content["name"] and content["description"]
        assert len({part["id"] for part in content["body"]}) == len(content["body"])
    else:
        assert content["version"] == hfsae.__version__


def test_no_script_has_the_name_of_a_module_that_others_import():
    """Its folder comes first on the path: transformers' own `import kernels` would find it."""
    taken = {*packages_distributions(), *sys.stdlib_module_names}
    scripts = [
        path for path in ROOT.glob("scripts/**/*.py") if not (path.parent / "__init__.py").exists()
    ]
    assert len(scripts) > 60
    assert not [path for path in scripts if path.stem in taken]


def test_scripts_that_workflows_run_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in YAML)
    scripts = set(re.findall(r"scripts/[\w./]+", text))
    assert {"scripts/test.sh", "scripts/docs.py"} <= scripts
    assert all((ROOT / name).is_file() for name in scripts)


def test_links_between_the_repository_s_own_pages_exist():
    pages = list((ROOT / ".github").glob("*.md"))
    assert len(pages) >= 4
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), (page, link)


def broken_links(folder: Path) -> Iterator[tuple[str, str]]:
    """(page, link): files and anchors of a site that are not there."""
    folder = folder.resolve()
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    for path, text in texts.items():
        for link in set(re.findall(r"\b(?:href|src)=[\"']([^\"'#:$]*(?:#[^\"':]*)?)[\"']", text)):
            at, _, anchor = link.partition("#")
            target = (path.parent / at).resolve() if at else path
            if not target.is_file() or (anchor and anchor not in ids[target]):
                yield str(path.relative_to(folder)), link


@pytest.fixture(scope="module")
def site():
    """The modules that make the site, by their names."""
    pytest.importorskip("grimp")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        yield {name: import_module(name) for name in ("guides", "house")}


def test_guides_become_pages_whose_links_lead_somewhere(site, tmp_path):
    site["guides"].build(tmp_path)
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert len(site["guides"].DOORS) == 6
    for door, (about, _, paths) in site["guides"].DOORS.items():
        assert f">{door}</a></h2><p>{about}</p>" in first
        for path in paths:
            assert f'<li><a href="{path.removesuffix(".md")}.html">' in first
    beside = {*ROOT.glob("scripts/recipes/*.md"), *ROOT.glob("scripts/comparisons/*.md")}
    beside |= {*ROOT.glob("scripts/*/README.md"), *ROOT.glob("scripts/*.md")}
    made = {path.with_suffix(".html").relative_to(ROOT) for path in beside}
    assert len(made) >= 20 and all((tmp_path / path).is_file() for path in made)
    rooms = (tmp_path / "scripts/rooms.html").read_text(encoding="utf-8")
    assert 'src="../house.svg"' in rooms and (tmp_path / "house.svg").is_file()
    assert '<a href="../hfsae/lm.html#capture"><code>capture</code></a>' in rooms
    page = (tmp_path / "scripts/recipes/variants.html").read_text(encoding="utf-8")
    assert '<h2 id="an-l0-that-obeys">An L0 that obeys</h2>' in page and "<table>" in page
    assert 'href="../../hfsae/models/jumprelu.html"' in page
    assert (
        'href="https://github.com/hfsae/hfsae/blob/main/scripts/comparisons/small_budget"' in page
    )
    broken = list(broken_links(tmp_path))
    modules = [link for _, link in broken if "hfsae" in link]
    assert len(broken) == len(modules) >= 10  # which pdoc writes
    for link in modules:
        stem = ROOT / link.partition("#")[0].replace("../", "").removesuffix(".html")
        assert stem.with_suffix(".py").is_file() or (stem / "__init__.py").is_file(), link


def test_a_guide_with_a_link_to_nothing_is_refused(site, tmp_path):
    (tmp_path / "README.md").write_text("# A\n\nA [page](scripts/none.md).\n")
    with pytest.raises(ValueError, match=r"README.md links scripts/none.md, which is not there"):
        site["guides"].Page("README.md", tmp_path)


def test_the_plan_of_the_house_shows_each_room_and_no_text_meets_another_or_a_line(site):
    house = site["house"]
    rooms = [room for floor in house.floors() for room in floor]
    figure = house.picture()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text()]
    assert {*rooms} <= {text.get_text() for text in texts} and len(texts) > len(rooms) + 5
    boxes = [(text.get_bbox_patch() or text).get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(figure.bbox.containsx(b.x0) and figure.bbox.containsx(b.x1) for b in boxes)
    arrows = [text for text in axes.texts if not text.get_text()]
    ends = [(arrow.get_position(), arrow.xy) for arrow in arrows]
    ends += [line.get_xydata() for line in axes.lines]
    assert len(ends) > 40
    for start, end in ends:
        assert start[1] > end[1]
        for share in range(1, 20):
            point = [a + share / 20 * (b - a) for a, b in zip(start, end, strict=True)]
            at = axes.transData.transform(point)
            assert not any(box.contains(*at) for box in boxes), (start, end)


def test_the_page_of_rooms_has_each_room_and_its_public_names(site):
    headings = re.findall(r"^## (\w+)$", (ROOT / "scripts/rooms.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(room for floor in site["house"].floors() for room in floor)
    for room in headings:
        names = re.findall(r"<code>(\w+)</code>", site["guides"].names_of(room))
        module = import_module(f"hfsae.{room}")
        assert all(hasattr(module, name) for name in names), room


@pytest.mark.browser
def test_the_search_and_the_menu_of_the_guides(site, tmp_path, browser):
    site["guides"].build(tmp_path)
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((tmp_path / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("nav input", "anomalous absorption")
    assert page.inner_text("#found") == "Nothing found"
    page.fill("nav input", "absorption")
    assert "Probing" in page.inner_text("#found")
    page.click("nav button")
    page.click("summary:text-is('Train')")
    page.click("nav >> text=Variants, options and L0")
    assert page.inner_text("h1") == "Variants, options and L0"
    page.close()


def test_an_arrow_is_left_out_where_others_lead_the_same_way(site):
    house = site["house"]
    lines = {("cli", "demo"), ("demo", "hub"), ("cli", "hub"), ("demo", "lm"), ("hub", "lm")}
    assert house.without_detours(lines) == {("cli", "demo"), ("demo", "hub"), ("hub", "lm")}
    lines = house.imports(["cli", "demo", "lm", "io"])
    assert {("cli", "demo"), ("demo", "lm"), ("lm", "io")} <= lines
    assert all(line not in lines for line in (("lm", "demo"), ("io", "lm"), ("lm", "lm")))


@pytest.mark.slow
@pytest.mark.pages
def test_the_reference_and_the_guides_are_made_without_a_warning_or_a_broken_link(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-W", "error::UserWarning", "scripts/docs.py", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "hfsae/models/jumprelu.html").read_text(encoding="utf-8")
    assert "JumpReLUSAE" in page and "2407.14435" in page
    assert '<a href="../../index.html">Guides</a>' in page
    assert "Variants, options and L0" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not [*broken_links(tmp_path)]


@pytest.fixture(scope="module")
def shape():
    pytest.importorskip("grimp")
    return import_module("shape")


def test_the_package_keeps_its_shape(shape):
    outside = [str(figure) for figure in shape.figures() if not figure.holds]
    assert not outside, outside


def test_scripts_import_public_names_only(shape):
    """`hfsae.X`, or a name of a room's `__init__`: what else a script needs is a missing one."""
    folder = ROOT / "scripts"
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    assert len(paths) > 50
    found = {name: [*shape.private_imports(path)] for name, path in paths.items()}
    assert not {name: private for name, private in found.items() if private}


@pytest.mark.parametrize(
    ("line", "private"),
    [
        ("import hfsae", []),
        ("from hfsae import Refused, runs", []),
        ("from hfsae.runs import read_recipe", []),
        ("from hfsae.cli import main, parse_recipe", []),
        (
            "def f():\n    from hfsae.io.files import read_json",
            ["hfsae.io.files.read_json"],
        ),
        ("from hfsae.io import files", ["hfsae.io.files"]),
        ("import hfsae.io.files", ["hfsae.io.files"]),
    ],
)
def test_a_name_is_public_where_an_init_lists_it(shape, line, private, tmp_path):
    (tmp_path / "script.py").write_text(line + "\n")
    assert [*shape.private_imports(tmp_path / "script.py")] == private
