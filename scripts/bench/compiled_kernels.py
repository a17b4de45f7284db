"""What Triton's kernels should take on GPUs that are not here: compiled, counted, and predicted.

    python scripts/bench/compiled_kernels.py [--output scripts/bench/results/compiled_kernels.json]

Nothing of this is timed. The kernels of hfsae/ops/fused.py are compiled ahead of time, and their
registers, spilled values, shared memory, loads and operations are read from the result: of a
number of an entry's row, one thread's share. What a training step takes at least is that of
`floors.py`; `gpu.py` prints the same table, measured.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from floors import CARDS, Card, counted, floors, rows_of, triton_loops
from kept import keep, table

WARPS = 4  # of a program, Triton's default
# Of an instruction: bytes that a thread loads, and its multiplications with an addition.
LOADS = {"LDG.E.128": 16, "global_load_dwordx4": 16}
PRODUCTS = {"FFMA": 1, "FFMA2": 2, "v_pk_fma_f32": 2, "v_fma_f32": 1, "v_fmac_f32_e32": 1}
TYPES = {"x": "*fp32", "W": "*fp32", "table": "*fp32", "weights": "*fp32", "out": "*fp32"}
TYPES |= dict.fromkeys(("tokens", "latents", "rows", "offsets"), "*i64") | {"n": "i32", "d": "i32"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="keep what the page tells in this file")
    args = parser.parse_args()
    import triton

    steps = {"sparse": counted("always", bf16=False), "dense": counted("never", bf16=True)}
    kernels, floor = {name: compiled(card) for name, card in CARDS.items()}, floors(steps)
    tables = {"kernels": kernel_rows(kernels), "floors": rows_of(floor)}
    print(*map(table, tables.values()), sep="\n\n")
    run = {"triton": triton.__version__, "steps": steps, "kernels": kernels}
    run["even"] = [card["even"] for size in floor for card in size["cards"].values()]
    if args.output:
        keep(args.output, {**run, "tables": tables}, ())


def compiled(card: Card) -> dict[str, dict[str, float]]:
    """By kernel: registers, spilled values, bytes of shared memory; and for each number of an
    entry's row, bytes that are loaded and multiplications with an addition."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fused = triton_loops()
    found = {}
    for name, kernel, tile in (
        ("dots", fused.dots_kernel, fused.DOTS_TILE),
        ("sums", fused.sums_kernel, fused.SUMS_TILE),
    ):
        names = kernel.arg_names
        signature = {n: TYPES.get(n, "constexpr") for n in names}
        aligned = {  # as Triton finds at launch: addresses, and widths that 16 divides
            (i,): [["tt.divisibility", 16]]
            for i, n in enumerate(names)
            if signature[n].startswith("*") or n == "d"
        }
        sizes = {(names.index(n),): v for n, v in zip(names[-2:], tile, strict=True)}
        source = ASTSource(kernel, signature, sizes, aligned)
        target = GPUTarget(card.backend, card.architecture, card.lanes)
        made = triton.compile(source, target=target, options={"enable_fp_fusion": True})
        used, text = _assembly(made)
        words = Counter(re.findall(r"[A-Za-z_][\w.]*", text))
        threads = WARPS * card.lanes / (tile[0] * tile[1])
        found[name] = {
            **used,
            "shared": used["shared"] + made.metadata.shared,
            "bytes": threads * sum(n * words[word] for word, n in LOADS.items()),
            "products": threads * sum(n * words[word] for word, n in PRODUCTS.items()),
        }
    return found


def _assembly(made: Any) -> tuple[dict[str, int], str]:
    """What a compiled kernel uses, and its instructions."""
    if "amdgcn" in made.asm:
        text = made.asm["amdgcn"]
        about = dict(re.findall(r"\.(\w+):\s+(\d+)$", text, re.MULTILINE))
        spilled = int(about["vgpr_spill_count"]) + int(about["sgpr_spill_count"])
        return {"registers": int(about["vgpr_count"]), "spilled": spilled, "shared": 0}, text
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        about, text = (
            subprocess.run(
                [tool, how, file.name], capture_output=True, text=True, check=True
            ).stdout
            for how in ("-res-usage", "-sass")
        )
    used = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", about))
    spilled = int(used["STACK"]) + int(used["LOCAL"])
    return {"registers": int(used["REG"]), "spilled": spilled, "shared": int(used["SHARED"])}, text


def kernel_rows(kernels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """The table of what kernels use."""
    rows = [["dots / sums", "registers", "spilled", "bytes of shared memory"]]
    for name, both in kernels.items():
        keys = ("registers", "spilled", "shared")
        cells = [" / ".join(f"{kernel[key]:,}" for kernel in both.values()) for key in keys]
        rows.append([name, *cells])
    return rows


if __name__ == "__main__":
    main()
