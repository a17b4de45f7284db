"""The loops over entries against dense algebra: torch's, and Triton's kernels by the same tests.

Kernels need a GPU, or Triton's interpreter, which the environment asks for before Triton is first
imported: so without a GPU they are tested in a process of their own, which a test below starts.
"""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hfsae.ops import Entries, Workspace, sparse

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TORCH = ["cpu", "as_on_a_gpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CARD = pytest.param("triton", marks=pytest.mark.gpu)
KERNELS = ["interpreted"] if INTERPRETED else [CARD]
MODELS = Path(__file__).parents[1] / "models" / "test_sparse.py"
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None or INTERPRETED, reason="no Triton, or not compiling"
)


@pytest.fixture(params=KERNELS if INTERPRETED else TORCH + KERNELS)
def device(request, way_of_gpu):
    """Of tensors; which loops run over them is set to what the parameter says."""
    way_of_gpu(request.param != "cpu", request.param in ("interpreted", "triton"))
    device = torch.device("cuda" if request.param in ("cuda", "triton") else "cpu")
    assert (sparse.kernels_for(torch.zeros(1)) is not None) == sparse.use_triton
    return device


# name: (tokens, d_sae, d, share of pairs that are entries)
SHAPES = {
    "ordinary": (7, 11, 37, 0.3),
    "whole tiles": (4, 16, 128, 0.5),
    "wider than a tile": (3, 4, 200, 0.8),
    "long bags": (40, 4, 5, 0.9),
    "one dimension": (6, 9, 1, 0.3),
    "one entry": (1, 1, 2, 1.0),
    "no entry": (6, 9, 5, 0.0),
}


@pytest.fixture(params=SHAPES, ids=lambda name: name.replace(" ", "_"))
def problem(request, device):
    """Entries, their mask, x and W; the second token and the third latent have no entry."""
    n_tokens, d_sae, d, share = SHAPES[request.param]
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(n_tokens, d_sae, generator=generator) < share
    mask[1:2], mask[:, 2:3] = False, False
    x, W = (torch.randn(n, d, generator=generator).to(device) for n in (n_tokens, d_sae))
    latents, tokens = mask.T.nonzero(as_tuple=True)
    at = Entries(tokens.to(device), latents.to(device), n_tokens, d_sae)
    return at, mask.to(device), x, W


def values_of(at: Entries) -> tuple[torch.Tensor, torch.Tensor]:
    """One value an entry, and the matrix of them."""
    values = torch.randn(len(at), generator=torch.Generator().manual_seed(1))
    values = values.to(at.tokens.device)
    matrix = values.new_zeros(at.n_tokens, at.d_sae)
    return values, matrix.index_put((at.tokens, at.latents), values).double()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_dot_products_are_those_of_the_matrix_product(problem):
    at, mask, x, W = problem
    expected = (x.double() @ W.double().T).T[mask.T]
    assert_close(at.dots(x, W), expected)
    assert_close(at.dots(x.T.contiguous().T, W), expected)


def test_sums_are_those_of_matrix_products(problem):
    at, _, x, W = problem
    values, matrix = values_of(at)
    assert_close(at.sums_by_token(values, W), matrix @ W.double())
    assert_close(at.sums_by_latent(values, x), matrix.T @ x.double())
    assert_close(at.totals_by_latent(values), matrix.sum(0))
    assert_close(at.gram(values), matrix.T @ matrix)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, as on Linux")
def test_sums_of_products_leave_no_memory_behind():
    """torch's product of sparse matrices kept 8 bytes a number of the result, here 50 MB in all."""
    at = Entries(torch.arange(32).repeat(256), torch.arange(256).repeat_interleave(32), 32, 256)

    def megabytes() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    values = torch.ones(len(at))
    at.gram(values)
    before = megabytes()
    for _ in range(100):
        at.gram(values)
    assert megabytes() - before < 20


def test_sums_by_latent_are_the_same_a_row_at_a_time(problem, monkeypatch):
    """Matrices that fit in no cache are made in blocks of rows; here each is one row."""
    at, _, x, _ = problem
    values, matrix = values_of(at)
    monkeypatch.setattr(sparse, "_BLOCK", 1)
    monkeypatch.setattr(sparse, "_GPU_BLOCK", 1)
    assert_close(at.sums_by_latent(values, x), matrix.T @ x.double())


def test_sums_by_latent_fill_what_the_workspace_spares(problem):
    at, _, x, _ = problem
    values, matrix = values_of(at)
    p = torch.torch.nn.Parameter(torch.empty(at.d_sae, x.shape[1], device=x.device))
    p.grad, at.workspace = torch.full_like(p, torch.nan), Workspace()
    memory = p.grad.data_ptr()
    at.workspace.recycle_(p)
    sums = at.sums_by_latent(values, x)
    assert sums.data_ptr() == memory
    assert_close(sums, matrix.T @ x.double())


def loss_and_gradients(of, leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    loss = of(*leaves)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("floor", [-1e9, 0.0, 1e9], ids=["all", "some", "none"])
def test_gradients_are_those_of_dense_algebra(problem, floor):
    """However many entries fire: those that do not are left out of sums."""
    at, mask, x, W = problem
    ones = torch.ones(at.d_sae, device=x.device)
    leaves = [x, W.T.clone(), 0.5 * ones, 0.1 * ones + W[:, 0], W.flip(1)]

    def sparse_loss(x, W_enc, b, scale, W_dec):
        z = at.project(x, W_enc, b) * at.of(scale)
        return at.combine(z * (z > floor), W_dec).square().sum()

    def dense_loss(x, W_enc, b, scale, W_dec):
        z = (x @ W_enc + b) * scale * mask
        return ((z * (z > floor)) @ W_dec).square().sum()

    found = loss_and_gradients(sparse_loss, leaves)
    expected = loss_and_gradients(dense_loss, [leaf.double() for leaf in leaves])
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine.double(), theirs, rtol=1e-5, atol=1e-5 * float(theirs.norm()))


@pytest.mark.parametrize("device", [*TORCH, CARD], indirect=True)
def test_results_repeat_to_the_bit(problem):
    at, _, x, W = problem
    values, _ = values_of(at)
    for loop, rows in ((at.dots, W), (at.sums_by_token, W), (at.sums_by_latent, x)):
        first = x if loop == at.dots else values
        assert torch.equal(loop(first, rows), loop(first, rows))
    assert torch.equal(at.totals_by_latent(values), at.totals_by_latent(values))


@pytest.mark.parametrize("device", KERNELS, indirect=True)
def test_kernels_take_bfloat16_and_sum_in_float32(problem):
    at, mask, x, W = problem
    values, matrix = values_of(at)
    x, W = x.bfloat16(), W.bfloat16()
    assert_close(at.dots(x, W), (x.double() @ W.double().T).T[mask.T])
    assert_close(at.sums_by_token(values, W), matrix @ W.double())
    assert_close(at.sums_by_latent(values, x), matrix.T @ x.double())


@needs_triton
def test_an_amd_card_takes_the_kernels(way_of_gpu, monkeypatch):
    """PyTorch's tensors on it are CUDA tensors."""
    from hfsae.ops import fused

    way_of_gpu(True, True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(fused, "dots", lambda x, W, tokens, latents: torch.full((1,), 7.0))
    at = Entries(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1, 1)
    assert float(at.dots(torch.ones(1, 2), torch.ones(1, 2))) == 7.0


@needs_triton
@pytest.mark.slow
def test_kernels_pass_these_tests_in_tritons_interpreter():
    step = f"{MODELS}::test_a_sparse_step_the_way_of_a_gpu_has_the_gradients_of_a_dense_one"
    # one of each way to choose latents and to sum over them: a step takes the interpreter a second
    kinds = "relu", "jumprelu", "topk", "matryoshka_batch_topk", "gated"
    steps = [f"{step}[{kind}_sae]" for kind in kinds]
    without = "memory_behind", "repeat_to_the_bit", "never_go_to_kernels", "keeps_gradients"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, *steps]
    command += ["-k", f"not ({' or '.join(without)})"]  # which have nothing of the interpreter
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cards_that_are_not_here(capability, monkeypatch, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hfsae.ops import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    places, table = dict.fromkeys(("tokens", "latents", "rows", "offsets"), "*i64"), "*bf16"
    types = places | dict.fromkeys(("x", "W", "table"), table) | {"weights": "*fp32"}
    types |= {"out": "*fp32", "n": "i64", "d": "i32"}
    for kernel, tile in (
        (fused.dots_kernel, fused.DOTS_TILE),
        (fused.sums_kernel, fused.SUMS_TILE),
    ):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        sizes = dict(zip(("n_entries", "n_numbers"), tile, strict=True))
        source = ASTSource(kernel, signature=signature, constexprs=sizes)
        made = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"enable_fp_fusion": True},
        )
        ptx = made.asm["ptx"]
        assert "fma.rn.f32" in ptx
        assert not any(word in ptx for word in ("atom.", "red.global", "mma.", "tf32"))


def test_cpu_tensors_never_go_to_kernels_and_cuda_does_without_triton(
    monkeypatch, way_of_gpu, caplog
):
    assert sparse.kernels_for(torch.zeros(1)) is None
    way_of_gpu(True, True)
    monkeypatch.setitem(sys.modules, "triton", None)
    sparse._has_triton.cache_clear()
    with caplog.at_level(logging.INFO, logger="hfsae.ops.sparse"):
        assert sparse.kernels_for(torch.zeros(1)) is None
        assert sparse.kernels_for(torch.zeros(1)) is None
    sparse._has_triton.cache_clear()
    assert [r.message[:23] for r in caplog.records] == ["Triton is not installed"]


def test_a_workspace_keeps_gradients_that_are_float32_and_in_one_piece():
    gradients = {
        "kept": torch.ones(4, 6),
        "by column": torch.ones(6, 4).T,
        "bfloat16": torch.ones(4, 6, dtype=torch.bfloat16),
        "every second column": torch.ones(4, 12)[:, ::2],
    }
    for what, grad in gradients.items():
        workspace, matrix = Workspace(), torch.nn.Parameter(torch.zeros(4, 6, dtype=grad.dtype))
        matrix.grad = grad
        workspace.recycle_(matrix)
        shape = (6, 4) if what == "by column" else (4, 6)
        taken = workspace.take(*shape, device=torch.device("cpu"))
        assert matrix.grad is None and taken.dtype == torch.float32 and taken.is_contiguous()
        assert (taken.data_ptr() == grad.data_ptr()) == (what in ("kept", "by column")), what
    vector = torch.nn.Parameter(torch.zeros(4))
    vector.grad = torch.ones(4)
    Workspace().recycle_(vector)
    assert vector.grad is not None
