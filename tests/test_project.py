"""What surrounds the code: metadata, workflows, and the API reference."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hfsae

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
    listed += "rooms = {'presets', 'recipe', 'study', 'training', 'explanations'}\n"
    listed += "for name in {*hfsae.__all__} - apart - rooms: getattr(hfsae, name)\n"
    listed += "for name, module in sys.modules.items():\n"
    listed += "    if name.split('.')[0] == 'hfsae': print(module.__file__)\n"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, cwd=ROOT)
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


@pytest.mark.slow
def test_the_reference_is_made_of_the_docstrings_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, "-W", "error::UserWarning", "scripts/docs.py", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "hfsae/models/jumprelu.html").read_text(encoding="utf-8")
    assert "JumpReLUSAE" in page and "2407.14435" in page


def test_the_package_keeps_its_shape():
    shape = runpy.run_path(str(ROOT / "scripts/shape.py"))
    outside = [str(figure) for figure in shape["figures"]() if not figure.holds]
    assert not outside, outside
