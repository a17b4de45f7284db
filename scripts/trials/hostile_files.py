"""Throw hostile and damaged files at everything that reads files: hostile_cases.py makes them.

Each must load rightly, or be refused with one sentence (ValueError or OSError; of a command, exit
code 2 and no traceback). None may run code, put an escape on the terminal, or take more than some
seconds or megabytes. Weights of which a bit was flipped must not be verified.

    python scripts/trials/hostile_files.py [--seed 0] [--only TEXT] [--seconds 60] [--megabytes 600]

Prints one line a failure, then "N tried, M held"; exit code 1 if anything did not hold.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
from hostile_cases import Case, cases
from safetensors.torch import load_file, save_file

import hfsae
from hfsae import cli
from hfsae.activations import TextArguments, check_text
from hfsae.comparison import Comparison, Measured, results_in, save_results
from hfsae.demo import Choice, open_subject
from hfsae.features import FeatureStore, read_labels
from hfsae.steering import load_steering_vector
from hfsae.training import checkpoint

FIXTURES = Path(__file__).parents[2] / "tests" / "convert" / "fixtures"
_FOREIGN = {
    "gemma_scope": "gemma_scope/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_5",
    "gemma_scope_2": "gemma_scope_2/gemma-scope-2-1b-pt/resid_post/layer_1_width_16k_l0_small",
    "saelens": "saelens/jumprelu",
    "saelens_checkpoint": "saelens/checkpoint_topk",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary_learning",
    "openai": "openai",
}
_TURNING = ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
Action = Callable[[Path], Any]


class Verb:
    """A command; `{}` stands for the folder."""

    def __init__(self, *argv: str, may_be: Sequence[int] = (0, 2)) -> None:
        self.argv, self.may_be = argv, may_be

    def __call__(self, folder: Path) -> None:
        code: Any = 0
        try:
            code = cli.main([part.format(folder) for part in self.argv])
        except SystemExit as stop:
            code = stop.code
        if code not in self.may_be:
            raise AssertionError(f"exit code {code}")


def _store(folder: Path) -> None:
    store = FeatureStore.load(folder)
    shown = [hfsae.features.show(store[i]) for i in range(min(len(store), 20))]
    print("\n".join(shown))
    print(
        store.pick(3), store.max_activations.sum(), store.densities.sum(), len(store.firings()[0])
    )


def _app(folder: Path) -> None:
    subject = open_subject(Choice(str(folder)), with_lm=False, device="cpu")
    print(len(subject.presets), subject.is_counted, subject.density().shape, subject.largest())


def _text(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        check_text(TextArguments(dataset=str(path)), "train")


_ACTIONS: dict[str, Action] = {
    "load": hfsae.load,
    "list": Verb("list", "{}", may_be=(0, 1, 2)),
    "show": Verb("show", "{}"),
    "show 0 5": Verb("show", "{}", "0", "5"),
    "verify": Verb("verify", "{}", may_be=(0, 1, 2, 3)),  # 3: there is no fingerprint
    "convert": Verb("convert", "{}", "{}-converted", "--to", "hfsae"),
    "card": Verb("card", "{}"),
    "push": Verb("push", "{}", "nobody/nothing", "--dry_run"),
    "plan": Verb("train", "{}/recipe.yaml", "--dry_run"),
    "evaluate": Verb("evaluate", "{}", "--evaluation.n_tokens", "0"),
    "store": _store,
    "labels": read_labels,
    "app": _app,
    "checkpoint": lambda folder: checkpoint.load(next((folder / "checkpoints").glob("*.pt"))),
    "report": results_in,
    "vector": lambda folder: load_steering_vector(folder / "calm.safetensors"),
    "text": _text,
}
# What reads a file, by its name; any other, and all of a folder: everything.
_READ_BY = {
    "config.json": "load list show verify convert card push app",
    "model.safetensors": "load list verify convert card app",
    "fingerprint.safetensors": "list verify push",
    "training.json": "show card push app evaluate",
    "evaluation.json": "list show card app",
    "log.jsonl": "card",
    "README.md": "card app",
    "recipe.yaml": "plan evaluate show",
    "presets.json": "app",
    "features/labels.json": "labels app push",
    "features/meta.json": "show store app card",
    "features/latents.parquet": "show store app card",
    "features/examples.parquet": "show store app card",
}
_OF_BASE = {
    "run": "load list show verify convert card push plan evaluate store labels app",
    "unfinished": "checkpoint",
    "report": "report",
    "vector": "vector",
    "text": "text",
}
_OF_FOREIGN = "load list verify convert show"


def actions(case: Case) -> dict[str, Action]:
    named = _READ_BY.get(case.name.partition(":")[0]) if case.base == "run" else None
    names = named or _OF_BASE.get(case.base, _OF_FOREIGN)
    which = re.findall(r"show 0 5|\w+", names.replace("show", "show 0 5 show"))
    return {name: _ACTIONS[name] for name in which}


def make_bases(root: Path) -> dict[str, Path]:
    """Sound folders of each kind; made in a process of its own, whose threads end with it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _to_file(root / "making.log")
            _make_bases(root)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if tiny.wait(pid) != 0:
        raise SystemExit(f"no sound folders: {(root / 'making.log').read_text()}")
    return {path.name: path for path in sorted((root / "bases").iterdir())}


def _to_file(log: Path) -> None:
    """What is printed from here on."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _make_bases(root: Path) -> None:
    bases = root / "bases"
    bases.mkdir()
    recipe = tiny.write_subject(root / "subject")
    os.chdir(root / "subject")
    if cli.main(["train", str(recipe)]) != 0:
        raise SystemExit("no training")
    run = shutil.copytree("run", bases / "run")
    _unseal(run)
    preset = {"name": "one", "prompt": "a", "latents": {"1": 2.0}}
    (run / "presets.json").write_text(json.dumps([preset]))
    hfsae.features.write_label(run, 1, "the sea")
    (bases / "unfinished" / "checkpoints").mkdir(parents=True)
    state = {"a": torch.ones(8), "n": 3, "s": "x", "nested": {"b": torch.zeros(2)}}
    checkpoint.save(bases / "unfinished" / "checkpoints", 1, state)
    (bases / "vector").mkdir()
    mark = {"format": hfsae.steering.export.FORMAT}
    save_file({"layers.1": torch.ones(16)}, bases / "vector" / "calm.safetensors", mark)
    (bases / "text").mkdir()
    tiny.write_text(bases / "text" / "a.jsonl")
    _make_report(bases / "report")
    for name, path in _FOREIGN.items():
        _copy_foreign(FIXTURES / path, bases / name)


def _unseal(run: Path) -> None:
    """As of an earlier version: else a seal would refuse most files before anything reads them."""
    for path in run.rglob("*.json"):
        record = json.loads(path.read_text())
        if "content_sha256" in record:
            kept = {k: v for k, v in record.items() if k not in ("content_sha256", "files_sha256")}
            path.write_text(json.dumps(kept, indent=1) + "\n")


def _make_report(folder: Path) -> None:
    folder.mkdir()
    record = {"sae_as_trained": {"activation_scale": 1.0}, "harvested": {}, "n_tokens": 5}
    measured = Measured(
        "arm", 0, "a", 1.0, folder, {"l0": 3.0}, {"fidelity.error": torch.ones(4)},
        {**record, "seconds": {"train": 1.0}, "machine": ""}, {"saes": {}, "seed": 0},
    )  # fmt: skip
    comparison = Comparison(arms={"arm": {"sweep": {"k": [1]}}}, report=str(folder))
    save_results(comparison, [measured], "command")


def _copy_foreign(source: Path, target: Path) -> None:
    if not any(p.is_file() for p in source.iterdir() if p.name != "README.md"):
        source = next(p for p in sorted(source.iterdir()) if p.is_dir())
    while not any(p.is_file() for p in source.iterdir()):
        source = next(p for p in sorted(source.iterdir()) if p.is_dir())
    shutil.copytree(source, target)
    (target / "expected.safetensors").unlink(missing_ok=True)


class Worker:
    """One case in a forked process: its faults come through a pipe, its output lies in a file."""

    def __init__(self, seconds: float, megabytes: int) -> None:
        self.seconds, self.megabytes = seconds, megabytes

    def __call__(self, case: Case, folder: Path, log: Path) -> list[str]:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._work(case, folder, log, writer)
        os.close(writer)
        said, deadline = b"", time.monotonic() + self.seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([reader], [], [], left)[0]:
                if not (part := os.read(reader, 2**16)):
                    break
                said += part
        os.close(reader)
        lines = said.decode().splitlines()
        faults = [line for line in lines if not line.startswith("doing ")]
        doing = [line.removeprefix("doing ") for line in lines if line.startswith("doing ")]
        if left <= 0:
            os.kill(pid, signal.SIGKILL)
            faults.append(f"{doing[-1]}: not done after {self.seconds:.0f} s")
        code = tiny.wait(pid)
        if left > 0 and code != 0:
            faults.append(f"{doing[-1] if doing else 'start'}: the process died ({code})")
        return faults

    def _work(self, case: Case, folder: Path, log: Path, writer: int) -> None:
        try:
            _to_file(log)
            room = _virtual_bytes() + (self.megabytes + 1500) * 2**20  # threads' stacks are empty
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            before = _resident_bytes()
            for name, action in actions(case).items():
                os.write(writer, f"doing {name}\n".encode())
                for fault in _try(partial(action, folder)):
                    os.write(writer, f"{name}: {' '.join(fault.split())}\n".encode())
                grown = (_resident_bytes() - before) / 1e6
                if grown > self.megabytes:
                    os.write(writer, f"{name}: took {grown:,.0f} MB\n".encode())
                    break
            os._exit(0)
        finally:
            os._exit(70)


def _try(action: Callable[[], Any]) -> list[str]:
    """What is wrong with how an action ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    start = os.lseek(1, 0, os.SEEK_CUR)
    try:
        action()
        found = []
    except (ValueError, OSError) as error:
        found = [] if str(error) else [f"an empty {type(error).__name__}"]
        if len(str(error)) > 3000:
            found = [f"a sentence of {len(str(error)):,} characters"]
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        found = [f"{type(error).__name__} at {at}: {str(error)[:150]}"]
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.readlink("/proc/self/fd/1"), "rb") as file:
        file.seek(start)
        return found + _of_output(file.read().decode("utf-8", "replace"))


def _of_output(text: str) -> list[str]:
    found = ["a traceback was printed"] if "Traceback (most recent" in text else []
    acting = {c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t\r"}
    acting |= {
        c for c in text if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLI", "LRI", "PDI")
    }
    if acting:
        line = next(line for line in text.split("\n") if acting & {*line})
        found.append(f"raw {sorted(acting)} on the terminal: {line[:120]!a}")
    return found


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _resident_bytes() -> int:
    """The most that this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # pyright: ignore


def _verified_though_changed(case: Case, folder: Path, sound: Path, log: Path) -> bool:
    if case.base != "run" or not case.name.startswith("model.safetensors"):
        return False
    try:
        ours, theirs = (load_file(f / "model.safetensors") for f in (folder, sound))
    except Exception:
        return False
    same = ours.keys() == theirs.keys() and all(
        torch.equal(ours[n].view(torch.uint8), theirs[n].view(torch.uint8))
        if ours[n].dtype == theirs[n].dtype and ours[n].ndim
        else False
        for n in ours
    )
    return not same and "weights are intact to the bit" in log.read_text(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of where bits are flipped and so on")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--seconds", type=float, default=60, help="that a case may take")
    parser.add_argument("--megabytes", type=int, default=600, help="that a case may take")
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it there")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process with more threads cannot be forked
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.keep or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=not args.keep)
        os.environ |= {"HF_HOME": str(root / "hub"), "HF_HUB_OFFLINE": "1"}
        tried, held = _throw(root, Worker(args.seconds, args.megabytes), args.seed, args.only)
    print(f"{tried} tried, {held} held")
    return int(held < tried)


def _throw(root: Path, worker: Worker, seed: int, only: str) -> tuple[int, int]:
    bases, canary, tried, held = make_bases(root), root / "canary", 0, 0
    for case in cases(bases, canary, seed):
        if only not in f"{case.base}/{case.name}":
            continue
        tried += 1
        folder = root / f"try-{tried}" / case.base
        log = root / f"try-{tried}.log"
        shutil.copytree(bases[case.base], folder)
        case.change(folder)
        faults = worker(case, folder, log)
        if canary.exists():
            faults.append("ran code")
            canary.unlink()
        if _verified_though_changed(case, folder, bases[case.base], log):
            faults.append("other weights were verified")
        held += not faults
        for fault in faults:
            print(f"{tried} {case.base}/{case.name!a}: {fault!a}", flush=True)
        shutil.rmtree(folder.parent)
    return tried, held


if __name__ == "__main__":
    sys.exit(main())
