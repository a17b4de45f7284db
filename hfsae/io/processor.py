"""The processor's name, its fast products and kept kernels, and the machine's memory."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .errors import Refused


def name_of(device: torch.device) -> str:
    """The device's name: "NVIDIA H100 80GB HBM3", or "AMD EPYC 9R14 (AVX512, 2 threads)".

    A CPU's libraries split sums over threads, so that another number of them rounds otherwise.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if about.is_file() and (match := re.search(r"model name\s*: (.+)", about.read_text())):
        name = match[1].strip()
    capability, n_threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{name} ({capability}, {n_threads} thread{'s' if n_threads > 1 else ''})"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products; without them, torch's products
    take several times longer in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in has)


@contextmanager
def without_denormals() -> Iterator[None]:
    """Round numbers below 1e-38 to 0 inside the block: processors are ten times slower with them,
    and Adam's moments of a silent latent fall to them and stay there."""
    before = float(torch.tensor(1e-38) * 1e-2) == 0.0
    torch.set_flush_denormal(True)  # has no effect on a processor that cannot
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_BLOCK = 2**24  # weights in float32 at a time: 64 MiB


class Float32Products(nn.Linear):
    """Multiplies bfloat16 tensors in float32, and rounds the result to bfloat16.

    A processor with bfloat16 instructions does the same: it sums in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        x, n = input.float(), max(_BLOCK // self.in_features, 1)
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        blocks = zip(self.weight.split(n), bias.split(n), strict=True)
        return torch.cat([linear(x, w.float(), b.float()).to(input.dtype) for w, b in blocks], -1)


def spare_bfloat16_(model: nn.Module) -> None:
    """On a processor without bfloat16 instructions, make a model's linear layers multiply in
    float32. Weights, dtypes and gradients do not change."""
    device = next(model.parameters()).device
    if device.type != "cpu" or multiplies_bfloat16(device):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Float32Products


def keep_few_kernels() -> None:
    """Make this process keep the kernels of 128 shapes of matrices, in place of 1,024.

    In bfloat16 each number of tokens has its own kernels, of some 0.6 MB a shape, and texts that
    people write have any number. oneDNN keeps half of that once, PyTorch's layer above it the other
    half in each thread. A forward pass needs about seven shapes. Both read their setting before
    their first kernel; what the environment says of them stays.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "128")


# Files of a control group, version 2 and 1: limit, use, and the line of memory.stat for pages of
# files: the kernel frees these when memory is short.
_GROUP_FILES = ("memory.max", "memory.current", "inactive_file")
_GROUP_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def main_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of main memory with swap, within the limits of containers and batch systems: those that
    are free at present, and all of them.

    Args:
        root: the folder with Linux's `proc` and `sys`.
    """
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    machine = memory.available + swap.free, memory.total + swap.total
    rooms, listing = [machine], root / "proc/self/cgroup"  # and of this process's control groups
    for line in listing.read_text().splitlines() if listing.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, used, given_back = _GROUP_FILES_V1 if controllers else _GROUP_FILES
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                continue
            try:
                total, use = ((folder / name).read_text().strip() for name in (limit, used))
                lines = (folder / "memory.stat").read_text().splitlines()
            except OSError:  # a container hides the group, or it has no such controller
                continue
            if total != "max":
                freed = int(dict(line.split() for line in lines).get(given_back, 0))
                rooms.append((max(0, int(total) - int(use) + freed), int(total)))
    return min(free for free, _ in rooms), min(total for _, total in rooms)


def gpu_memory() -> tuple[int, int]:
    """Bytes of memory of the process's GPU: free ones, and all."""
    return torch.cuda.mem_get_info()


def refuse_absent(device: str | torch.device | None, section: str = "") -> None:
    """Refuse a device that this machine lacks.

    Args:
        section: of a recipe, with its dot, in which the device is named.

    Raises:
        ValueError: this machine has no such device; the sentence lists its devices.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # builds of torch differ
        kind, n = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        devices = ["'cpu'", *(f"'{kind}:{i}'" for i in range(n))]
        raise Refused(
            f"{section}device {str(device)!r} is not here; this machine has {', '.join(devices)}"
        ) from error
