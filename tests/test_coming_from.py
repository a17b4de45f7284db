"""The page for users of other libraries: our calls run, and their names exist in their packages."""

import ast
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

import hfsae
from hfsae.cli.table import VERBS

from .tiny import TEXTS, make_sae, tiny_recipe

NOTHING = hfsae.EvaluationArguments(n_tokens=0)
PAGE = Path(__file__).parents[1] / "scripts/recipes/coming_from.md"
TEXT = PAGE.read_text(encoding="utf-8")
PACKAGES = {
    "SAELens": "sae_lens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify",
    "nnsight": "nnsight",
}
# The reader's own names, torch's and transformers', and Python's
OTHERS = {"sae", "x", "ae", "model", "tokens", "prompt", "hidden", "data", "buffer", "submodule"}
OTHERS |= {"tokenized", "gpt", "trainer_cfg", "steering_hook", "activation_store", "recon", "grad"}
OTHERS |= {"activation_scaler", "torch", "save", "state_dict", "layers", "max_new_tokens"}
# TransformerLens' own, from which SAELens' model inherits
OTHERS |= {"hooks", "fwd_hooks"}


def table(title: str) -> list[list[str]]:
    """Cells of each row below a heading."""
    section = re.split(rf"^## {title}$", TEXT, flags=re.MULTILINE)[1].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    return rows[2:]


def code(cell: str) -> str:
    return re.findall(r"`([^`]+)`", cell)[0]


@pytest.fixture
def names(tmp_path, monkeypatch, loads, tiny_lm, tiny_tokenizer):
    """Those of the page's first block, with tiny models; SAEs from elsewhere are a tiny one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    for part in (tiny_lm, tiny_tokenizer):
        part.save_pretrained("tiny")
    loaded, load_sae, train = hfsae.load_lm("tiny"), hfsae.load, hfsae.train

    def load(*args, **options):
        inspect.signature(load_sae).bind(*args, **options)
        return make_sae("layers.1", "topk")

    recipe = tiny_recipe(tmp_path, evaluation=NOTHING, collect_tokens=0)

    def train_tiny(**given):
        given |= {"d_sae": 32, "n_tokens": 640, "recipe": recipe}
        return train(**given | {name: 4 for name in ("k", "target_l0") if name in given})

    monkeypatch.setattr(hfsae, "load_lm", lambda name, **options: loaded)
    monkeypatch.setattr(hfsae, "load", load)
    monkeypatch.setattr(hfsae, "load_set", load)
    monkeypatch.setattr(hfsae, "list_saes", lambda source: [])
    monkeypatch.setattr(hfsae, "train", train_tiny)
    own: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(block.replace("layers.12", "layers.1"), own)
    return own


@pytest.mark.parametrize("title", PACKAGES)
def test_our_calls_run(title, names):
    rows = table(title)
    assert len(rows) >= 6
    for _, _, ours, *_ in rows:
        words = shlex.split(code(ours)) if code(ours).startswith("hfsae ") else []
        if words:
            assert words[1] in VERBS
        else:
            exec(code(ours).replace("layers.12", "layers.1"), names)


@pytest.mark.parametrize(("title", "package"), PACKAGES.items())
def test_their_names_exist(title, package):
    """Functions, classes, arguments and fields in the calls are defined in their sources."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed here")
    defined = set()
    for file in Path(found.origin).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
    used = set()
    for _, theirs, *_ in table(title):
        for node in ast.walk(ast.parse(code(theirs))):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.keyword):
                used.add(node.arg)
    assert len(used) > 8 and used - defined - OTHERS == set()
