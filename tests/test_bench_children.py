"""Processes of a benchmark end with it."""

import signal
import subprocess
import sys
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
