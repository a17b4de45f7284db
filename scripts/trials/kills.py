"""Kill `hfsae train` with SIGKILL, start it again, and hold the folder to one of a run left alone.

Half of the kills come at file operations, spread evenly over all that a run makes (so that writing
recipe, checkpoint, weights, features, card and the cleaning up at the end are each hit in their
middle), each in a folder of its own. The other half come by the clock, at random moments, one after
another in one folder until that run ends, then in the next.

    python scripts/trials/kills.py [--kills 24] [--seed 0] [--real] [--keep FOLDER]

--real trains on SmolLM2 with the quickstart's settings, smaller, for some minutes more a kill; else
the language model is a tiny random one.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tiny

_QUICKSTART = Path(__file__).parents[1].absolute() / "recipes" / "quickstart.yaml"
_REAL = [str(_QUICKSTART), "--lm.source=packaged", "--training.output_dir=run"]
_REAL += ["--training.n_tokens=65536", "--sae.d_sae=1024", "--shuffle.bucket_tokens=16384"]
_REAL += ["--training.save_steps=8", "--evaluation.n_tokens=1000", "--collect_tokens=2000"]
_REAL += ["--preset_seconds=0"]  # what it finds depends on the clock
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")


def at_each_change(do: Callable[[str], None], inside: Path) -> None:
    """Call `do` before each change that this process makes to files under a folder."""
    root, busy = os.path.realpath(inside), threading.local()

    def hook(event: str, args: tuple) -> None:
        if event not in ("open", *_CHANGES) or getattr(busy, "on", False):
            return
        busy.on = True
        try:
            is_write = event != "open" or bool((args[2] or 0) & _WRITES)
            if is_write and isinstance(args[0], str | os.PathLike):
                path = os.path.abspath(os.fspath(args[0]))
                if os.path.realpath(path).startswith(root):
                    do(f"{event} {os.path.relpath(path, root)}")
        finally:
            busy.on = False

    sys.addaudithook(hook)


def note_changes(inside: Path, path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    at_each_change(lambda change: os.write(file, f"{change}\n".encode()) and None, inside)


def die_at(nth: int, inside: Path) -> None:
    left = [nth]

    def count(_change: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    at_each_change(count, inside)


class Trial:
    """Folders of runs, and the reference to hold them to."""

    def __init__(self, root: Path, argv: list[str]) -> None:
        self.root, self.argv = root, argv
        self.tried = self.held = 0
        start = time.monotonic()
        code = self._run("whole", partial(note_changes, root / "whole" / "run", root / "changes"))
        if code != 0:
            raise SystemExit(f"the run without a kill ended with exit code {code}: see {root}")
        self.seconds = time.monotonic() - start
        self.changes = (root / "changes").read_text().splitlines()

    def _run(self, name: str, before: Callable[[], object] = lambda: None) -> int:
        return tiny.wait(self._start(name, before))

    def _start(self, name: str, before: Callable[[], object] = lambda: None) -> int:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return tiny.start(self.argv, folder, self.root / f"{name}.log", before)

    def judge(self, name: str, what: str, code: int, kills: int = 1) -> None:
        """After the last start, which nobody stopped."""
        ours, reference = (self.root / n / "run" for n in (name, "whole"))
        fault = tiny.difference(ours, reference) if code == 0 else f"exit code {code}"
        self.tried += kills
        self.held += 0 if fault else kills
        print(f"{name}: {what}: {fault or 'equal'}", flush=True)

    def kill_at_change(self, nth: int) -> None:
        name = f"change-{nth}"
        code = self._run(name, partial(die_at, nth, self.root / name / "run"))
        if code != -signal.SIGKILL:
            raise SystemExit(f"{name} was to be killed, but ended with exit code {code}")
        self.judge(name, f"killed before {self.changes[nth]}", self._run(name))

    def kill_by_clock(self, name: str, most: int, random_: random.Random) -> int:
        """Kill a run at random moments until it has ended or was killed `most` times; how often."""
        for kills in range(most):
            pid = self._start(name)
            killer = threading.Timer(
                random_.uniform(0, self.seconds), os.kill, (pid, signal.SIGKILL)
            )
            killer.start()
            code = tiny.wait(pid)
            killer.cancel()
            killer.join()
            if code != -signal.SIGKILL:
                if kills:
                    self.judge(name, f"killed {kills} times at random moments", code, kills)
                return kills
        self.judge(name, f"killed {most} times at random moments", self._run(name), most)
        return most


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=24, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--real", action="store_true", help="train on SmolLM2-135M")
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it there")
    args = parser.parse_args()
    with tiny.workplace(args.keep) as root:
        argv = ["train", str(tiny.write_subject(root / "subject"))]
        trial = Trial(root, ["train", *_REAL] if args.real else argv)
        n = args.kills // 2
        total = len(trial.changes)
        print(f"a run takes {trial.seconds:.1f} s and {total} changes to files", flush=True)
        for i in range(n):
            trial.kill_at_change(i * (total - 1) // max(n - 1, 1))
        random_, left, folder = random.Random(args.seed), args.kills - n, 0
        while left > 0:
            left -= trial.kill_by_clock(f"clock-{folder}", left, random_)
            folder += 1
    print(f"{trial.tried} kills tried, {trial.held} held")
    return int(trial.held < trial.tried)


if __name__ == "__main__":
    sys.exit(main())
