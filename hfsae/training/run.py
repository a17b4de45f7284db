"""One SAE in training: its step.

The step is schedule -> forward and backward (in parts, if accumulating) -> before_step_ (projected
decoder gradient) -> clip -> Adam -> after_step_ (unit norms) -> count firings -> L0 controller.
"""

import logging
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..io.errors import Refused
from ..lm import widths_of
from ..models import SAE, Schedule
from ..ops import Entries, Workspace, one_process
from .arguments import TrainingArguments
from .kind import StepKind
from .l0 import L0Control
from .optimiser import Optimiser
from .readings import Readings, Silence, StepOutput, of_sources
from .refit import check_refit
from .schedules import geometric, in_steps
from .sharding import check_spread, everywhere, local, part, shard_, unshard_, whole
from .start import start_

FIRST_LOOK = 2048  # activations from which the first threshold and density are estimated
_LARGEST_NORM = 1e12  # its square, times a billion rows, is far below float32's largest number


logger = logging.getLogger(__name__)


def _refuse_beyond_squares(x: Float[Tensor, "n _"], where: object) -> None:
    """Check that float32 holds sums of the squares of activations."""
    size = float(x[:FIRST_LOOK].double().square().sum(dim=-1).mean().sqrt())
    if size and not 1 / _LARGEST_NORM <= size <= _LARGEST_NORM:
        raise Refused(
            f"the activations at {where} have norms of about {size:.0e}, whose squares float32 "
            f"does not hold; divide them by {size:.0e}"
        )


class Run:
    """An SAE with the state of its training.

    `tokens_since_fired` [d_sae] counts over all processes; `variance` is the mean of |target - its
    mean|^2 / c^2, so that the mse over it is the FVU of a batch.
    """

    def __init__(
        self,
        sae: SAE,
        args: TrainingArguments,
        accelerator: Accelerator,
        workspace: Workspace | None = None,
    ) -> None:
        if args.refit_ridge is not None:
            check_refit(sae.config)
        self.sae, self.args, self.accelerator = sae.train(), args, accelerator
        self.workspace = workspace or Workspace()  # may be shared by runs that take turns
        sae.lay_out_by_latent()
        self.mesh = self._shard() if args.shard_latents and accelerator.num_processes > 1 else None
        self.model: nn.Module = self.sae if self.mesh else accelerator.prepare(self.sae)
        self.optimiser = Optimiser(sae, args)
        self.control = L0Control(sae, args)
        self.readings = Readings(sae, args, self.control)
        self.kind = StepKind(sae, args, accelerator.device, is_spread=self.mesh is not None)
        self.variance = 1.0
        self.tokens_since_fired = torch.zeros(
            sae.config.d_sae, dtype=torch.int64, device=accelerator.device
        )
        self.last_fvu: float | None = None  # of the last batch that was logged
        has_sparsity = "k" not in vars(sae.config)  # which k sets
        args.say_what_is_shortened(self.control.warm_start_steps, has_sparsity=has_sparsity)

    def _shard(self) -> DeviceMesh:
        """Spread the latents over the processes.

        Raises:
            ValueError: see `check_spread`.
        """
        n = self.accelerator.num_processes
        check_spread(self.sae.config, n)
        mesh = init_device_mesh(self.accelerator.device.type, (n,))
        shard_(self.sae, mesh)
        return mesh

    @torch.no_grad()
    def initialise(self, sample: dict[str, Float[Tensor, "n _"]]) -> None:
        """Set what is estimated from activations: the start, and the warm start's threshold."""
        x, target = self._inputs(sample, is_slice=False)
        for values, where in ((x, self.sae.config.where), (target, self.sae.config.where_to)):
            _refuse_beyond_squares(values, where or self.sae.config.where)
        first = x[:FIRST_LOOK].clone()
        self.variance = start_(self.sae, self.args, x, target)
        if not self.variance > 0:
            raise Refused(
                f"the activations at {self.sae.config.where_to or self.sae.config.where} are the "
                f"same vector in all {len(x):,} of a sample, so there is nothing to learn; give "
                "others"
            )
        if self.control.warm_start_steps:
            self.control.begin(self.sae.pre_activations(first))
        if self.kind.can_be_sparse:
            pre_acts = self.sae.pre_activations(first)
            self.kind.choose(float(self.sae.density(pre_acts, self._schedule(0))))

    def step(self, batch: dict[str, Tensor], step: int, *, log: bool = False) -> dict[str, Any]:
        """Take one optimiser step; with `log`, its log line, else empty."""
        if step == self.control.warm_start_steps > 0:
            self.optimiser.begin()
            self.control.end_warm_start()
        schedule = self._schedule(step)
        self.optimiser.set_rates(step, self.control.warm_start_steps)
        out = self._backward(batch, schedule)
        self.optimiser.place_gradients()
        self.sae.before_step_()
        self.optimiser.clip()
        self.optimiser.step()
        self._clear_gradients()
        self.sae.after_step_()
        firings = self._count(out)
        l0 = int(firings.sum()) / self.args.batch_size
        line = self._log_line(out, firings, schedule, step) if log else {}
        self.control.after_step(l0, step)
        return line

    def _schedule(self, step: int) -> Schedule:
        a, warm_start_steps = self.args, self.control.warm_start_steps
        bandwidth_steps = in_steps(a.bandwidth_steps, a.total_steps)
        since = step - warm_start_steps
        if since < 0:  # thresholds are not learnt yet: a window would only cost time
            bandwidth = float(getattr(self.sae.config, "ste_to_inputs", False))
        else:
            bandwidth = geometric(since, bandwidth_steps, a.bandwidth_start)
        dead, summed = self.sae.revivable(self._dead()), self._sum
        if self.mesh is not None:  # each process has the whole batch
            dead, summed = everywhere(dead, self.mesh, is_slice=False), one_process
        return Schedule(self.control.sparsity(step), bandwidth, dead, summed, training=True)

    def _backward(self, batch: dict[str, Tensor], schedule: Schedule) -> StepOutput:
        """Accumulate gradients of the batch's mean loss, part by part."""
        x, target = self._inputs(batch)
        n_parts = self.args.gradient_accumulation_steps
        losses: dict[str, Tensor] = {}
        fired = torch.zeros_like(self.tokens_since_fired)
        n_entries = fired.new_zeros(1)
        parts = list(zip(x.chunk(n_parts), target.chunk(n_parts), strict=True))
        for i, (x_part, target_part) in enumerate(parts, start=1):
            waits = i < n_parts
            with self.accelerator.no_sync(self.model) if waits else nullcontext():
                with self._autocast():
                    out = self.model(
                        x_part,
                        target_part,
                        schedule=schedule,
                        return_loss=True,
                        workspace=self.workspace if self.kind.is_sparse else None,
                    )
                self.accelerator.backward(out.loss / n_parts)
            fired += whole(out.at.count(out.latents != 0))
            n_entries += self._n_entries(out, schedule)
            for name, loss in out.losses.items():
                losses[name] = losses.get(name, 0) + loss.detach() / n_parts
        return StepOutput(x_part, out.pre_acts.detach(), out.at, losses, fired, n_entries)

    def _n_entries(self, out: Any, schedule: Schedule) -> int:
        if isinstance(out.at, Entries):
            return len(out.at)
        if not self.kind.is_open:
            return 0
        return round(float(self.sae.density(out.pre_acts, schedule)) * out.pre_acts.numel())

    def _autocast(self) -> torch.autocast:
        device = self.accelerator.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.args.bf16)

    def _inputs(self, batch: dict[str, Tensor], is_slice: bool = True) -> tuple[Tensor, Tensor]:
        """This process's share of the batch; the whole batch, where latents are spread instead."""
        device, config = self.accelerator.device, self.sae.config
        if missing := [site for site in widths_of(config) if site not in batch]:
            raise Refused(
                f"this SAE needs site {missing[0]!r}, but the stream carries {', '.join(batch)}; "
                "spell config.site as in the harvester's sites"
            )
        joined, is_same = [], config.reads == config.writes
        for side in (config.reads,) if is_same else (config.reads, config.writes):
            x = side.joined(batch).to(device, non_blocking=True)
            joined.append(x if self.mesh is None else everywhere(x, self.mesh, is_slice=is_slice))
        return joined[0], joined[-1]

    def _clear_gradients(self) -> None:
        if self.kind.is_sparse:  # the next step reuses their memory
            for name in self.sae.latent_dims:
                self.workspace.recycle_(self.sae.get_parameter(name))
        self.sae.zero_grad(set_to_none=False)

    def _count(self, out: StepOutput) -> Int[Tensor, " d_sae"]:
        """Update the dead-latent counters and the kind of step; firings in the global batch."""
        counts = self._sum(torch.cat([out.fired, out.n_entries]))
        fired = counts[:-1]
        self.kind.choose(int(counts[-1]) / (self.args.batch_size * len(fired)))
        self.tokens_since_fired += self.args.batch_size
        self.tokens_since_fired[fired > 0] = 0
        return fired

    def _sum(self, x: Tensor) -> Tensor:
        return self._reduce(x, "sum")

    def _reduce(self, x: Tensor, how: str) -> Tensor:
        """x reduced over processes, unless each has seen the whole batch."""
        if self.mesh is not None:
            return whole(x)
        return cast(Tensor, self.accelerator.reduce(x, how))

    @torch.no_grad()
    def _log_line(
        self, out: StepOutput, firings: Int[Tensor, " d_sae"], schedule: Schedule, step: int
    ) -> dict[str, Any]:
        l0 = int(firings.sum()) / self.args.batch_size
        losses = {name: float(self._reduce(v, "mean")) for name, v in out.losses.items()}
        self.last_fvu = losses["mse"] / self.variance
        seen = (step + 1) * self.args.batch_size
        never = float((self.tokens_since_fired >= seen).float().mean())
        silent = Silence(float(self._dead().float().mean()), never)
        line = {
            "loss": sum(losses.values()),
            **losses,
            "fvu": self.last_fvu,
            "l0": l0,
            "dead_share": silent.dead,
            "learning_rate": self.optimiser.learning_rate,
            **self.readings.line(out, l0, silent, schedule, step),
        }
        if self.sae.config.is_causal:
            line |= of_sources(firings / self.args.batch_size, line, self.sae.config)
        return line

    def _dead(self) -> Bool[Tensor, " d_sae"]:
        return self.tokens_since_fired > self.args.dead_after_tokens

    def is_finite(self) -> bool:
        """Whether all weights that this process holds are finite."""
        return all(bool(local(p).isfinite().all()) for p in self.sae.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The training state, independent of the number of processes; all must call this.

        Where latents are spread, only process 0 gets the whole tensors, in main memory: they may
        not fit on one device.
        """
        config = self.sae.config
        return {
            "sae": {name: self._kept(whole(x)) for name, x in self.sae.state_dict().items()},
            "scales": [getattr(config, name) for name in config.scale_names],
            "moments": self.optimiser.moments(self._kept),
            "sparsity": self.control.factor,
            "variance": self.variance,
            "is_sparse": self.kind.is_sparse,
            "tokens_since_fired": self.tokens_since_fired,
            "previous": dict(self.readings.previous),
            "last_fvu": self.last_fvu,
        }

    def _kept(self, x: Tensor) -> Tensor:
        if self.mesh is None:
            return x
        return x.cpu() if self.accelerator.is_main_process else x.new_empty(0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        device = self.accelerator.device
        for name, p in self.sae.named_parameters():
            local(p.detach()).copy_(part(state["sae"][name], like=p))
        self.optimiser.load_moments(state["moments"])
        config = self.sae.config
        for name, scale in zip(config.scale_names, state["scales"], strict=True):
            setattr(config, name, scale)
        self.control.factor, self.variance = state["sparsity"], state["variance"]
        self.kind.is_sparse = state["is_sparse"]
        self.tokens_since_fired = state["tokens_since_fired"].to(device)
        self.last_fvu = state["last_fvu"]
        self.readings.previous = state["previous"]
        if state["previous"]:
            state["previous"]["threshold"] = state["previous"]["threshold"].to(device)

    def whole_sae(self) -> SAE:
        """The SAE with plain parameters; in main memory, if latents were spread."""
        if self.mesh is not None:
            unshard_(self.sae)
        return self.sae
