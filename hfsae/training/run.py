"""One SAE in training: its step, with its Adam.

The step is schedule -> forward and backward (in parts, if accumulating) -> before_step_ (projected
decoder gradient) -> clip -> Adam -> after_step_ (unit norms) -> count firings -> L0 controller.

Steps are sparse (`hfsae.ops.sparse`) or dense. The choice depends only on the settings and the
density at a step before, so that runs repeat to the bit on any machine. It is not timed: timings
vary between runs, and results would too.

What a step counts (firings, density) moves the L0 controller, and says which latents are dead and
of what kind the next step is. The host reads it when the step has ended; on a GPU when the next
one is under way, so that it never waits for the device except where a line is logged.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ..io.errors import Refused
from ..lm import widths_of
from ..models import SAE, SAEConfig, Schedule
from ..ops import ASYNCHRONOUS, Download, Entries, Place, Workspace, one_process, sparse, upload
from .arguments import TrainingArguments, cosine_warmup, geometric, in_steps, linear_decay
from .health import L0Control, Readings, diagnose_sources
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
from .start import start_

FIRST_LOOK = 2048  # activations from which the first threshold and density are estimated
_LARGEST_NORM = 1e12  # its square, times a billion rows, is far below float32's largest number
# Sparse steps are faster where under a seventh of all entries matter, as measured at d_in 576 and
# 2304 on CPUs. A GPU's dense products are faster by more than its memory, from which an entry reads
# five rows: there by the table of scripts/recipes/gpus.md, which scripts/bench/gpu.py measures. Two
# limits, since hysteresis keeps a run from switching back and forth.
SPARSE_BELOW, _DENSE_ABOVE = 0.10, 0.14
SPARSE_ON_GPU = 0.003, 0.004
SPARSE_FROM = 1024  # latents; with fewer, a dense step takes milliseconds anyway
MOST_REFITTED = 2**15  # latents

logger = logging.getLogger(__name__)


def has_sparse_steps(sae: SAE, device: torch.device, *, is_spread: bool) -> bool:
    """Whether an SAE as configured has sparse steps on a device, or with its latents spread."""
    return device.type in sparse.DEVICES and not is_spread and sae.can_be_sparse


def check_refit(config: SAEConfig) -> None:
    """Refuse a dictionary that is too wide, since a refit holds a matrix of d_sae^2 numbers twice,
    or whose latents do not all write everywhere."""
    if config.is_causal and config.has_several_sites:
        raise Refused(
            f"training.refit_ridge fits rows that write at all sites, and a {config.model_type}'s "
            "write at later ones alone; set it to null"
        )
    if config.dedicated:
        raise Refused(
            "training.refit_ridge fits the rows of each site by themselves, and sae.dedicated "
            "holds them equal; set it to null"
        )
    d_sae = config.d_sae
    if d_sae > MOST_REFITTED:
        raise Refused(
            f"training.refit_ridge would hold {8 * d_sae**2 / 1e9:,.0f} GB for {d_sae:,} latents; "
            f"it is for short runs of at most {MOST_REFITTED:,} latents: set it to null"
        )


class Run:
    """An SAE with the state of its training.

    `is_sparse` says of what kind the next step is. `tokens_since_fired` [d_sae], in main memory,
    counts over all processes, up to `steps_behind` steps before the last. `variance` is the mean of
    |target - its mean|^2 / c^2, so that the mse over it is the FVU of a batch.

    Raises:
        ValueError: training.sparse="always", but the SAE as configured has no sparse step here; its
            latents cannot be spread (see `check_spread`); or it cannot be refitted.
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
        device, n = accelerator.device, accelerator.num_processes
        self.mesh = None
        if args.shard_latents and n > 1:  # spread the latents over the processes
            check_spread(sae.config, n)
            self.mesh = init_device_mesh(device.type, (n,))
            shard_(sae, self.mesh)
        self.model: nn.Module = self.sae if self.mesh else accelerator.prepare(self.sae)
        self.optimiser = Optimiser(sae, args)
        self.control = L0Control(sae, args)
        self.readings = Readings(sae, args, self.control)
        can_be_sparse = has_sparse_steps(sae, device, is_spread=self.mesh is not None)
        self.is_sparse = args.sparse == "always"
        self._follows_density = args.sparse == "auto" and can_be_sparse
        self._can_be_sparse = can_be_sparse
        self._limits = (SPARSE_BELOW, _DENSE_ABOVE) if device.type == "cpu" else SPARSE_ON_GPU
        if self.is_sparse and not can_be_sparse:
            raise Refused(
                f"training.sparse='always': a {type(sae).__name__} as configured on {device} has "
                "no sparse step; 'auto' takes dense ones there"
            )
        if args.sparse == "auto" and not can_be_sparse:
            name = type(sae).__name__
            logger.info("dense steps: a %s as configured has no sparse one on %s", name, device)
        self.variance = 1.0
        self.steps_behind = int(device.type in ASYNCHRONOUS)
        self._counts: deque[tuple[int, Download]] = deque()  # by step, those not yet read
        self.tokens_since_fired = torch.zeros(sae.config.d_sae, dtype=torch.int64)
        self.last_fvu: float | None = None  # of the last batch that was logged

    @torch.no_grad()
    def initialise(self, sample: dict[str, Float[Tensor, "n _"]]) -> None:
        """Set what is estimated from activations: the start, and the warm start's threshold.

        Raises:
            ValueError: the activations do not vary, or float32 does not hold their squares.
        """
        x, target = self._inputs(sample, is_slice=False)
        written = self.sae.config.writes
        for values, sites in ((x, self.sae.config.reads), (target, written)):
            size = float(values[:FIRST_LOOK].double().square().sum(dim=-1).mean().sqrt())
            if size and not 1 / _LARGEST_NORM <= size <= _LARGEST_NORM:
                raise Refused(
                    f"the activations at {sites} have norms of about {size:.0e}, whose squares "
                    f"float32 does not hold; divide them by {size:.0e}"
                )
        first = x[:FIRST_LOOK].clone()
        self.variance = start_(self.sae, self.args, x, target)
        if not self.variance > 0:
            raise Refused(
                f"the activations at {written} are the same vector in all {len(x):,} of a sample, "
                "so there is nothing to learn; give others"
            )
        if self.control.warm_start_steps:
            self.control.begin(self.sae.pre_activations(first))
        if self._can_be_sparse:
            pre_acts = self.sae.pre_activations(first)
            self._choose(float(self.sae.density(pre_acts, self._schedule(0))))

    def step(self, batch: dict[str, Tensor], step: int, *, log: bool = False) -> dict[str, Any]:
        """Take one optimiser step; with `log`, its log line, else empty."""
        args, sae, control, accelerator = self.args, self.sae, self.control, self.accelerator
        if step == control.warm_start_steps > 0:
            self._follow(steps_behind=0)
            self.optimiser = Optimiser(sae, args)
            control.end_warm_start()
        schedule = self._schedule(step)

        # Gradients of the batch's mean loss, part by part.
        x, target = self._inputs(batch)
        n_parts = args.gradient_accumulation_steps
        losses: dict[str, Tensor] = {}  # means over this process's share of the batch
        fired = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=x.device)  # in this share
        n_entries = fired.new_zeros(1)  # pairs in it that could have a value or a gradient
        parts = list(zip(x.chunk(n_parts), target.chunk(n_parts), strict=True))
        for i, (x, target) in enumerate(parts, start=1):
            with accelerator.no_sync(self.model) if i < n_parts else nullcontext():
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=args.bf16):
                    out = self.model(
                        x,
                        target,
                        schedule=schedule,
                        return_loss=True,
                        workspace=self.workspace if self.is_sparse else None,
                    )
                accelerator.backward(out.loss / n_parts)
            fired += whole(out.at.count(out.latents != 0))
            if isinstance(out.at, Entries):
                n_entries += len(out.at)
            elif self._follows_density:
                density = sae.density(out.pre_acts, schedule).double()
                n_entries += (density * out.pre_acts.numel()).round().long()
            for name in out.losses:
                losses[name] = losses.get(name, 0) + out.losses[name].detach() / n_parts
        pre_acts, at = out.pre_acts.detach(), out.at
        del out  # latents and the graph, before Adam needs memory

        for p in sae.parameters() if self.mesh is not None else ():
            p.grad = None if p.grad is None else placed_as(p.grad, p)
        sae.before_step_()
        self.optimiser.step(step, control.warm_start_steps)
        if self.is_sparse:  # the next step reuses the gradients' memory
            for name in sae.latent_dims:
                self.workspace.recycle_(sae.get_parameter(name))
        sae.zero_grad(set_to_none=False)
        sae.after_step_()

        counts = Download(self._sum(torch.cat([fired, n_entries])))
        self._counts.append((step, counts))
        self._follow(self.steps_behind)
        line: dict[str, Any] = {}
        if log:
            firings = counts.value()[:-1]
            l0 = int(firings.sum()) / args.batch_size
            line = self._log_line(losses, l0, schedule, step, (x, pre_acts, at))
            if sae.config.is_causal:
                reads = sae.config.reads.names
                of_sources = (firings / args.batch_size).chunk(len(reads))
                by_source = [float(share.sum()) for share in of_sources]
                found = diagnose_sources(dict(zip(reads, by_source, strict=True)))
                found = [*line.get("health", ()), *found]
                line |= {"l0_by_source": by_source, **({"health": found} if found else {})}
        return line

    def _follow(self, steps_behind: int) -> None:
        """Act on what steps have counted, but for the last few of them."""
        while len(self._counts) > steps_behind:
            step, counts = self._counts.popleft()
            values, batch_size = counts.value(), self.args.batch_size
            firings, n_entries = values[:-1], int(values[-1])
            self._choose(n_entries / (batch_size * len(firings)))
            self.tokens_since_fired += batch_size
            self.tokens_since_fired[firings > 0] = 0
            self.control.after_step(int(firings.sum()) / batch_size, step)

    def _schedule(self, step: int) -> Schedule:
        a, since = self.args, step - self.control.warm_start_steps
        if since < 0:  # thresholds are not learnt yet: a window would only cost time
            bandwidth = float(getattr(self.sae.config, "ste_to_inputs", False))
            sparsity = 0.0
        else:
            sparsity = self.control.factor * self.control.warmup(step)
            bandwidth = geometric(
                since, in_steps(a.bandwidth_steps, a.total_steps), a.bandwidth_start
            )
        dead = self.tokens_since_fired > a.dead_after_tokens
        if self.sae.config.dedicated:
            dead = self.sae.revivable(dead)
        is_shared = self.mesh is None and self.accelerator.num_processes > 1
        summed = self._sum if is_shared else one_process  # spread latents: each has all tokens
        return Schedule(sparsity, bandwidth, dead, summed, training=True)

    def _inputs(self, batch: dict[str, Tensor], is_slice: bool = True) -> tuple[Tensor, Tensor]:
        """This process's share of the batch; the whole batch, where latents are spread instead."""
        device, config = self.accelerator.device, self.sae.config
        if missing := [site for site in widths_of(config) if site not in batch]:
            raise Refused(
                f"this SAE needs site {missing[0]!r}, but the stream carries {', '.join(batch)}; "
                "spell config.site as in the harvester's sites"
            )
        inputs, is_same = [], config.reads == config.writes
        for side in (config.reads,) if is_same else (config.reads, config.writes):
            x = upload(side.joined(batch), device)
            inputs.append(x if self.mesh is None else everywhere(x, self.mesh, is_slice=is_slice))
        return inputs[0], inputs[-1]

    def _choose(self, density: float) -> None:
        """Take sparse or dense steps from here on, by the fraction of entries that matter."""
        if not self._follows_density:
            return
        before, limit = self.is_sparse, self._limits[self.is_sparse]
        self.is_sparse = self.sae.config.d_sae >= SPARSE_FROM and density < limit
        if self.is_sparse != before:
            kind = "sparse" if self.is_sparse else "dense"
            logger.info(
                "%s steps: a latent can have a value or a gradient at %.2g of all pairs of a "
                "token and a latent",
                kind,
                density,
            )

    def _sum(self, x: Tensor, how: str = "sum") -> Tensor:
        """x summed over processes, unless each has seen the whole batch."""
        return whole(x) if self.mesh is not None else cast(Tensor, self.accelerator.reduce(x, how))

    @torch.no_grad()
    def _log_line(
        self,
        losses: dict[str, Tensor],
        l0: float,
        schedule: Schedule,
        step: int,
        last: tuple[Tensor, Tensor, Place],
    ) -> dict[str, Any]:
        """The step's entries of log.jsonl.

        Args:
            last: inputs of the last part, their pre-activations, and the positions of these.
        """
        means = {name: float(self._sum(loss, "mean")) for name, loss in losses.items()}
        self.last_fvu = means["mse"] / self.variance
        seen = (step + 1) * self.args.batch_size
        never = float((self.tokens_since_fired >= seen).float().mean())
        dead = self.tokens_since_fired > self.args.dead_after_tokens
        dead_share = float(dead.float().mean())
        return {
            "loss": sum(means.values()),
            **means,
            "fvu": self.last_fvu,
            "l0": l0,
            "dead_share": dead_share,
            "learning_rate": self.optimiser.learning_rate,
            **self.readings.line(*last, l0, dead_share, never, schedule, step),
        }

    def is_finite(self) -> bool:
        """Whether all weights that this process holds are finite."""
        return all(bool(local(p).isfinite().all()) for p in self.sae.parameters())

    def state_dict(self) -> dict[str, Any]:
        """The training state, independent of the number of processes; all must call this.

        Where latents are spread, only process 0 gets the whole tensors, in main memory: they may
        not fit on one device.
        """
        config = self.sae.config

        def kept(x: Tensor) -> Tensor:
            if self.mesh is None:
                return x
            return x.cpu() if self.accelerator.is_main_process else x.new_empty(0)

        return {
            "sae": {name: kept(whole(x)) for name, x in self.sae.state_dict().items()},
            "scales": [getattr(config, name) for name in config.scale_names],
            "moments": self.optimiser.moments(kept),
            "sparsity": self.control.factor,
            "variance": self.variance,
            "is_sparse": self.is_sparse,
            "counts": [(step, counts.value()) for step, counts in self._counts],
            "tokens_since_fired": self.tokens_since_fired,
            "previous": dict(self.readings.previous),
            "last_fvu": self.last_fvu,
        }

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
        self.is_sparse = state["is_sparse"]
        self._counts = deque((step, Download(counts)) for step, counts in state.get("counts", ()))
        self.tokens_since_fired = state["tokens_since_fired"].cpu()
        self.last_fvu = state["last_fvu"]
        self.readings.previous = state["previous"]
        if state["previous"]:
            state["previous"]["threshold"] = state["previous"]["threshold"].to(device)

    def whole_sae(self) -> SAE:
        """The SAE with plain parameters; in main memory, if latents were spread."""
        if self.mesh is not None:
            unshard_(self.sae)
        return self.sae


class Optimiser:
    """Adam for one SAE: torch's fused one, on views of the parameters, with scheduled rates.

    Torch's fused optimiser copies tensors that are not contiguous, and does not support DTensors.
    So it gets contiguous views of parameters and gradients, latent by latent.
    """

    def __init__(self, sae: SAE, args: TrainingArguments) -> None:
        self.sae, self.args = sae, args
        self.learning_rate = args.learning_rate
        """the present one, except where decoder or thresholds have one of their own"""
        self._views = {n: self._view(n, p.detach()) for n, p in sae.named_parameters()}
        own = {"W_dec": [*sae.decoder_names], "threshold": ["threshold"]}
        named = {of: [n for n in names if n in self._views] for of, names in own.items()}
        rest = {*self._views}.difference(*named.values())
        named = {"others": [n for n in self._views if n in rest], **named}
        groups = [
            {"params": [self._views[n] for n in names], "of": of}
            for of, names in named.items()
            if names
        ]
        self._adam = torch.optim.Adam(
            groups,
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=True,  # several times as fast as the default on a CPU
        )

    @torch.no_grad()
    def step(self, step: int, warm_start_steps: int) -> None:
        """Move the parameters, by gradients of a norm of max_grad_norm at most, at rates of this
        step: with a warm-up, which restarts after the warm start, and a decay."""
        a, total, warm = self.args, self.args.total_steps, step < warm_start_steps
        since_start = step if warm else step - warm_start_steps
        factor = cosine_warmup(since_start, a.warmup_length("warmup_steps", warm_start_steps))
        factor *= linear_decay(step, total, in_steps(a.decay_steps, total))
        for group in self._adam.param_groups:
            rate = a.learning_rate
            if group["of"] == "W_dec":
                rate *= a.decoder_rate_factor
            if group["of"] == "threshold":
                # In the warm start the controller moves the common threshold, not Adam.
                rate = 0.0 if warm else a.threshold_learning_rate or a.learning_rate
            group["lr"] = rate * factor
        self.learning_rate = self._adam.param_groups[0]["lr"]
        if a.max_grad_norm is not None:
            grads = [p.grad for p in self.sae.parameters() if p.grad is not None]
            norms = [whole(torch.linalg.vector_norm(g)) for g in grads]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            excess = ((norm + 1e-6) / a.max_grad_norm).float()  # whatever their dtype
            # Adam scales them down as it reads them, by these two fields, which are there for AMP;
            # clip_grad_norm_ would rewrite gradients.
            fused = cast(Any, self._adam)
            # On a CPU it is quicker to know whether they are; a GPU's host would wait for that.
            scales = excess.device.type != "cpu" or bool(excess > 1)
            fused.grad_scale = excess.clamp(min=1) if scales else None
            fused.found_inf = torch.zeros_like(excess) if scales else None
        for name, p in self.sae.named_parameters():
            self._views[name].grad = None if p.grad is None else self._view(name, p.grad)
        self._adam.step()
        for view in self._views.values():
            view.grad = None

    def moments(self, kept: Callable[[Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
        """By parameter: Adam's moments in its orientation, passed through `kept`, and steps."""
        moments: dict[str, dict[str, Tensor]] = {}
        for name, p in self.sae.named_parameters():
            moments[name] = dict(self._adam.state[self._views[name]])
            for key, x in moments[name].items():
                if x.ndim:
                    moments[name][key] = kept(joined(self._view(name, x), like=p))
        return moments

    def load_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Continue with moments that `moments` returned."""
        for name, p in self.sae.named_parameters():
            for key, value in moments[name].items():
                mine = self._view(name, part(value, like=p)) if value.ndim else value.to(p.device)
                self._adam.state[self._views[name]][key] = mine.contiguous()

    def _view(self, name: str, x: Tensor) -> Tensor:
        """This process's part of what belongs to a parameter, latents first; its own inverse."""
        return local(x).transpose(0, self.sae.latent_dims.get(name, 0))
