"""Benchmarks: their processes end with them, and what a GPU is measured by runs on a CPU too."""

import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench"
# A benchmark whose child has a child of its own. All hold the same standard output.
BENCHMARK = """
import sys
import children
children.end_on_signals()
launcher = '''
import signal, subprocess, sys
worker = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGTERM, lambda *_: (worker.kill(), sys.exit()))
print("ready", flush=True)
worker.wait()
'''
with children.child([sys.executable, "-c", launcher]) as process:
    process.wait()
"""


@pytest.mark.parametrize("ended_by", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_children_of_a_benchmark_end_with_it(ended_by):
    if ended_by == "SIGKILL" and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    command = [sys.executable, "-S", "-c", BENCHMARK]
    benchmark = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=BENCH, text=True
    )
    with benchmark:
        assert benchmark.stdout and benchmark.stdout.readline() == "ready\n"
        benchmark.send_signal(getattr(signal, ended_by))
        rest, _ = benchmark.communicate(timeout=120)  # ends when nobody holds the other end
        assert rest == ""


def test_steps_are_measured_in_the_table_that_is_predicted(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCH)
    gpu = import_module("gpu")
    command = "gpu.py --device cpu --sizes 16x1024 --l0 4 8 --batch 64 --rounds 1 --all"
    monkeypatch.setattr(sys, "argv", command.split())
    gpu.main()
    table, others = (part.splitlines() for part in capsys.readouterr().out.split("\n\n")[1:])
    predicted = (BENCH.parent / "recipes" / "gpus.md").read_text(encoding="utf-8")
    head = re.sub(r"L0 4 \| L0 8", "L0 20 | L0 50 | L0 100 | L0 200", table[0])
    assert head in predicted.splitlines()
    assert re.fullmatch(r"\| cpu \| 16 x 1,024 (\| [\d.e-]+ ){4}\|", table[2]) and len(table) == 3
    assert len(others) == 4 and others[2].count(" ms, ") == len(gpu.SIDES)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no CUDA device here"):
        gpu.main()
