"""What a large file of activations takes: memory beyond the process's own, and time beside a step.

    python scripts/bench/activation_files.py [--gb 1] [--formats safetensors npy parquet]
        [--prefetch]

A file of random activations is written into a temporary folder, and two processes read it. One goes
through all of it once and trains nothing: the most memory it held (VmHWM) beyond what it held
before it opened the file, of which a bucket is a part. The other trains an SAE (JumpReLU at L0 32)
for some buckets (nearly the whole file, or --buckets): seconds in loading as a share of those in
steps, by the trainer's own count, the sample that a training starts from among them. The file is
new and thus in the system's cache, unless that is small. Linux only.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import children
import numpy as np
import torch
from transformers import AutoConfig, AutoModel
from turns import markdown

from hfsae.activations import (
    ActivationArguments,
    FileSource,
    ShuffleArguments,
    ShuffledActivations,
    check_files,
)
from hfsae.training import Trainer, TrainingArguments

ROOT = Path(__file__).parents[2]
FORMATS = ("safetensors", "npy", "parquet")
SITE = "acts"
_CHUNK = 2**14  # rows that are made and written at once


def write(options: argparse.Namespace, form: str, folder: Path) -> Path:
    """A file of this many bytes, written a part at a time."""
    n = int(options.gb * 1e9) // (4 * options.width)
    rng = np.random.default_rng(0)
    chunks = (
        rng.standard_normal((min(_CHUNK, n - start), options.width), "float32")
        for start in range(0, n, _CHUNK)
    )
    path = folder / f"{SITE}.{form}"
    if form == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema({SITE: pa.list_(pa.float32(), options.width)})
        with parquet.ParquetWriter(path, schema, compression="none") as file:
            for chunk in chunks:
                lists = pa.FixedSizeListArray.from_arrays(chunk.reshape(-1), options.width)
                file.write_table(pa.table({SITE: lists}))
        return path
    if form == "npy":
        with path.open("wb") as file:
            about = {"descr": "<f4", "fortran_order": False, "shape": (n, options.width)}
            np.lib.format.write_array_header_1_0(file, about)
            for chunk in chunks:
                chunk.tofile(file)
        return path
    size = n * options.width * 4
    about = {SITE: {"dtype": "F32", "shape": [n, options.width], "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for chunk in chunks:
            chunk.tofile(file)
    return path


def stream_of(options: argparse.Namespace) -> ShuffledActivations:
    source = FileSource(ActivationArguments(options.file), [SITE], options.batch)
    shuffle = ShuffleArguments(options.bucket, prefetch=options.prefetch)
    return ShuffledActivations(source, shuffle, options.batch)


def mib(name: str) -> float:
    """A line of this process's status: VmRSS, or VmHWM, the most of it so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def read(options: argparse.Namespace) -> dict[str, float]:
    """Go through the file once."""
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # libraries take their memory at first use
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, start = mib("VmRSS"), time.perf_counter()
    stream = stream_of(options)
    n = check_files(ActivationArguments(options.file), [SITE]).n_rows // options.batch
    for _ in range(n):
        stream.next_batch()
    seconds = time.perf_counter() - start
    gb = n * options.batch * options.width * 4 / 1e9
    return {"peak MiB": mib("VmHWM") - before, "GB/s": gb / seconds}


def train(options: argparse.Namespace) -> dict[str, float]:
    """Train for some buckets."""
    config = {"d_in": options.width, "d_sae": options.d_sae, "site": SITE, "target_l0": 32}
    config |= {"model_type": "jumprelu_sae", "bandwidth": 0.03, "log_threshold": False}
    torch.manual_seed(0)
    sae = AutoModel.from_config(AutoConfig.for_model(**config))
    args = TrainingArguments(
        output_dir=str(Path(options.file).parent / "run"),
        n_tokens=options.buckets * options.bucket,
        batch_size=options.batch,
        learning_rate=1e-3,
        warmup_steps=0,
        sparsity_warmup_steps=0,
        warm_start_steps=0.5,
        save_steps=0,
    )
    trainer = Trainer(sae, stream_of(options), args)
    trainer.train()
    seconds, n_steps = trainer.record("")["seconds"], args.n_tokens // args.batch_size
    trainer.close()
    loading, steps = seconds["harvest"], seconds["train"]
    return {"loading, % of a step": 100 * loading / steps, "step ms": 1000 * steps / n_steps}


def child(options: argparse.Namespace, part: str, file: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", part, "--file", str(file)]
    for name in ("width", "bucket", "batch", "d_sae", "buckets"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--prefetch"] if options.prefetch else []
    done = children.run(command, {**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise ValueError(f"{part} stopped: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=1.0, help="size of the file")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--bucket", type=int, default=2**16, help="rows shuffled together")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--d_sae", type=int, default=3072)
    parser.add_argument("--buckets", type=int, default=8, help="buckets to train on")
    parser.add_argument("--prefetch", action="store_true", help="fill buckets while steps run")
    parser.add_argument("--part", choices=("read", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps({"read": read, "train": train}[options.part](options)))
        return
    children.end_on_signals()
    bucket = options.bucket * options.width * 4 / 2**20
    print(f"{options.gb:g} GB, width {options.width}, a bucket of {bucket:.0f} MiB")
    rows = []
    for form in options.formats:
        with tempfile.TemporaryDirectory() as folder:
            file = write(options, form, Path(folder))
            parts = {part: child(options, part, file) for part in ("read", "train")}
            rows.append({"format": form, **parts["read"], **parts["train"]})
    print(markdown(rows))


if __name__ == "__main__":
    main()
