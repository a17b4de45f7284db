"""Fixtures for all tests: language models and a tokenizer small enough to build in milliseconds.

Nothing here or in a test may reach a network; what needs a GPU or a packaged model skips itself.
The Hugging Face Hub is `LoopbackHub`, for tests that ask for `hub`; the others are offline.
"""

# ruff: noqa: E402 - the environment is set between the imports

import ast
import atexit
import copy
import gc
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

# Libraries read it when they are loaded. Fits here are too small to share: threads of scikit-learn
# that wait for each other beside other tests take eight times the processor time.
os.environ["OMP_NUM_THREADS"] = "1"

gc.disable()  # until tests are collected: searching what is imported for garbage takes a second

from jaxtyping import _import_hook, install_import_hook

from .loopback_hub import LoopbackHub, hub_variables

# Shapes are checked where they are written. Elsewhere types are pyright's: checked at each call,
# those of functions that go through a text by characters take half of the time of a run.
_PACKAGE = Path(__file__).parent.parent / "hfsae"
SHAPED = [
    ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(_PACKAGE.rglob("*.py"))
    if re.search(r"^ *from jaxtyping import", path.read_text(), re.MULTILINE)
]


class _Transformer(_import_hook.JaxtypingTransformer):
    """Checks a function inside another only if it names a shape. It is made anew in each call, and
    so would be its checks, which took half of the time of a pass with hooks."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        hints = [arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
        shapes = (
            _is_shape(part) for hint in [*hints, node.returns] if hint for part in ast.walk(hint)
        )
        if not any(isinstance(parent, ast.FunctionDef) for parent in self._parents) or any(shapes):
            return super().visit_FunctionDef(node)
        self._parents.append(node)
        self.generic_visit(node)
        self._parents.pop()
        return node


def _is_shape(hint: ast.AST) -> bool:
    """Float[Tensor, "tokens d"], for example."""
    return (
        isinstance(hint, ast.Subscript)
        and isinstance(hint.slice, ast.Tuple)
        and any(
            isinstance(part, ast.Constant) and isinstance(part.value, str)
            for part in hint.slice.elts
        )
    )


_import_hook.JaxtypingTransformer = _Transformer
install_import_hook(SHAPED, "beartype.beartype")

# huggingface_hub reads its variables once, when it is imported: before that the port must be known
HUB = LoopbackHub()
_HF_HOME = Path(tempfile.mkdtemp(prefix="hfsae-tests-"))
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ |= hub_variables(HUB.url, _HF_HOME)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.utils._http
import jaxtyping
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import hfsae.hub.upload
import hfsae.io.hub_client
from hfsae.cards import figures
from hfsae.comparison import plots
from hfsae.io.processor import multiplies_bfloat16
from hfsae.lm import LoadedLM, load_lm, located
from hfsae.ops import sparse
from hfsae.packaged import PACKAGED_LMS

pytest.register_assert_rewrite("tests.helpers", "tests.training.planted")

# A process that is killed loses nothing that it has written; only a machine that loses its power
# does, which no test is of. A disk takes 8 ms each time; four trainings waited 400 times.
os.fsync = lambda file: None

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>"]
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
N_LAYERS = 4


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # sizes here are too small to share, and results do not vary


# Those of the packaged model, which takes seconds to read: one process has them all.
_OF_PACKAGED_LM = ("test_cli", "test_readme", "test_steering", "test_shipped_sae", "test_packaged")
_OF_PACKAGED_LM = tuple(f"tests/{name}.py" for name in (*_OF_PACKAGED_LM, "lm/test_load"))
_OF_APP = "tests/demo/"  # one process serves it, and one browser visits it
_OF_RUNS = ("comparison", "demo", "explanations", "study", "tuning")
_LONG_FILES = (*_OF_PACKAGED_LM, _OF_APP, "tests/training/test_ranks.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """That of `--dist loadfile`, but for the files of the packaged model and those of the app."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            groups = (_OF_PACKAGED_LM, _OF_APP)
            return next((str(group) for group in groups if file.startswith(group)), file)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long files, to end in time, and skip the tests that cannot run here.

    A browser's test that fails runs once more, since page, server and browser share two processors
    with the other tests; the closing lines name each that did.
    """
    gc.freeze()
    gc.enable()
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG_FILES))
    for item in items:
        if "browser" in item.keywords:
            item.add_marker(pytest.mark.flaky(reruns=1))
    _skip(config, items)


def _skip(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where a test cannot run it is skipped once, with the reason, however many cases it has."""
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "torch.cuda.is_available() is False here"
    if not multiplies_bfloat16(torch.device("cpu")) and not os.environ.get("HFSAE_SLOW"):
        reasons["slow"] = (
            "takes minutes on a processor without bfloat16; HFSAE_SLOW=1 has it run all the same"
        )
    seen: set[tuple[str, str]] = set()
    further = []
    for item in items:
        for keyword, reason in reasons.items():
            if keyword not in item.keywords:
                continue
            test = keyword, item.nodeid.partition("[")[0]
            further += [item] if test in seen else []
            seen.add(test)
            item.add_marker(pytest.mark.skip(reason=reason))
    config.hook.pytest_deselected(items=further)
    items[:] = [item for item in items if item not in further]


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_stays() -> None:
    """To search it for garbage takes 0.3 s, twice in each training."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Shapes are checked in the tests of rooms. Whole runs make the same calls thousands of times,
    and checks would take up to half of their time."""
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    is_run = "learns" in item.keywords or room in _OF_RUNS or room.endswith(".py")
    jaxtyping.config.update("jaxtyping_disable", is_run)


def pytest_unconfigure() -> None:
    """Let libraries in C++ release their objects."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _close_hub() -> Iterator[None]:
    yield
    HUB.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub that this test's process may reach, with an empty cache and without a login.

    The client's pauses before retries take no time; `hub.waits` has their seconds.
    """
    HUB.start(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hfsae.io.hub_client.with_retries(lambda: None, "a first request")  # which a Hub has answered
    waiting = [hfsae.hub.upload, hfsae.io.hub_client]
    waiting += [huggingface_hub.utils._http, huggingface_hub.file_download]
    huggingface_hub.HfFileSystem.clear_instance_cache()  # it remembers listings
    if importlib.util.find_spec("datasets"):
        import datasets.config
        import datasets.utils.file_utils

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        # else it asks a second server, datasets-server.<host of the Hub>
        monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)
        # 5 s after each stream, for threads of Arrow that would be in the way of a process's end
        monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        waiting.append(datasets.utils.file_utils)
    clock = SimpleNamespace(**vars(time) | {"sleep": HUB.waits.append})
    for module in waiting:
        monkeypatch.setattr(module, "time", clock)
    yield HUB
    for part in ("hub", "datasets"):
        shutil.rmtree(_HF_HOME / part, ignore_errors=True)
    for part in ("token", "stored_tokens"):
        (_HF_HOME / part).unlink(missing_ok=True)


@pytest.fixture
def go_offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A call, after which the process is as with HF_HUB_OFFLINE=1."""
    return partial(monkeypatch.setattr, huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def unreachable_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """`hub`, but the client's way to it is a proxy, and where that should be nobody listens."""
    monkeypatch.setenv("HTTP_PROXY", hub.unreachable_url)
    monkeypatch.delenv("NO_PROXY")
    huggingface_hub.close_session()  # of the client, which reads the variables when it is made
    yield hub
    huggingface_hub.close_session()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte after <pad> 0, <eos> 1, <bos> 2: any text survives the round trip."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    pad, eos, bos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, bos_token=bos
    )


@pytest.fixture(scope="session")
def spaced_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with a token more, "a" after a space, in the place of the last byte."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab = {("Ġa" if i == VOCAB_SIZE - 1 else token): i for token, i in model["vocab"].items()}
    tokenizer.backend_tokenizer.model = models.BPE(vocab=vocab, merges=[("Ġ", "a")])
    return tokenizer


_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,  # 2 * 12 != 16: attention outputs are not as wide as the residual stream
    "intermediate_size": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_GEMMA_SIZES = _SIZES | {"sliding_window": 8, "query_pre_attn_scalar": 12}
_BOTH_ATTENTIONS = ["sliding_attention", "full_attention"] * 2
_UNGROUPED_SIZES = {
    key: size for key, size in _SIZES.items() if key not in ("num_key_value_heads", "head_dim")
}
_GPT2_SIZES = {"vocab_size": VOCAB_SIZE, "n_embd": 16, "n_layer": N_LAYERS, "n_head": 2}
_GPT2_SIZES |= {"n_positions": 256, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_VISION_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION_SIZES |= {"intermediate_size": 32, "image_size": 28, "patch_size": 14}

# family -> (config's class name, its sizes): every way in which decoders lay out their modules
TINY_CONFIGS = {
    "gemma2": ("Gemma2Config", _GEMMA_SIZES),
    "gemma3": ("Gemma3TextConfig", _GEMMA_SIZES | {"layer_types": _BOTH_ATTENTIONS}),
    "llama": ("LlamaConfig", _SIZES),
    "mistral": ("MistralConfig", _SIZES | {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", _UNGROUPED_SIZES | {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3Config", _SIZES),
    "gpt2": ("GPT2Config", _GPT2_SIZES),
    "gpt_neox": ("GPTNeoXConfig", _UNGROUPED_SIZES),
}


def _frozen(lm: PreTrainedModel) -> PreTrainedModel:
    return lm.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_tiny_lm() -> Callable[..., PreTrainedModel]:
    """make_tiny_lm("llama", seed=1, num_hidden_layers=2): a frozen random model, new each call."""

    def make(family: str = "gemma2", *, seed: int = 0, **sizes: object) -> PreTrainedModel:
        config_class, defaults = TINY_CONFIGS[family]
        config = getattr(transformers, config_class)(**defaults | sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm = transformers.AutoModelForCausalLM.from_config(config)
            # at the usual initial 0.02 every prediction is nearly uniform: nothing to tell apart
            for parameter in lm.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.3)
        return _frozen(lm)

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_tiny_lm: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Gemma 2, d = 16, 4 layers, vocabulary of `tiny_tokenizer`. Shared: leave it as it is."""
    return make_tiny_lm("gemma2")


@pytest.fixture(scope="session", params=list(TINY_CONFIGS))
def any_lm(
    request: pytest.FixtureRequest, make_tiny_lm: Callable[..., PreTrainedModel]
) -> PreTrainedModel:
    """A tiny model of each decoder family in turn."""
    return make_tiny_lm(request.param)


@pytest.fixture(scope="session")
def multimodal_lm() -> PreTrainedModel:
    """A tiny Gemma 3 with a vision tower; its decoder lies one level deeper."""
    config = transformers.Gemma3Config(
        text_config=_GEMMA_SIZES,
        vision_config=_VISION_SIZES,
        mm_tokens_per_image=4,
        image_token_index=VOCAB_SIZE - 1,
        boi_token_index=VOCAB_SIZE - 2,
        eoi_token_index=VOCAB_SIZE - 3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _frozen(transformers.Gemma3ForConditionalGeneration(config))


@pytest.fixture(scope="session")
def packaged_lm() -> LoadedLM:
    """The real SmolLM2-135M in bfloat16, with its tokenizer. Shared: leave it as it is."""
    return _of_package("HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def packaged_gemma(pytestconfig: pytest.Config) -> LoadedLM:
    """The real Gemma 3 270M in bfloat16, with its tokenizer. Shared: leave it as it is.

    Unpacking it takes a minute and a half. A copy that hfsae has left for this machine's user is
    read; where there is none, the first run leaves one in .pytest_cache. Each is held to its hash.
    """
    name, home = "google/gemma-3-270m", Path.home() / ".cache" / "huggingface"
    with pytest.MonkeyPatch.context() as patch:
        cache = getattr(pytestconfig, "cache", None)
        if (home / "hfsae" / name.replace("/", "--")).is_dir():
            patch.setattr(located, "HF_HOME", str(home))
        elif cache:
            patch.setattr(located, "HF_HOME", str(cache.mkdir("packaged")))
        return _of_package(name)


def _of_package(name: str) -> LoadedLM:
    if not PACKAGED_LMS[name].paths:
        pytest.skip(f"{name} is not installed: {PACKAGED_LMS[name].install_command}")
    pytest.importorskip("gguf")
    return load_lm(name, source="packaged", dtype="bfloat16")


_are_looked_at = False  # figures, by the test that runs
_draw, _save_plot = figures.draw, plots.save


@pytest.fixture(autouse=True)
def _figures_are_drawn_where_they_are_looked_at(request) -> Iterator[None]:
    """Drawing takes half of the time of a tiny run: tests that look at figures are `renders`."""
    global _are_looked_at
    _are_looked_at = request.node.get_closest_marker("renders") is not None
    yield
    _are_looked_at = False


def _draw_if_looked_at(folder: str | Path) -> list[Path]:
    (Path(folder) / "figures").mkdir(exist_ok=True)
    return _draw(folder) if _are_looked_at else []


def _save_plot_if_looked_at(figure, path: Path) -> Path:
    if _are_looked_at:
        return _save_plot(figure, path)
    path.write_bytes(b"a figure")
    return path


figures.draw, plots.save = _draw_if_looked_at, _save_plot_if_looked_at


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """install("a_module", "1.0"): an empty Python package, which counts as installed; its folder.

    As not installed count those that a test sets to None in `sys.modules`.
    """
    packages = tmp_path / "site-packages"

    def make(module: str, version: str = "1.0") -> Path:
        about = packages / f"{module}-{version}.dist-info"
        for path, text in (
            (packages / module / "__init__.py", ""),
            (about / "METADATA", f"Name: {module.replace('_', '-')}\nVersion: {version}\n"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(packages)
        return packages / module

    return make


@pytest.fixture(scope="module")
def citing() -> Iterator[SimpleNamespace]:
    """All names of scripts/citing/variants; unknown to transformers again after the module."""
    names: dict[str, object] = {}
    for path in sorted((_PACKAGE.parent / "scripts" / "citing" / "variants").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"citing_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        names |= {k: v for k, v in vars(module).items() if not k.startswith("__")}
    yield SimpleNamespace(**names)
    for config in [c for c in MODEL_MAPPING._extra_content if c.__module__.startswith("citing_")]:
        MODEL_MAPPING._extra_content.pop(config)
        CONFIG_MAPPING._extra_content.pop(config.model_type)
        del config.model_type  # without a name of its own it is no variant, whoever still holds it


@pytest.fixture
def own_module(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """own_module("mine", code): a file for `--import`, forgotten after the test."""
    paths, names = [*sys.path], list[str]()

    def write(name: str, code: str) -> str:
        names.append(name)
        file = tmp_path / f"{name}.py"
        file.write_text(code)
        return str(file)

    yield write
    sys.path[:] = paths
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A call: whether the processor has instructions for bfloat16."""

    def take(has_bfloat16: bool) -> None:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: has_bfloat16, raising=False)

    return take


@pytest.fixture
def without_bfloat16(processor: Callable[[bool], None]) -> None:
    """A processor that has no instructions for bfloat16."""
    processor(False)


@pytest.fixture
def way_of_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, bool], None]:
    """A call: whether CPU tensors take the way of CUDA tensors, and whether Triton's kernels."""

    def take(as_if_on_gpu: bool, use_triton: bool) -> None:
        monkeypatch.setattr(sparse, "as_if_on_gpu", as_if_on_gpu)
        monkeypatch.setattr(sparse, "use_triton", use_triton)

    return take


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """Arguments and options of each start of the app, which is not started."""
    pytest.importorskip("gradio")
    import hfsae.demo

    calls: list[tuple[tuple, dict]] = []
    monkeypatch.setattr(hfsae.demo, "launch", lambda *args, **more: calls.append((args, more)))
    return calls


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of this process end after 4 kB, as on a disk that is full."""
    resource = pytest.importorskip("resource")  # Windows has no such limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, old)


@pytest.fixture(autouse=True)
def _shapes_are_checked():
    """Long runs of `PlantedStream` check those of some steps only."""
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def as_for_users() -> None:
    """Without the type checks of the tests, which would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def _accelerate_where_the_test_is(request, monkeypatch):
    """On a machine with a GPU, accelerate picks it, once for all of the process."""
    if not torch.cuda.is_available():
        yield
        return
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def loads(monkeypatch, tiny_lm, tiny_tokenizer) -> list[str]:
    """Let every name be the tiny LM; the list grows by one for each time it is loaded."""
    return every_lm_is(tiny_lm, tiny_tokenizer, monkeypatch)


def every_lm_is(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What `loads` does, for fixtures of other scopes."""
    seen: list[str] = []

    def load_lm(name: str, **kwargs) -> LoadedLM:
        seen.append(name)
        return LoadedLM(lm, tokenizer, "a test")

    monkeypatch.setattr("hfsae.runs.inputs.load_lm", load_lm)
    monkeypatch.setattr("hfsae.cli.recipes.refuse_absent", lambda *where: None)
    monkeypatch.setattr("hfsae.runs.checks.empty_lm", lambda name, **kwargs: lm)
    return seen


@pytest.fixture
def in_processes():
    """Do `work(part, summed)` for each part at once, `summed` being the sum over all of them."""

    def run(parts, work):
        held = [None] * len(parts)
        barrier = threading.Barrier(len(parts), timeout=30)

        def one(rank, part):
            def summed(x):
                held[rank] = x.clone()
                barrier.wait()
                total = sum(held)
                barrier.wait()
                return total

            return work(part, summed)

        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(one, range(len(parts)), parts))

    return run


def chromium() -> str:
    """Path of a browser; skips the test where there is none."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell")
    pytest.importorskip("playwright")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """One browser for all tests of a process: Playwright allows no second one beside it."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()
