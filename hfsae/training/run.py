"""One SAE in training: its step, its optimiser, and the hand that steers its L0.

The step is schedule -> forward and backward (in parts, if accumulating) -> before_step_ (projected
decoder gradient) -> clip -> Adam -> after_step_ (unit norms) -> count what fired -> steer L0.

Forward and backward are sparse (`hfsae.ops.sparse`) where that is faster. Which they are depends on
nothing but the step before and the settings, so that runs repeat to the bit on any machine.
"""

import logging
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..models import SAE, Schedule
from ..ops import Entries, Place, Workspace, alone
from .arguments import TrainingArguments
from .health import Reading, diagnose, diagnose_dead
from .schedules import (
    cosine_warmup,
    fitted,
    geometric,
    in_steps,
    linear_decay,
    linear_warmup,
    steer,
)
from .sharding import (
    check_spread,
    everywhere,
    joined,
    local,
    part,
    placed_as,
    shard_,
    unshard_,
    whole,
)

SAMPLE_FOR_THRESHOLD = 2048  # activations that the warm start's first threshold is taken from
_SPARSITY_REACH = 1e4  # the controller moves a coefficient at most this far from what was given
# Sparse steps gain where under a seventh of all entries matter, as measured at d_in 576 and 2304 on
# CPUs (scripts/bench/gpu.py tells it of a GPU); two limits, so that a run which lies between them
# does not go to and fro. No run times the two for itself: the clock would choose differently from
# one run to the next, and the bits with it.
SPARSE_BELOW, _DENSE_ABOVE = 0.10, 0.14
SPARSE_FROM = 1024  # latents; with fewer, a dense step takes milliseconds anyway
_WARM_START_GAIN = 0.1  # a threshold acts on L0 at once; lambda only through many steps


logger = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """What a step's forward passes showed."""

    x: Float[Tensor, "part d_in"]
    """inputs of the last part"""
    pre_acts: Float[Tensor, "..."]
    """of the last part..."""
    at: Place
    """...and where they stand"""
    losses: dict[str, Tensor]
    """means over this process's share of the batch"""
    fired: Tensor
    """[d_sae], times that each latent fired in this process's share"""
    n_entries: Tensor
    """pairs of a token and a latent there that could have a value or a gradient"""


class Run:
    """An SAE with everything that belongs to its training alone.

    `sparsity` is the controller's factor on the sparsity coefficients; `tokens_since_fired` [d_sae]
    counts over all processes; `variance` is the mean of |target - its mean|^2 / c^2, so that the
    mse over it is the FVU of a batch.
    """

    def __init__(
        self,
        sae: SAE,
        args: TrainingArguments,
        accelerator: Accelerator,
        workspace: Workspace | None = None,
    ) -> None:
        self.sae, self.args, self.accelerator = sae.train(), args, accelerator
        self.workspace = workspace or Workspace()  # may be shared by runs that take turns
        sae.lay_out_by_latent()
        self.mesh = self._shard() if args.shard_latents and accelerator.num_processes > 1 else None
        self.model: nn.Module = self.sae if self.mesh else accelerator.prepare(self.sae)
        self.optimizer = self._make_optimizer()
        self.sparsity = 1.0
        self.variance = 1.0
        self.tokens_since_fired = torch.zeros(
            sae.config.d_sae, dtype=torch.int64, device=accelerator.device
        )
        self.is_sparse = args.sparse == "always"
        self.last_fvu: float | None = None  # of the last batch that was logged
        self._previous: dict[str, Any] = {}
        self._refuse_what_cannot_be_sparse()
        self._say_what_is_shortened()

    def _shard(self) -> DeviceMesh:
        """Spread the latents over the processes.

        Raises:
            ValueError: as `check_spread`.
        """
        n, config = self.accelerator.num_processes, self.sae.config
        check_spread(config, n)
        mesh = init_device_mesh(self.accelerator.device.type, (n,))
        shard_(self.sae, config.d_sae, mesh)
        return mesh

    def _refuse_what_cannot_be_sparse(self) -> None:
        if self.is_sparse and not self._can_be_sparse:
            raise ValueError(
                f"training.sparse='always': a {type(self.sae).__name__} as configured on "
                f"{self.accelerator.device} has no sparse step; 'auto' takes dense ones there"
            )

    @property
    def _can_be_sparse(self) -> bool:
        is_here = self.accelerator.device.type in ("cpu", "cuda") and self.mesh is None
        return is_here and self.sae.can_be_sparse

    def _make_optimizer(self) -> torch.optim.Optimizer:
        # The fused optimiser copies what does not lie in memory as it is indexed, and knows no
        # DTensors: so it is given views, of W_enc by its rows per latent, with views of gradients.
        self._views = {name: self._view(name, p.detach()) for name, p in self._named()}
        named = self._views.items()
        groups = [
            {"params": [p for name, p in named if name != "threshold"]},
            {"params": [p for name, p in named if name == "threshold"], "is_threshold": True},
        ]
        return torch.optim.Adam(
            [group for group in groups if group["params"]],
            lr=self.args.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            fused=True,  # several times the default on a CPU
        )

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.sae.named_parameters())

    @staticmethod
    def _view(name: str, x: Tensor) -> Tensor:
        return local(x).T if name == "W_enc" else local(x)

    @property
    def target_l0(self) -> float | None:
        target = getattr(self.sae.config, "target_l0", None)
        return None if target is None else float(target)

    @property
    def warm_start_steps(self) -> int:
        wanted = self.target_l0 is not None and self.sae.config.has_thresholds
        return in_steps(self.args.warm_start_steps, self.args.total_steps) if wanted else 0

    @torch.no_grad()
    def initialise(self, sample: dict[str, Float[Tensor, "n _"]]) -> None:
        """Set what is estimated from activations: scale, bias, and the warm start's threshold."""
        config, (x, target) = self.sae.config, self._inputs(sample, is_slice=False)
        if config.activation_scale is None:
            config.activation_scale = _root_mean_square_norm(x)
        if config.is_transcoder and config.target_scale is None:
            config.target_scale = _root_mean_square_norm(target)
        mean = target.mean(dim=0)
        self.variance = float((target - mean).square().sum(-1).mean()) / self.sae.scale**2
        if self.args.init_b_dec == "mean":
            self.sae.b_dec.copy_(mean / self.sae.scale)
        if self.warm_start_steps and self.target_l0:
            pre_acts = self.sae.pre_activations(x[:SAMPLE_FOR_THRESHOLD])
            n_kept = round(self.target_l0 * len(pre_acts))
            threshold = _nth_largest_(whole(pre_acts), n_kept) / self.sae.scale
            # A threshold of 0 could never be steered: it moves by factors.
            least = float(self.sae.config.initial_threshold)
            self._threshold.fill_(max(threshold, least))
        if self._can_be_sparse:
            pre_acts = self.sae.pre_activations(x[:SAMPLE_FOR_THRESHOLD])
            self._choose(float(self.sae.density(pre_acts, self._schedule(0))))
        elif self.args.sparse == "auto":
            name, device = type(self.sae).__name__, self.accelerator.device
            logger.info("dense steps: a %s as configured has no sparse one on %s", name, device)

    def _choose(self, density: float) -> None:
        """Take sparse or dense steps from here on."""
        if self.args.sparse != "auto" or not self._can_be_sparse:
            return
        before, limit = self.is_sparse, _DENSE_ABOVE if self.is_sparse else SPARSE_BELOW
        self.is_sparse = self.sae.config.d_sae >= SPARSE_FROM and density < limit
        if self.is_sparse != before:
            kind = "sparse" if self.is_sparse else "dense"
            logger.info("%s steps: %.2g of all entries matter", kind, density)

    def step(self, batch: dict[str, Tensor], step: int, *, log: bool = False) -> dict[str, Any]:
        """One optimiser step; what to log of it, where asked."""
        if step == self.warm_start_steps > 0:
            self.optimizer = self._make_optimizer()
            self._balance()
        schedule = self._schedule(step)
        self._set_learning_rates(step)
        seen = self._backward(batch, schedule)
        self._place_gradients()
        self.sae.before_step_()
        self._clip()
        self._optimise()
        self._clear_gradients()
        self.sae.after_step_()
        l0 = self._count(seen)
        line = self._log_line(seen, l0, schedule, step) if log else {}
        self._steer(l0, step)
        return line

    @torch.no_grad()
    def _balance(self) -> None:
        """Where the warm start ends, begin with the lambda that its threshold is right for."""
        sparsity = self.sae.config.sparsity_at(float(whole(self._threshold).median()))
        if sparsity is not None:
            self.sparsity = _within_reach(sparsity)

    @property
    def _threshold(self) -> nn.Parameter:
        return self.sae.get_parameter("threshold")

    def _place_gradients(self) -> None:
        for _, p in self._named():
            if p.grad is not None:
                p.grad = placed_as(p.grad, p)

    @torch.no_grad()
    def _clip(self) -> None:
        """Have the optimiser divide gradients by what exceeds max_grad_norm, as it reads them."""
        if self.args.max_grad_norm is None:
            return
        grads = [p.grad for p in self.sae.parameters() if p.grad is not None]
        norms = [whole(torch.linalg.vector_norm(g)) for g in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        excess = ((norm + 1e-6) / self.args.max_grad_norm).float()  # whatever gradients are
        # Fused optimisers take these two from an AMP scaler; clip_grad_norm_ would write them all.
        fused = cast(Any, self.optimizer)
        fused.grad_scale = excess if excess > 1 else None
        fused.found_inf = torch.zeros_like(excess) if excess > 1 else None

    def _optimise(self) -> None:
        for name, p in self._named():
            self._views[name].grad = None if p.grad is None else self._view(name, p.grad)
        self.optimizer.step()
        for view in self._views.values():
            view.grad = None

    def _clear_gradients(self) -> None:
        if self.is_sparse:  # the next step computes into their memory
            self.workspace.recycle_(self.sae.W_enc)
            self.workspace.recycle_(self.sae.W_dec)
        self.sae.zero_grad(set_to_none=False)

    def _backward(self, batch: dict[str, Tensor], schedule: Schedule) -> _Seen:
        """Gradients of the batch's mean loss, in parts of it."""
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
                        workspace=self.workspace if self.is_sparse else None,
                    )
                self.accelerator.backward(out.loss / n_parts)
            fired += whole(out.at.count(out.latents != 0))
            n_entries += self._n_entries(out, schedule)
            for name, loss in out.losses.items():
                losses[name] = losses.get(name, 0) + loss.detach() / n_parts
        return _Seen(x_part, out.pre_acts.detach(), out.at, losses, fired, n_entries)

    def _n_entries(self, out: Any, schedule: Schedule) -> int:
        if isinstance(out.at, Entries):
            return len(out.at)
        is_asked = self.args.sparse == "auto" and self._can_be_sparse
        if not is_asked:
            return 0
        return round(float(self.sae.density(out.pre_acts, schedule)) * out.pre_acts.numel())

    def _autocast(self) -> torch.autocast:
        device = self.accelerator.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.args.bf16)

    def _inputs(self, batch: dict[str, Tensor], is_slice: bool = True) -> tuple[Tensor, Tensor]:
        """This process's share of the batch; all of it, where the latents are what is shared."""
        device, places = self.accelerator.device, self.sae.config.places
        if missing := [site for site in places if site not in batch]:
            raise ValueError(
                f"this SAE is of site {missing[0]!r}, the stream carries {', '.join(batch)}: spell "
                "the SAE's config.site as the harvester's sites"
            )
        x, target = (batch[site].to(device, non_blocking=True) for site in places)
        if self.mesh is not None:
            x, target = (everywhere(each, self.mesh, is_slice=is_slice) for each in (x, target))
        return x, target

    def _schedule(self, step: int) -> Schedule:
        dead, summed = self._dead(), self._sum
        if self.mesh is not None:  # each process has the whole batch
            dead, summed = everywhere(dead, self.mesh, is_slice=False), alone
        if step < self.warm_start_steps:
            return Schedule(0.0, dead=dead, summed=summed, training=True)
        a = self.args
        bandwidth_steps = in_steps(a.bandwidth_steps, a.total_steps)
        return Schedule(
            sparsity=self.sparsity * self._sparsity_warmup(step),
            bandwidth=geometric(step - self.warm_start_steps, bandwidth_steps, a.bandwidth_start),
            dead=dead,
            summed=summed,
            training=True,
        )

    def _sparsity_warmup(self, step: int) -> float:
        warmup_steps = self._fitted("sparsity_warmup_steps")
        return linear_warmup(step - self.warm_start_steps, warmup_steps)

    def _fitted(self, name: str) -> int:
        total = self.args.total_steps
        return fitted(getattr(self.args, name), total, total - self.warm_start_steps)

    def _say_what_is_shortened(self) -> None:
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            given = in_steps(getattr(self.args, name), self.args.total_steps)
            if given > self._fitted(name):
                logger.info(
                    "training.%s (%d) does not fit into the %d steps after the warm start: half of "
                    "them are used",
                    name,
                    given,
                    self.args.total_steps - self.warm_start_steps,
                )

    def _set_learning_rates(self, step: int) -> None:
        a, total, warm = self.args, self.args.total_steps, step < self.warm_start_steps
        since_start = step if warm else step - self.warm_start_steps
        factor = cosine_warmup(since_start, self._fitted("warmup_steps"))
        factor *= linear_decay(step, total, in_steps(a.decay_steps, total))
        for group in self.optimizer.param_groups:
            rate = a.learning_rate
            if group.get("is_threshold"):
                # In the warm start the controller moves the common threshold, not Adam.
                rate = 0.0 if warm else a.threshold_learning_rate or a.learning_rate
            group["lr"] = rate * factor

    def _count(self, seen: _Seen) -> float:
        """Update the dead-latent counters and the kind of step; L0 of the global batch."""
        counts = self._sum(torch.cat([seen.fired, seen.n_entries]))
        fired = counts[:-1]
        self._choose(int(counts[-1]) / (self.args.batch_size * len(fired)))
        self.tokens_since_fired += self.args.batch_size
        self.tokens_since_fired[fired > 0] = 0
        return int(fired.sum()) / self.args.batch_size

    def _sum(self, x: Tensor) -> Tensor:
        return self._reduce(x, "sum")

    def _reduce(self, x: Tensor, how: str) -> Tensor:
        """Over processes, unless each has seen the whole batch."""
        if self.mesh is not None:
            return whole(x)
        return cast(Tensor, self.accelerator.reduce(x, how))

    @torch.no_grad()
    def _steer(self, l0: float, step: int) -> None:
        if self.target_l0 is None:
            return
        if step < self.warm_start_steps:
            self._threshold.mul_(steer(1.0, l0, self.target_l0, _WARM_START_GAIN))
        elif self.sae.config.steers_itself:
            return
        elif (
            self._sparsity_warmup(step) == 1.0
        ):  # else it would answer for the warm-up, and wind up
            sparsity = steer(self.sparsity, l0, self.target_l0, self.args.l0_gain)
            self.sparsity = _within_reach(sparsity)

    @torch.no_grad()
    def _log_line(self, seen: _Seen, l0: float, schedule: Schedule, step: int) -> dict[str, Any]:
        losses = {name: float(self._reduce(v, "mean")) for name, v in seen.losses.items()}
        self.last_fvu = losses["mse"] / self.variance
        line: dict[str, Any] = {
            "loss": sum(losses.values()),
            **losses,
            "fvu": self.last_fvu,
            "l0": l0,
            "dead_share": self._dead_share(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        moves = self.sae.config.has_thresholds and self._threshold.requires_grad
        if moves and step >= self.warm_start_steps:
            line |= self._health(self.sae, seen, l0, schedule, step)
        elif found := diagnose_dead(self._dead_share()):
            line["health"] = found
        return line

    def _dead(self) -> Bool[Tensor, " d_sae"]:
        return self.tokens_since_fired > self.args.dead_after_tokens

    def _dead_share(self) -> float:
        return float(self._dead().float().mean())

    def _health(
        self, sae: SAE, seen: _Seen, l0: float, schedule: Schedule, step: int
    ) -> dict[str, Any]:
        """Thresholds and window, and what `diagnose` makes of them against the line before."""
        threshold = whole(self._threshold.detach()).clone()
        before, now = self._previous, {"step": step, "l0": l0, "sparsity": schedule.sparsity}
        self._previous = {**now, "threshold": threshold}
        share = float(whole(sae.window_share(seen.pre_acts, schedule, seen.at)))
        line = {
            "l0_coefficient": sae.config.l0_coefficient * schedule.sparsity,
            "threshold_median": float(threshold.median()),
            "window_share": share,
        }
        if not before:
            return line
        c, total = float(sae.config.activation_scale or 1.0), self.args.total_steps
        reading = Reading(
            steps=step - before["step"],
            steps_left=total - step,
            share_done=step / total,
            l0=l0,
            previous_l0=before["l0"],
            target_l0=self.target_l0,
            window_hits=share * self.args.batch_size,
            threshold_travel=_median_travel(threshold, before["threshold"]),
            sparsity_growth=schedule.sparsity / max(before["sparsity"], 1e-30),
            dead_share=self._dead_share(),
            mean_square_norm=(_root_mean_square_norm(whole(seen.x)) / c) ** 2,
            log_threshold=sae.config.log_threshold,
            warming_up=self._sparsity_warmup(step) < 1,
            decaying=step >= total - in_steps(self.args.decay_steps, total) > 0,
        )
        travel = reading.threshold_travel
        return {**line, "threshold_travel": travel, "health": diagnose(reading)}

    def is_finite(self) -> bool:
        """Whether all weights that this process holds are."""
        return all(bool(local(p).isfinite().all()) for p in self.sae.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The same whatever the number of processes, all of which must take part.

        Where latents are spread, process 0 alone gets their whole tensors, in main memory: one
        device has no room for what was spread because it does not fit.
        """
        config = self.sae.config
        return {
            "sae": {name: self._kept(whole(x)) for name, x in self.sae.state_dict().items()},
            "scales": [config.activation_scale, config.target_scale],
            "moments": {name: self._moments(name, p) for name, p in self._named()},
            "sparsity": self.sparsity,
            "variance": self.variance,
            "is_sparse": self.is_sparse,
            "tokens_since_fired": self.tokens_since_fired,
            "previous": dict(self._previous),
            "last_fvu": self.last_fvu,
        }

    def _kept(self, x: Tensor) -> Tensor:
        if self.mesh is None:
            return x
        return x.cpu() if self.accelerator.is_main_process else x.new_empty(0)

    def _moments(self, name: str, p: nn.Parameter) -> dict[str, Tensor]:
        """Adam's, of a whole parameter and in its orientation; its number of steps."""
        state: dict[str, Tensor] = self.optimizer.state[self._views[name]]
        matrices = {key: self._view(name, value) for key, value in state.items() if value.ndim}
        return {**state, **{k: self._kept(joined(x, like=p)) for k, x in matrices.items()}}

    def _load_moments(self, name: str, p: nn.Parameter, moments: dict[str, Tensor]) -> None:
        for key, value in moments.items():
            mine = self._view(name, part(value, like=p)) if value.ndim else value.to(p.device)
            self.optimizer.state[self._views[name]][key] = mine.contiguous()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, p in self._named():
            local(p.detach()).copy_(part(state["sae"][name], like=p))
            self._load_moments(name, p, state["moments"][name])
        self.sae.config.activation_scale, self.sae.config.target_scale = state["scales"]
        self.sparsity, self.variance = state["sparsity"], state["variance"]
        self.is_sparse = state["is_sparse"]
        self.tokens_since_fired = state["tokens_since_fired"].to(self.accelerator.device)
        self._previous = state["previous"]
        self.last_fvu = state.get("last_fvu")  # not in older checkpoints
        if self._previous:
            device = self.accelerator.device
            self._previous["threshold"] = self._previous["threshold"].to(device)

    def whole_sae(self) -> SAE:
        """The SAE with plain parameters, however it was trained; in main memory, if spread."""
        if self.mesh is not None:
            unshard_(self.sae)
        return self.sae


def _within_reach(sparsity: float) -> float:
    return min(max(sparsity, 1 / _SPARSITY_REACH), _SPARSITY_REACH)


def _nth_largest_(x: Tensor, n: int) -> float:
    """Of x, whose order is lost: torch's `topk` takes 16 bytes a number to keep it on a CPU."""
    values = x.flatten().cpu().numpy()
    values.partition(len(values) - n)
    return float(values[len(values) - n])


def _root_mean_square_norm(x: Float[Tensor, "n d"]) -> float:
    return float(x.float().square().sum(dim=-1).mean().sqrt())


def _median_travel(now: Float[Tensor, " d_sae"], before: Float[Tensor, " d_sae"]) -> float:
    moved = torch.where(before > 0, now / before - 1, now)  # one that stays at 0 has not moved
    return float(moved.abs().median())
