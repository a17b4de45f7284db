"""The package as a whole: light to import, pinned public names, short functions; tests alike."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import hfsae
from hfsae.io import file_names as names
from hfsae.models.base import class_of
from hfsae.runs.recipe import DEFAULT_VARIANT

from .helpers import run_python

PACKAGE = Path(hfsae.__file__).parent
HEAVY = {"accelerate", "datasets", "pyarrow", "matplotlib", "jsonargparse", "gradio", "triton"}
HEAVY |= {"scipy", "docstring_parser", "markdown_it", "gguf"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_the_page_of_floors_is_what_import_linter_checks():
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)[1]
    checked = [re.findall(r"hfsae\.(\w+)", line) for line in layers.splitlines()]
    page = hfsae.__doc__.partition("**Floors.**")[2].partition("**A datum")[0]
    shown = [re.split(r"\s{2,}", line.strip())[0].split(" | ") for line in page.splitlines()[2:]]
    assert [floor for floor in shown if floor != [""]] == checked
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == {room for floor in checked for room in floor}


def test_nothing_in_the_package_imports_its_root():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert "hfsae" not in {name.partition(".")[0] for name in names}, (path, node.lineno)


def _last_words(message: ast.expr | None) -> str:
    """The constant text at a message's end; empty where it ends in a value."""
    if isinstance(message, ast.BinOp):
        return _last_words(message.right)
    if isinstance(message, ast.JoinedStr):
        return _last_words(message.values[-1])
    value = message.value if isinstance(message, ast.Constant) else ""
    return value if isinstance(value, str) else ""


def test_no_message_of_a_refusal_ends_with_a_full_stop():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if getattr(node.exc.func, "id", "") in ("Refused", "Damaged", "HubRefused"):
                message = node.exc.args[0] if node.exc.args else None
                assert not _last_words(message).endswith("."), (path, node.lineno)


@pytest.mark.parametrize("argv", [[], ["--version"], ["--help"], ["trian"]], ids=" ".join)
def test_what_needs_no_tensors_imports_no_torch(argv):
    """Nor transformers, which takes half a second alone."""
    listed = (
        "import sys\nfrom hfsae.cli import main\n"
        f"code = main({argv})\nprint('modules', *sys.modules)\nsys.exit(code)"
    )
    done = run_python(listed)
    assert done.returncode == (2 if argv == ["trian"] else 0), done.stderr
    imported = set(done.stdout.rpartition("modules ")[2].split())
    assert "hfsae.cli.table" in imported
    assert not imported & ({"torch", "transformers", "numpy", "huggingface_hub"} | HEAVY)
    own = {name for name in imported if name.startswith("hfsae.")}
    assert len(own) <= 13, own  # of more than 260


def test_import_hfsae_imports_almost_nothing_and_names_come_when_they_are_used():
    """With what the extras bring made unimportable, too; transformers then knows the variants, and
    a name that needs an extra says which."""
    block = (
        "import sys\n"
        f"for name in {sorted(HEAVY)}: sys.modules[name] = None\n"
        "import hfsae\n"
        "assert not {'torch', 'transformers', 'hfsae.models'} & {*sys.modules}\n"
        "assert len([n for n in sys.modules if n.startswith('hfsae.')]) <= 3\n"
        "hfsae.Refused\n"
        "assert 'torch' not in sys.modules\n"
        "from transformers import PreTrainedModel\n"  # whose imports make a circle
        "from transformers import AutoConfig\n"
        "assert AutoConfig.for_model('topk_sae', d_in=2, d_sae=4, k=1).k == 1\n"
        "assert hfsae.JumpReLUSAE is hfsae.models.JumpReLUSAE\n"
        "sae = hfsae.JumpReLUSAE(hfsae.JumpReLUSAEConfig(d_in=4, d_sae=8))\n"
        "assert sae.W_dec.shape == (8, 4)\n"
        "try: hfsae.Trainer\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_python(block)
    told = "hfsae.Trainer needs accelerate: pip install 'hfsae[train]'"
    assert done.returncode == 0 and done.stdout.strip() == told, done.stderr


def test_variants_are_known_to_transformers_where_it_is_imported_last():
    """With their methods: `to_saelens` comes with AutoModel alone."""
    block = "from hfsae.lm import load_lm; import sys, transformers\n"
    block += "from transformers import AutoConfig, AutoModel\n"
    block += "config = AutoConfig.for_model('topk_sae', d_in=2, d_sae=4, k=1)\n"
    block += "assert config.k == 1\n"
    block += "sys.modules['sae_lens'] = None\n"
    block += "try: AutoModel.from_config(config).to_saelens()\n"
    block += "except ImportError as error: print(error)\n"
    done = run_python(block)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("an SAE of SAELens needs that package")


def test_public_names():
    modules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    for name in hfsae.__all__:
        assert getattr(hfsae, name) is not None and name in dir(hfsae)
    of_variants = {name for config in own_variants() for name in names_of(config)[:2]}
    assert of_variants <= {*hfsae.__all__}
    assert {*hfsae.__all__} - modules - of_variants == {
        "Edit",
        "EvaluationArguments",
        "FeatureStore",
        "Latents",
        "LoadedLM",
        "PackedRows",
        "Recipe",
        "Refused",
        "SAE",
        "SAEConfig",
        "SAEEntry",
        "SAEOutput",
        "TextArguments",
        "Trainer",
        "TrainingArguments",
        "attribute",
        "capture",
        "collect",
        "effects",
        "evaluate",
        "explain",
        "frozen",
        "graph",
        "latents",
        "list_saes",
        "load_set",
        "load",
        "load_encoder",
        "load_lm",
        "logit",
        "loss",
        "patch",
        "probe",
        "push",
        "save_as",
        "save_graph",
        "mean_difference",
        "save_steering_vector",
        "splice",
        "steer",
        "suggest_strength",
        "train",
        "uniformity",
        "write_fingerprint",
    }


def test_what_stands_above_the_models_names_no_variant():
    """So that a new one is one file: what others must know of it, its class says.

    Apart from the package's public names, what reads and writes other libraries' formats, the one
    file that is pushed beside weights and must run without this package, and, once, which variant
    a recipe means that names none.
    """
    apart = {"__init__.py", "hub/modeling_hfsae.py"}
    words = {word for config in own_variants() for word in names_of(config)}
    assert {"TopKSAE", "TopKSAEConfig", "topk_sae"} <= words
    named = re.compile(rf"\b({'|'.join(sorted(words))})\b")
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] in ("models", "convert") or place.as_posix() in apart:
            continue
        found = [(line, text) for line, text in spelled(parsed(path)) if named.search(text)]
        if place.as_posix() == "runs/recipe.py":
            assert found.pop()[1] == DEFAULT_VARIANT
        assert not found, f"{place} names a variant: {found}"


def own_variants() -> list[type[hfsae.SAEConfig]]:
    return [c for c in hfsae.models.variants() if c.__module__.startswith("hfsae.")]


def names_of(config: type[hfsae.SAEConfig]) -> tuple[str, ...]:
    return config.__name__, class_of(config.model_type).__name__, config.model_type


def spelled(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of names, attributes, imports and strings, but for docstrings."""
    nodes = list(ast.walk(tree))
    told = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}  # of modules, fields and so on
    for node in nodes:
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.alias(name=text):
                yield node.lineno, text
            case ast.Constant(value=str(text)) if id(node) not in told:
                yield node.lineno, text


def test_the_name_of_a_file_stands_once():
    """Sentences may have them, and so may what reads other libraries' files."""
    files = [value for key, value in vars(names).items() if key.isupper() and "." in value]
    assert {"config.json", "features/meta.json", "recipe.yaml"} <= {*files}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        is_of_others = place.parts[0] == "convert" and place.name != "formats.py"
        if place.as_posix() == "io/file_names.py" or is_of_others:
            continue
        for line, text in spelled(parsed(path)):
            is_name = any(text == file or text.endswith(f"/{file}") for file in files)
            assert not is_name, f"{place}:{line} has {text!r}, whose name is in io/file_names.py"


def test_no_function_is_longer_than_eighty_lines():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                n = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert n <= 80, f"{path.name}:{node.lineno} {node.name} has {n} lines"


def test_each_test_file_opens_with_a_sentence_and_imports_no_other_and_no_private_name():
    """What two of them need stands in tests/helpers.py, tiny.py or a conftest.py."""
    for path in (PACKAGE.parent / "tests").rglob("test_*.py"):
        tree = parsed(path)
        assert (ast.get_docstring(tree) or "").rstrip().endswith("."), path
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not any(re.match("test_", name) for name in names), (path, node.lineno)
                if names[0] == "hfsae":
                    assert not any(re.match("_[a-z]", name) for name in names), (path, node.lineno)
