"""Start several `hfsae` commands on one folder, at once or a little apart; look at what is left.

Of two that write one folder, one must end well. Each other must either end well too (a finished run
that it finds complete, or makes anew wholly) or end with exit code 2 and one sentence. The folder
must be, file for file, what one of the commands makes alone.

    python scripts/trials/processes.py [--keep FOLDER]
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tiny


class Started(NamedTuple):
    argv: list[str]
    log: Path
    pid: int


class Ended(NamedTuple):
    argv: list[str]
    code: int
    error: str
    """the sentence after `hfsae: error:`, if there was one"""


class Bench:
    """A folder with one subject, finished runs to copy, and the tries."""

    def __init__(self, root: Path) -> None:
        self.root, self.tried, self.held = root, 0, 0
        self.recipe = str(tiny.write_subject(root / "subject"))
        self.train = ["train", self.recipe]
        self.other = [*self.train, "--seed=1"]
        start = time.monotonic()
        self.alone("whole", self.train)
        self.seconds = time.monotonic() - start
        self.alone("whole-other", self.other)

    def alone(self, name: str, *commands: list[str], of: str = "") -> Path:
        """What commands make one after another, of nothing or of a copy of a finished folder."""
        folder = self.folder(name, of)
        for argv in commands:
            code = tiny.wait(tiny.start(argv, folder, self.root / f"{name}.log"))
            if code != 0:
                raise SystemExit(f"{name}: {argv} alone ended with {code}: see {self.root}")
        return folder / "run"

    def folder(self, name: str, of: str = "") -> Path:
        folder = self.root / name
        if of:
            shutil.copytree(self.root / of, folder)
        folder.mkdir(exist_ok=True)
        return folder

    def start(self, folder: Path, argvs: Sequence[list[str]], apart: float) -> list[Started]:
        started = []
        for i, argv in enumerate(argvs):
            log = self.root / f"{folder.name}-{i}.log"
            started.append(Started(argv, log, tiny.start(argv, folder, log)))
            if i < len(argvs) - 1:
                time.sleep(apart)
        return started

    def end(self, started: Sequence[Started]) -> list[Ended]:
        ended = []
        for argv, log, pid in started:
            code = tiny.wait(pid)
            lines = [li for li in log.read_text().splitlines() if li.startswith("hfsae: error: ")]
            if "Traceback" in log.read_text():
                lines = ["a traceback"]
            ended.append(
                Ended(argv, code, lines[0].removeprefix("hfsae: error: ") if lines else "")
            )
        return ended

    def judge(self, name: str, fault: str) -> None:
        self.tried += 1
        self.held += not fault
        print(f"{self.tried:2} {name}: {fault or 'held'}", flush=True)

    def race(
        self,
        name: str,
        argvs: Sequence[list[str]],
        references: Sequence[Path],
        *,
        apart: float = 0.0,
        of: str = "",
    ) -> None:
        """Start commands on one folder; the result must be that of one of the references."""
        folder = self.folder(f"try-{self.tried + 1}", of)
        ended = self.end(self.start(folder, argvs, apart))
        self.judge(name, _refusals(ended) or _like_one(folder / "run", references))

    def stopped(self, name: str, number: int, apart: float) -> None:
        """The first of three is stopped while it runs; the third, started after, must go on."""
        folder = self.folder(f"try-{self.tried + 1}")
        first, second = self.start(folder, [self.train, self.train], apart)
        os.kill(first.pid, number)
        ended = self.end([first, second])
        third = self.end(self.start(folder, [self.train], 0))
        fault = _refusals(ended[1:], need_one=False) or _like_one(
            folder / "run", [self.root / "whole" / "run"]
        )
        if third[0].code != 0:
            fault = f"the third ended with {third[0].code}: {third[0].error}"
        self.judge(name, fault)


def _refusals(ended: Sequence[Ended], need_one: bool = True) -> str:
    """What is wrong with exit codes and sentences; "" if nothing is."""
    if need_one and not any(e.code == 0 for e in ended):
        return f"no command ended well: {[(e.code, e.error) for e in ended]}"
    for e in ended:
        if e.code == 0:
            continue
        if e.code != 2 or not e.error:
            return f"{e.argv[0]} ended with exit code {e.code}, {e.error or 'no sentence'}"
    return ""


def _like_one(folder: Path, references: Sequence[Path]) -> str:
    faults = [tiny.difference(folder, reference) for reference in references]
    return "" if "" in faults else "; ".join(faults)


def tries(bench: Bench) -> None:
    """All of them, in an order of growing intricacy."""
    whole, other = (bench.root / n / "run" for n in ("whole", "whole-other"))
    for share in (0.0, 0.0, 0.02, 0.1, 0.3, 0.6, 0.9):
        apart = share * bench.seconds
        bench.race(f"train twice, {apart:.1f} s apart", [bench.train] * 2, [whole], apart=apart)
    bench.race("train four times at once", [bench.train] * 4, [whole])
    for share in (0.0, 0.1, 0.6):
        apart = share * bench.seconds
        name = f"train with two seeds, {apart:.1f} s apart"
        bench.race(name, [bench.train, bench.other], [whole, other], apart=apart)
    bench.stopped("train, killed while another waits", signal.SIGKILL, 0.4 * bench.seconds)
    bench.stopped("train, Ctrl-C while another waits", signal.SIGINT, 0.4 * bench.seconds)
    evaluate = ["evaluate", "run", "--evaluation.n_tokens=400"]
    again = ["evaluate", "run", "--evaluation.n_tokens=600"]
    collect = ["collect", "run", "--collect_tokens=700"]
    makes = {
        name: bench.alone(f"whole-{name}", *commands, of="whole")
        for name, commands in {
            "evaluate": [evaluate],
            "again": [again],
            "collect": [collect],
            "both": [evaluate, collect],
        }.items()
    }
    bench.race("evaluate twice", [evaluate] * 2, [makes["evaluate"]], of="whole")
    two = [makes["evaluate"], makes["again"]]
    bench.race("evaluate in two ways", [evaluate, again], two, of="whole")
    three = [makes["evaluate"], makes["collect"], makes["both"]]
    bench.race("evaluate and collect", [evaluate, collect], three, of="whole")
    either = [makes["evaluate"], whole]  # whichever has the folder first
    bench.race("evaluate and card", [evaluate, ["card", "run"]], either, of="whole")
    half = 0.5 * bench.seconds
    bench.race("evaluate a run that trains", [bench.train, evaluate], [whole], apart=half)
    bench.race("card of a run that trains", [bench.train, ["card", "run"]], [whole], apart=half)
    _share_a_cache(bench, whole)


def _share_a_cache(bench: Bench, whole: Path) -> None:
    """Two runs in folders of their own, which harvest into one cache."""
    folders = [bench.folder(f"cache-{i}") for i in range(2)]
    argv = [*bench.train, f"--harvest.cache={bench.root / 'cache'}"]
    ended = bench.end([bench.start(folder, [argv], 0)[0] for folder in folders])
    faults = [f"exit code {e.code}: {e.error}" for e in ended if e.code != 0]
    theirs = (whole / "model.safetensors").read_bytes()
    faults += [
        f"{folder.name}: other weights"
        for folder in folders
        if not faults and (folder / "run" / "model.safetensors").read_bytes() != theirs
    ]
    bench.judge("two runs share a cache", "; ".join(faults))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it there")
    args = parser.parse_args()
    with tiny.workplace(args.keep) as root:
        bench = Bench(root)
        tries(bench)
    print(f"{bench.tried} tried, {bench.held} held")
    return int(bench.held < bench.tried)


if __name__ == "__main__":
    sys.exit(main())
