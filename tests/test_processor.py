"""Language models in bfloat16 where a processor has no instructions for it."""

import copy
import os
import re
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from torch import nn

import hfsae.io.processor
from hfsae.cli.main import keep_freed_memory
from hfsae.io.processor import (
    Float32Products,
    keep_few_kernels,
    main_memory,
    name_of,
    spare_bfloat16_,
    without_denormals,
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [2**24, 1000])
def test_products_are_the_nearest_in_bfloat16_with_gradients_of_its_dtype(
    without_bfloat16, monkeypatch, bias, block
):
    monkeypatch.setattr(hfsae.io.processor, "_BLOCK", block)
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    model = nn.Sequential(layer)
    spare_bfloat16_(model)
    out = model(x)
    out.sum().backward()
    exact = x.double() @ layer.weight.double().T + (
        0 if layer.bias is None else layer.bias.double()
    )
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-6)
    assert x.grad is not None and out.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        x.grad, layer.weight.detach().sum(0).expand(5, 64), rtol=0.01, atol=0.01
    )


def test_other_dtypes_and_special_layers_are_left_alone(without_bfloat16):
    torch.manual_seed(0)

    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Special(8, 8))
    before, x = copy.deepcopy(model), torch.randn(3, 8)
    spare_bfloat16_(model)
    assert torch.equal(model(x), before(x)) and type(model[1]) is Special
    assert isinstance(copy.deepcopy(model)[0], Float32Products)


def test_a_processor_is_told_by_name_and_instructions():
    assert re.fullmatch(r".*\w.* \(\w+, \d+ threads?\)", name_of(torch.device("cpu")))


_COUNT_FAULTS = """
import ctypes, resource, sys, types
sys.modules["hfsae"] = types.ModuleType("hfsae")  # without the seconds of its own imports
sys.modules["hfsae"].__path__ = [sys.argv[1]]
import torch
from hfsae.cli.main import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of the usual size
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    one = torch.ones(4 * 2**20)  # 16 MiB
    two = one + 1
def count():
    work()
    before = faults()
    for _ in range(20):
        work()
    return faults() - before
by_default = count()
print(by_default, count() if keep_freed_memory() else "not glibc")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_freed_block_is_used_again_without_new_pages(monkeypatch):
    told = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    told.pop("GLIBC_TUNABLES", None)
    argv = [sys.executable, "-c", _COUNT_FAULTS, *hfsae.__path__]
    run = subprocess.run(argv, env=told, capture_output=True, text=True, check=True)
    by_default, _, kept = run.stdout.strip().partition(" ")
    if kept == "not glibc":
        pytest.skip("not glibc")
    assert int(by_default) > 20 * 4096 and int(kept) < 4096
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert not keep_freed_memory(), "what the environment says holds"


_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_GROW = """
import ctypes, sys, types
sys.modules["hfsae"] = types.ModuleType("hfsae")  # without the seconds of its own imports
sys.modules["hfsae"].__path__ = [sys.argv[1]]
import os, torch
from hfsae.io.processor import keep_few_kernels
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in fields]
mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None) or sys.exit(3)
mallinfo2.restype = Info
def used():
    info = mallinfo2()
    return info.uordblks + info.hblkhd
def grow():
    x, W = torch.ones(300, 192, dtype=torch.bfloat16), torch.ones(576, 192, dtype=torch.bfloat16)
    for n in range(1, 300):
        torch.nn.functional.linear(x[:n], W)
        if n == 149:
            before = used()
    print(used() - before, flush=True)
for prepare in (lambda: None, keep_few_kernels):  # each in a process that has multiplied nothing
    if os.fork() == 0:
        prepare()
        grow()
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_does_not_grow_with_each_new_length_of_a_text():
    """150 lengths more, after 149. By default they take some 85 MB where a processor multiplies
    bfloat16, until there were 1,024; with few kernels kept, the last ones replace the first."""
    told = {name: v for name, v in os.environ.items() if name not in _KERNELS}
    argv = [sys.executable, "-c", _GROW, *hfsae.__path__]
    run = subprocess.run(argv, env=told, capture_output=True, text=True, check=False)
    if run.returncode == 3:
        pytest.skip("no mallinfo2")
    by_default, kept = map(int, run.stdout.split())
    if by_default < 30 * 2**20:
        pytest.skip("no kernel for each length on this processor")
    assert kept < by_default / 5


def test_how_many_kernels_are_kept_is_what_the_environment_says():
    with patch.dict(os.environ, {"LRU_CACHE_CAPACITY": "7"}, clear=True):
        keep_few_kernels()
        assert os.environ == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


def test_memory_is_what_the_machine_and_its_control_groups_leave(tmp_path):
    """Version 2: the group of a job within that of a user; pages of files can be given back."""
    groups = tmp_path / "sys/fs/cgroup"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n")
    free, total = main_memory(tmp_path)
    assert total >= free > 2000
    for name, limit, used in (("user", "3000", "1200"), ("user/job", "max", "900")):
        (groups / name).mkdir(parents=True)
        (groups / name / "memory.max").write_text(f"{limit}\n")
        (groups / name / "memory.current").write_text(f"{used}\n")
        (groups / name / "memory.stat").write_text("anon 100\ninactive_file 200\n")
    assert main_memory(tmp_path) == (3000 - 1200 + 200, 3000)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu:/\n3:memory:/elsewhere\n")
    (groups / "memory").mkdir()
    for name, text in (
        ("limit_in_bytes", "5000"),
        ("usage_in_bytes", "4900"),
        ("stat", "total_inactive_file 300"),
    ):
        (groups / "memory" / f"memory.{name}").write_text(text)
    assert main_memory(tmp_path) == (400, 5000)


def test_denormals_are_zero_in_the_block_and_after_it_as_before():
    def smallest() -> float:
        return float(torch.tensor(1e-38) * 1e-2)

    assert smallest() > 0
    with without_denormals():
        assert smallest() == 0
        with without_denormals():
            pass
        assert smallest() == 0, "an inner block leaves the outer one as it is"
    assert smallest() > 0
