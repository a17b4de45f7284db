"""Which processor is at hand, what it is quick at, and how its memory is best handed out."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .refused import Refused


def told(device: torch.device) -> str:
    """As "NVIDIA H100 80GB HBM3" or "AMD EPYC 9R14 (AVX512)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if about.is_file() and (found := re.search(r"model name\s*: (.+)", about.read_text())):
        name = found[1].strip()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for that; where not, torch's products take several times longer
    in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in has)


_BLOCK = 2**24  # weights that are float32 at a time: 64 MiB


class Float32Products(nn.Linear):
    """Multiplies in float32 what is in bfloat16, and rounds the result to it.

    That is what a processor with bfloat16 does, too: it adds up in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        x, n = input.float(), max(_BLOCK // self.in_features, 1)
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        blocks = zip(self.weight.split(n), bias.split(n), strict=True)
        return torch.cat([linear(x, w.float(), b.float()).to(input.dtype) for w, b in blocks], -1)


def spare_bfloat16_(model: nn.Module) -> None:
    """Where a model's processor has no bfloat16, have its linear layers multiply in float32.

    Weights, dtypes and gradients stay what they are.
    """
    device = next(model.parameters()).device
    if device.type != "cpu" or multiplies_bfloat16(device):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Float32Products


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_KEPT, _KEPT_TOGETHER = 2**25, 2**30  # bytes; 32 MiB is the most that each glibc takes
_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep freed blocks of up to 32 MiB for the next tensors, 1 GiB in all;
    whether it does.

    By default glibc gives a language model's temporaries back to the system, which then zeroes
    them anew, page by page. Other C libraries stay as they are, and so does what the environment
    asks for.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _SETTINGS):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT_TOGETHER))


class Room(NamedTuple):
    """Bytes of memory that a process can have: at present, and with the machine to itself."""

    free: int
    total: int


def main_memory(root: Path = Path("/")) -> Room:
    """With swap, and within the limits of containers and batch systems.

    Args:
        root: where Linux's `proc` and `sys` are.
    """
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    here = Room(memory.available + swap.free, memory.total + swap.total)
    rooms = [here, *_control_groups(root)]
    return Room(min(room.free for room in rooms), min(room.total for room in rooms))


def gpu_memory() -> Room:
    """Of the process's GPU."""
    return Room(*torch.cuda.mem_get_info())


# Files of a control group, version 2 and 1: limit, use, and the line of memory.stat that counts
# pages of files, which the kernel gives back when memory runs short.
_GROUP_FILES = ("memory.max", "memory.current", "inactive_file")
_GROUP_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _control_groups(root: Path) -> Iterator[Room]:
    """Of the groups that this process is in, those with a limit."""
    listing = root / "proc/self/cgroup"
    if not listing.is_file():
        return
    for line in listing.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        files = _GROUP_FILES_V1 if controllers else _GROUP_FILES
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                yield from _group_room(folder, *files)


def _group_room(folder: Path, limit: str, used: str, given_back: str) -> Iterator[Room]:
    try:
        total, use = ((folder / name).read_text().strip() for name in (limit, used))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the group is not visible from inside a container, or has no such controller
        return
    if total != "max":
        yield Room(max(0, int(total) - int(use) + int(stat.get(given_back, 0))), int(total))


def refuse_absent(device: str | torch.device | None) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ValueError: this machine has no such device; the sentence names those that it has.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # as builds of torch have it
        kind, n = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        there = ["'cpu'", *(f"'{kind}:{i}'" for i in range(n))]
        raise Refused(
            f"device {str(device)!r} is not here; this machine has {', '.join(there)}"
        ) from error
