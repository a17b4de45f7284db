"""What Triton's kernels become on GPUs, and from that the least time of a step: without a card.

    python scripts/bench/kernels.py [--output FILE]

The kernels of sparse steps are compiled ahead of time for each target. What a sparse and a dense
step read, write and multiply is counted on a CPU (counts.py; half a minute). By a card's published
rate and bandwidth that gives the least time of a step, PREDICTED: products at the full rate, then
bytes at the full bandwidth, nothing for launches or for what the host waits. Rows that kernels look
up in any order come from memory once (caches hold them) to each time (caches hold none): the truth
is between. gpu.py measures the same table on a card.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from counts import counted, kernels
from kept import keep, table

BATCH, L0S = 4096, (20, 50, 100, 200)
SIZES = ((768, 24576), (2304, 16384), (2304, 131072), (3584, 16384), (3584, 131072))
COUNTED = {"d_in": 2304, "d_sae": 16384, "batch": 512, "l0": 100}
STEPS = {"sparse": "always", "dense": "never"}


class Card(NamedTuple):
    """By the maker's data sheet."""

    target: str
    teraflops: float
    """of bfloat16 products, without sparsity"""
    terabytes: float
    """of memory a second"""


CARDS = {
    "A100": Card("sm_80", 312, 2.039),  # NVIDIA A100 80GB SXM
    "H100": Card("sm_90", 989.4, 3.35),  # NVIDIA H100 SXM
    "B200": Card("sm_100", 2250, 8.0),  # NVIDIA HGX B200
    "MI300X": Card("gfx942", 1307.4, 5.3),  # AMD Instinct MI300X OAM
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON, kept for the page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*compiled(Path(folder))]
    steps = {name: counted(COUNTED, kind) for name, kind in STEPS.items()}
    of_kernels = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
    of_steps, density = predicted(steps)
    print(f"{table(of_kernels)}\n\n{table(of_steps)}\n\nleast density: {density}")
    if args.output is not None:
        found = {
            "triton": version("triton"),
            "steps": steps,
            "kernels": of_kernels,
            "predicted": of_steps,
            "density": density,
        }
        keep(args.output, {"batch": BATCH, "counted": COUNTED, **found}, ["batch"])


def compiled(folder: Path) -> Iterator[dict[str, Any]]:
    """Each kernel for each target: registers of a thread, spilled ones, shared memory of a program,
    bytes that it loads for a multiply-add, and instructions that it should not have."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    with kernels() as fused:
        both = {
            "dots": (fused.dots_kernel, fused.DOTS_TILE),
            "sums": (fused.sums_kernel, fused.SUMS_TILE),
        }
    for target in (card.target for card in CARDS.values()):
        is_amd = target.startswith("gfx")
        where = GPUTarget("hip", target, 64) if is_amd else GPUTarget("cuda", int(target[3:]), 32)
        for name, (kernel, tile) in both.items():
            options = {"enable_fp_fusion": True}  # as they are launched
            with knobs.cache.scope():
                knobs.cache.dir = str(folder)
                made = triton.compile(_source(kernel, tile), target=where, options=options)
            of_maker = _of_amd if is_amd else _of_nvidia
            registers, spilled, code, patterns = of_maker(made, folder / "kernel.cubin")
            n_loads, fused_adds, never = (re.findall(pattern, code) for pattern in patterns)
            n_adds = sum(2 if is_double else 1 for is_double in fused_adds)
            yield {
                "kernel": name,
                "target": target,
                "registers": registers,
                "spilled": spilled,
                "shared memory, bytes": made.metadata.shared,
                "bytes a multiply-add": f"{16 * len(n_loads) / n_adds:.3g}",
                "atomics": len(never),
            }


def _source(kernel: Any, tile: tuple[int, int]) -> Any:
    """A kernel of float32 matrices, of rows and widths that are multiples of 16 bytes."""
    from triton.compiler import ASTSource

    indices = dict.fromkeys(("tokens", "latents", "rows", "offsets"), "*i64")
    types = indices | {"n": "i32", "d": "i32"}
    sizes = dict(zip(("n_entries", "n_numbers"), tile, strict=True))
    signature = {
        name: "constexpr" if name in sizes else types.get(name, "*fp32")
        for name in kernel.arg_names
    }
    is_aligned = [name == "d" or of[0] == "*" for name, of in signature.items()]
    attrs = {(i,): [["tt.divisibility", 16]] for i, holds in enumerate(is_aligned) if holds}
    return ASTSource(kernel, signature=signature, constexprs=sizes, attrs=attrs)


def _of_nvidia(made: Any, path: Path) -> tuple[int, int, str, tuple[str, str, str]]:
    """Registers, bytes spilled, code; and patterns in it: of loads of 16 bytes, of multiply-adds
    (marked, if of two numbers), and of atomic additions and tensor cores."""
    from triton import knobs

    path.write_bytes(made.asm["cubin"])

    def dumped(how: str) -> str:
        command = [knobs.nvidia.cuobjdump.path, how, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    used = {name: int(n) for name, n in re.findall(r"(\w+):(\d+)", dumped("-res-usage"))}
    never = r"\b(?:RED|ATOM\w*|[HQU]\w*MMA)\b"
    patterns = r"\bLDG\.E\.128\b", r"\bFFMA(2?)\b", never
    return used["REG"], used["STACK"] + used["LOCAL"], dumped("-sass"), patterns


def _of_amd(made: Any, path: Path) -> tuple[int, int, str, tuple[str, str, str]]:
    code = made.asm["amdgcn"]
    used = {name: int(n) for name, n in re.findall(r"\.(\w+):\s+(\d+)", code)}
    spilled = sum(used[f"{kind}_spill_count"] for kind in ("vgpr", "sgpr"))
    never = r"\b(?:global_atomic|v_mfma)\w*"
    patterns = r"\bglobal_load_dwordx4\b", r"\bv_(pk_)?fmac?_f32", never
    return used["vgpr_count"], spilled, code, patterns


def predicted(steps: Mapping[str, Any]) -> tuple[list[list[str]], float]:
    """The table of all cards, and the least density at which a sparse step is as slow as a dense
    one, on any of them."""
    rows, densities = [head(L0S)], []
    for name, card in CARDS.items():
        for d_in, d_sae in SIZES:
            sizes = card, d_in, d_sae
            dense = milliseconds(steps["dense"], *sizes)

            def slow(l0: float, sizes: Any = sizes) -> float:
                return milliseconds(steps["sparse"], *sizes, l0=l0)

            fast = [milliseconds(steps["sparse"], *sizes, l0=l0, in_cache=True) for l0 in L0S]
            spans = [f"{least:.3g} to {slow(l0):.3g}" for least, l0 in zip(fast, L0S, strict=True)]
            density = steps["sparse"]["entries"] * meeting(slow, dense, d_sae) / d_sae
            densities.append(density)
            rows.append(row(name, (d_in, d_sae), dense, spans, density))
    return rows, float(f"{min(densities):.2g}")


def milliseconds(
    step: Mapping[str, Any],
    card: Card,
    d_in: int,
    d_sae: int,
    l0: float = 0,
    *,
    in_cache: bool = False,
) -> float:
    """The least time of a step of a kind."""
    n_entries, n_pairs = step["entries"] * BATCH * l0, BATCH * d_sae
    n: Counter[str] = Counter(pairs=n_pairs, weights=d_sae * d_in, latents=d_sae)
    n += Counter(inputs=BATCH * d_in, entries=round(n_entries))
    n_bytes = sum(each * n[name] for name, each in step["bytes"].items())
    for name, times in step["tables"].items():
        n_rows = times * min(n_entries, BATCH if name == "x" else d_sae)
        if name != "W in order" and not in_cache:
            n_rows = step["rows"][name] * n_entries
        n_bytes += 4 * d_in * n_rows
    products = 2 * step["products"] * n_pairs * d_in
    return 1e-9 * (products / card.teraflops + n_bytes / card.terabytes)


def meeting(sparse_step: Callable[[float], float], dense: float, d_sae: int) -> float:
    """The L0 at which a sparse step, which gets slower with it, is as slow as a dense one."""
    low, high = 0.0, float(d_sae)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if sparse_step(middle) > dense else (middle, high)
    return low


def head(l0s: Any) -> list[str]:
    """Of the table, predicted or measured; times in milliseconds."""
    return ["card", "d_in x latents", "dense, bf16", *(f"L0 {l0}" for l0 in l0s), "equal at"]


def row(
    name: str, size: tuple[int, int], dense: float, cells: list[str], density: float
) -> list[str]:
    """Of the table; the last cell is the density."""
    return [name, " x ".join(f"{n:,}" for n in size), f"{dense:.3g}", *cells, f"{density:.2g}"]


if __name__ == "__main__":
    main()
