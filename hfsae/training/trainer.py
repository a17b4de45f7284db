"""Train SAEs on a stream of activations: the loop around `Run.step`, and the files it writes.

SAEs share only the stream, so one trained beside others ends bit-equal to one trained alone. With
several processes each takes its slice of the global batch; gradients (means over the slices),
firing counts and L0 are the same on all of them, and process 0 writes.

In `output_dir`: `checkpoints/`; for each SAE (in a folder of its name, if there are several)
`log.jsonl`, a line each `logging_steps`, and at the end `config.json` and `model.safetensors` of
the folded SAE with `training.json`, the record of the run.
"""

import gc
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from ..activations.harvest import FiniteBatches, refuse_not_finite
from ..io.checksums import stamp
from ..io.errors import Diverged, Refused
from ..io.file_names import CHECKPOINTS, CONFIG, LOG, STEPS, TRAINING
from ..io.files import free_space, locked, reading, sweep, write_whole
from ..io.processor import without_denormals
from ..io.units import ROW
from ..models import SAE
from ..ops import Workspace
from . import checkpoint
from .arguments import TrainingArguments, in_steps
from .directions import DIRECTIONS, cosines, read_directions
from .health import set_l0_
from .refit import refit_
from .run import Run
from .start import sample_size


@runtime_checkable
class ActivationStream(Protocol):  # checkable: shapes and types are checked in tests
    """The methods that the trainer calls; `hfsae.activations.ShuffledActivations` is a stream."""

    progress: Callable[[int, int], None]

    def next_batch(self) -> dict[str, Tensor]:
        """The next batch: activations [batch, d] by site."""
        ...

    def sample(self, n: int) -> dict[str, Tensor]:
        """n activations by site, without moving on in the stream."""
        ...

    def held(self) -> dict[str, Tensor]:
        """By site, the activations [n, d] from which the last batch was taken, in any dtype."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position that `state_dict` returned."""
        ...


logger = logging.getLogger(__name__)
Trained = TypeVar("Trained", bound=SAE | Mapping[str, SAE])


class _Stop(Exception):
    """A request to stop between two steps, when the state in memory is complete and may be
    saved."""


class Interrupt:
    """Delays a request to stop until the current step is finished.

    While entered, the first SIGINT or SIGTERM only sets `requested`; a second one acts at once,
    except inside `deferred()`.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferring = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Protect work that an exception would spoil: torch.save would raise another error."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self._deferring:
            raise KeyboardInterrupt
        self.requested = True


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The accelerator that `args` ask for.

    Raises:
        ValueError: the number of processes is not the one launched or asked for. Without this
            check, a launcher whose processes do not find each other would silently start several
            runs in one folder, or one process where two were meant.
    """
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise Refused(f"report_to={args.report_to!r} needs `pip install {args.report_to}`")
    # Explicit, so that a user's `accelerate config` cannot change results unrecorded.
    accelerator = Accelerator(
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        cpu=torch.backends.mps.is_available(),  # mps lacks float64, which sums need
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # `accelerate launch --cpu --num_processes 2` sets a meeting point, then starts one process.
    is_set = [name in os.environ for name in ("ACCELERATE_USE_CPU", "MASTER_PORT", "WORLD_SIZE")]
    is_lone = is_set == [True, True, False]
    n_processes = args.num_processes or (2 if is_lone else launched)
    if accelerator.num_processes != n_processes:
        raise Refused(
            f"this run has {accelerator.num_processes} process(es), not the "
            f"{'several' if is_lone else n_processes} asked for; `accelerate launch --cpu` starts "
            "only one: on CPUs use `ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node "
            "N -m hfsae train RECIPE`, or set training.num_processes=1 if one is meant"
        )
    return accelerator


def sum_products_in_float32() -> None:
    """Make cuBLAS sum bfloat16 products in float32, from here on and in the whole process.

    Screening needs full-precision sums (`hfsae.ops`). Set this once, before the language model's
    first forward pass: toggling it per step would change the results of a thread that prefetches.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


class Trainer(Generic[Trained]):
    """Trains `saes` on `stream`; `train()` resumes from output_dir's newest checkpoint, if any.

    Args:
        saes: one SAE, or several by name. The sites that they read and write are keys of
            the stream's batches. An `activation_scale` of None is estimated from the stream.
        stream: shuffled activations, `args.batch_size` of them a step over all processes. For
            `calibration_tokens` it needs a method validation(n) -> {site: about n activations that
            training does not read}, which is called after the last step.
        accelerator: made by `make_accelerator(args)` if not given.
        provenance: further entries for `training.json`: source of the activations, command run.
        text: digest of the stream's text; a checkpoint with another one is refused.
        unit: what an activation is of, for progress bars.
        own: by name, the arguments of SAEs that are trained otherwise than by `args`, except in
            what the stream and the files depend on (`arguments.SHARED`).
    """

    def __init__(
        self,
        saes: Trained,
        stream: ActivationStream,
        args: TrainingArguments,
        *,
        accelerator: Accelerator | None = None,
        provenance: Mapping[str, Any] | None = None,
        text: str | None = None,
        own: Mapping[str, TrainingArguments] | None = None,
        unit: str = "tok",
    ) -> None:
        self.unit = unit
        self.args, self.stream, self.provenance = args, stream, dict(provenance or {})
        sum_products_in_float32()
        self.accelerator = accelerator or make_accelerator(args)
        self.output_dir = Path(args.output_dir)
        self._is_single = isinstance(saes, SAE)
        named = {"": saes} if isinstance(saes, SAE) else dict(saes)
        workspace, own = Workspace(), own or {}
        self.runs = {
            name: Run(sae, own.get(name, args), self.accelerator, workspace)
            for name, sae in named.items()
        }
        refits = any(run.args.refit_ridge is not None for run in self.runs.values())
        if refits and not hasattr(stream, "held"):
            raise Refused(
                "training.refit_ridge fits the decoder to what the stream holds, and this stream "
                "has no method held(), which returns {site: activations}; add it, or set "
                "refit_ridge to None"
            )
        self.unread = getattr(stream, "validation", None)
        if args.calibration_tokens and self.unread is None:
            raise Refused(
                "training.calibration_tokens sets thresholds on activations that training does not "
                "read, and this stream has no method validation(n), which returns {site: "
                "activations}; add it, or set calibration_tokens to 0"
            )
        self.identity = checkpoint.identity(args, named, text, own)
        self.interrupt = Interrupt()
        self.finite = FiniteBatches()
        self.steps_done = 0
        self.harvest_seconds, self.sae_seconds = 0.0, dict.fromkeys(named, 0.0)
        self.threshold_factors: dict[str, float | None] = {}
        args.check_shares(self.accelerator.num_processes)

    def train(self) -> Trained:
        """The trained SAE, or {name: SAE} for several: folded, as saved.

        On SIGINT or SIGTERM the step is finished, a checkpoint saved, KeyboardInterrupt raised.

        Raises:
            ValueError: another process uses output_dir, or it holds another run.
        """
        with locked(self.output_dir):
            self._resume()
            if self.args.report_to != "none":
                self.accelerator.init_trackers("hfsae", config=asdict(self.args))
            with self.interrupt, without_denormals(), self._bars() as bar:
                try:
                    if self.steps_done == 0:
                        start = time.perf_counter()
                        n = max(sample_size(run.args) for run in self.runs.values())
                        sample = self.stream.sample(n)
                        refuse_not_finite(sample)
                        self.harvest_seconds += time.perf_counter() - start
                        for name, run in self.runs.items():
                            start = time.perf_counter()
                            run.initialise(sample)
                            self.sae_seconds[name] += time.perf_counter() - start
                        del sample  # up to 131,072 activations
                    while self.steps_done < self.args.total_steps:
                        self._step(bar)
                        if self._anyone(self.interrupt.requested):
                            raise _Stop
                except _Stop:
                    if self.steps_done:  # before the first step there is nothing to save
                        self.save_checkpoint()
                        self.accelerator.wait_for_everyone()  # an early exit would kill the others
                    raise KeyboardInterrupt from None
            trained = self._finish()
        return cast(Trained, trained[""] if self._is_single else trained)

    def _step(self, bar: tqdm) -> None:
        """One step of each SAE on the stream's next batch, their log lines, a checkpoint."""
        step, total = self.steps_done, self.args.total_steps
        logs = step % self.args.logging_steps == 0
        start = time.perf_counter()
        batch = self.stream.next_batch()
        self.finite.add(batch)
        if logs or any(step == run.control.warm_start_steps for run in self.runs.values()):
            self.finite.refuse_past()  # these steps read numbers of the device in any case
        self.harvest_seconds += time.perf_counter() - start
        lines = {}
        for name, run in self.runs.items():
            start = time.perf_counter()
            lines[name] = run.step(batch, step, log=logs)
            self.sae_seconds[name] += time.perf_counter() - start
        self.steps_done += 1
        bar.update(self.args.batch_size)
        for name, line in lines.items() if logs else ():
            numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
            self.accelerator.log({f"{name}/{k}".lstrip("/"): v for k, v in numbers.items()}, step)
            if self.accelerator.is_main_process:
                path = self.output_dir / name / LOG
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"step": step, **line}) + "\n")
                except OSError as error:  # an error while writing does not name the file
                    raise OSError(
                        f"could not write {path} ({error.strerror}; {free_space(path.parent)}): "
                        "make room there and run the same command again; its last checkpoint is "
                        "whole"
                    ) from error
            for sentence in line.get("health", []):
                bar.write(f"step {step} {name}: {sentence}", file=sys.stderr)
        if logs:
            line = next(iter(lines.values()))
            bar.set_postfix_str(f"fvu {line['fvu']:.3f}, l0 {line['l0']:.1f}", refresh=False)
            self._stop_if_not_finite()
        every = in_steps(self.args.save_steps, total)
        if self.steps_done == total or (every and self.steps_done % every == 0):
            self.save_checkpoint()

    @contextmanager
    def _bars(self) -> Iterator[tqdm]:
        """A progress bar for the run; below it, one for the bucket that is being harvested."""
        quiet = {
            "disable": not self.accelerator.is_main_process,
            "unit": self.unit,
            "unit_scale": True,
        }
        quiet["mininterval"] = 0.2 if sys.stderr.isatty() else 15.0
        done = self.steps_done * self.args.batch_size
        total = self.args.total_steps * self.args.batch_size
        harvest: list[tqdm] = []

        def show_harvest(n: int, n_total: int) -> None:
            if not harvest:
                verb = "read" if self.unit == ROW.one else "harvest"
                brief = {"leave": False, "delay": 2}  # seconds: no bar for what is soon done
                harvest.append(tqdm(total=n_total, desc=f"  {verb}", **brief, **quiet))
            harvest[0].update(n - harvest[0].n)
            if n >= n_total:
                harvest.pop().close()
            # A single process may stop within a bucket: the stream's position is still before it.
            if self.interrupt.requested and self.accelerator.num_processes == 1:
                raise _Stop

        with tqdm(total=total, initial=done, desc="train", **quiet) as bar:
            self.stream.progress = show_harvest
            try:
                yield bar
            finally:
                self.stream.progress = lambda n, n_total: None
                for interrupted in harvest:
                    interrupted.close()

    def _anyone(self, requested: bool) -> bool:
        """Whether any process was asked to stop: all must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return requested
        flag = torch.tensor(int(requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum"))

    def save_checkpoint(self) -> None:
        """Write everything the rest of the run depends on: process 0 writes for all processes.

        Raises:
            ValueError: a batch or a weight is not finite; earlier checkpoints remain.
        """
        self.finite.refuse_past()
        self._stop_if_not_finite()
        runs = {name: run.state_dict() for name, run in self.runs.items()}
        if not self.accelerator.is_main_process:
            return
        state = {
            "format": checkpoint.FORMAT,
            "steps_done": self.steps_done,
            "runs": runs,
            "stream": self.stream.state_dict(),
            "rng": torch.get_rng_state(),
            "seconds": {"harvest": self.harvest_seconds, "saes": self.sae_seconds},
            "identity": self.identity,
        }
        folder = self.output_dir / CHECKPOINTS
        with self.interrupt.deferred():
            checkpoint.save(folder, self.steps_done, state, keep=self.args.save_total_limit)

    def _stop_if_not_finite(self) -> None:
        for name, run in self.runs.items():
            if self._anyone(not run.is_finite()):
                raise Diverged(
                    f"weights of SAE {name or '(the only one)'} are no longer finite numbers; "
                    "lower training.learning_rate or sae.l0_coefficient, and start in another "
                    "output_dir"
                )

    def _resume(self) -> None:
        """Resume from the newest checkpoint, if there is one.

        Raises:
            ValueError: it belongs to another run or version, or is damaged.
        """
        is_main = self.accelerator.is_main_process
        for name in self.runs if is_main else ():
            sweep(self.output_dir / name)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if path := max((self.output_dir / CHECKPOINTS).glob(STEPS), default=None):
            state = checkpoint.load(path)
            try:
                checkpoint.refuse_another_run(self.identity, state["identity"], path)
                for name, run in self.runs.items():
                    run.load_state_dict(state["runs"][name])
                self.stream.load_state_dict(state["stream"])
                torch.set_rng_state(state["rng"])
                self.steps_done, seconds = state["steps_done"], state["seconds"]
                self.harvest_seconds = seconds["harvest"]
                self.sae_seconds = dict(seconds["saes"])
            except KeyError as error:
                raise Refused(
                    f"the checkpoint {path} lacks {error}, which this version of hfsae needs; "
                    f"resume with the version that wrote it, or delete {path.parent} to train from "
                    "the start"
                ) from error
            self.accelerator.wait_for_everyone()  # all must have read before the log is cut
        for name in self.runs if is_main else ():  # steps that will be done again leave the log
            log = self.output_dir / name / LOG
            if log.exists():
                with reading(log):
                    lines = log.read_text(encoding="utf-8").splitlines()
                    whole = [line for line in lines if line.endswith("}")]  # a kill cuts a line
                    kept = [x for x in whole if json.loads(x)["step"] < self.steps_done]
                write_whole(log, "".join(line + "\n" for line in kept))

    def _finish(self) -> dict[str, SAE]:
        """The trained SAEs: folded, refitted, calibrated on what training did not read, saved."""
        folded: dict[str, SAE] = {}
        for name, run in self.runs.items():
            sae, ridge = run.whole_sae().eval().folded(), run.args.refit_ridge
            if ridge is not None and sae.has_one_reconstruction:
                held, start = self.stream.held(), time.perf_counter()
                refit_(sae, sae.config.reads.joined(held), sae.config.writes.joined(held), ridge)
                self.sae_seconds[name] += time.perf_counter() - start
            folded[name] = sae
        if self.unread is not None and self.args.calibration_tokens:
            start = time.perf_counter()
            try:
                unread = self.unread(self.args.calibration_tokens)
            except Refused as error:  # few documents: the training is whole all the same
                logger.warning("thresholds stay as they were trained: %s", error)
            else:
                self.harvest_seconds += time.perf_counter() - start
                for name, sae in folded.items():
                    start = time.perf_counter()
                    self.threshold_factors[name] = set_l0_(sae, sae.config.reads.joined(unread))
                    self.sae_seconds[name] += time.perf_counter() - start
        if self.accelerator.is_main_process:
            for name, sae in folded.items():
                record = self.record(name)
                if path := self.runs[name].args.init_decoder:
                    directions, names = read_directions(path, sae.config)
                    record[DIRECTIONS] = {"names": names, "cosines": cosines(sae, directions)}
                save_whole(sae, self.output_dir / name, record)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []
        return folded

    def record(self, name: str) -> dict[str, Any]:
        """The record of the run, for the card: arguments, counts, seconds, versions."""
        run, harvested = self.runs[name], getattr(self.stream, "record", {})
        n_tokens = self.steps_done * self.args.batch_size
        train = sum(self.sae_seconds.values())
        seconds = {"harvest": self.harvest_seconds, "train": train, "sae": self.sae_seconds[name]}
        peak = 0  # of this process's main memory so far; 0 where the system does not report it
        if sys.platform != "win32":
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
        return {
            "training": asdict(run.args),
            "sae_as_trained": run.sae.config.to_diff_dict(),
            "n_tokens": n_tokens,
            "fvu_in_training": run.last_fvu,
            "warm_start_tokens": run.control.warm_start_steps * self.args.batch_size,
            "harvested": harvested,
            "final_coefficients": {
                name: value * run.control.factor
                for name, value in run.sae.config.to_dict().items()
                if name in ("l0_coefficient", "l1_coefficient")
            },
            "threshold_factor": self.threshold_factors.get(name),
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
            "n_processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "peak_memory_bytes": peak,
            **self.provenance,
        }

    def close(self) -> None:
        """Release all distributed objects: a process that ends with DDP models alive may abort."""
        self.accelerator.wait_for_everyone()
        self.runs.clear()
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()


def save_whole(sae: SAE, folder: Path, record: dict[str, Any]) -> None:
    """Save an SAE so that `folder` never holds half of one: each file renamed, config.json last."""
    temporary = folder / f".tmp-{os.getpid()}"
    try:
        sae.save_pretrained(temporary)
        stamped = {**record, **stamp(temporary)}
        text = json.dumps(stamped, indent=1, default=str) + "\n"
        (temporary / TRAINING).write_text(text, encoding="utf-8")
        mode = (temporary / TRAINING).stat().st_mode
        for path in sorted(temporary.iterdir(), key=lambda p: p.name == CONFIG):
            path.chmod(mode)  # safetensors makes files readable by their owner only
            os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write the trained SAE to {folder} ({error}; "
            f"{free_space(folder)}): make room there and run the same command again; "
            "its last checkpoint is whole"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
