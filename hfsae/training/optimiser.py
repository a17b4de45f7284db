"""Adam for one SAE: torch's fused one, on views of the parameters, with scheduled learning rates.

Torch's fused optimiser copies tensors that are not contiguous, and does not support DTensors. So
it gets contiguous views of parameters and gradients, latent by latent.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..models import SAE
from .arguments import TrainingArguments
from .schedules import cosine_warmup, in_steps, linear_decay
from .sharding import joined, local, part, placed_as, whole


class Optimiser:
    """A step is `place_gradients`, then `clip`, then `step`; between the first two, whatever the
    SAE does to its gradients."""

    def __init__(self, sae: SAE, args: TrainingArguments) -> None:
        self.sae, self.args = sae, args
        self.begin()

    def begin(self) -> None:
        """Create Adam with empty moments; call it again to restart."""
        self._views = {name: self._view(name, p.detach()) for name, p in self._named()}
        own = {"W_dec": [*self.sae.decoder_names], "threshold": ["threshold"]}
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
            lr=self.args.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
            fused=True,  # several times as fast as the default on a CPU
        )

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.sae.named_parameters())

    @property
    def learning_rate(self) -> float:
        """The present learning rate, except where decoder or thresholds have one of their own."""
        return self._adam.param_groups[0]["lr"]

    def set_rates(self, step: int, warm_start_steps: int) -> None:
        """Set learning rates: warm-up, which restarts after the warm start, and decay."""
        a, total, warm = self.args, self.args.total_steps, step < warm_start_steps
        since_start = step if warm else step - warm_start_steps
        factor = cosine_warmup(since_start, a.fitted("warmup_steps", warm_start_steps))
        factor *= linear_decay(step, total, in_steps(a.decay_steps, total))
        for group in self._adam.param_groups:
            rate = a.learning_rate
            if group["of"] == "W_dec":
                rate *= a.decoder_rate_factor
            if group["of"] == "threshold":
                # In the warm start the controller moves the common threshold, not Adam.
                rate = 0.0 if warm else a.threshold_learning_rate or a.learning_rate
            group["lr"] = rate * factor

    def place_gradients(self) -> None:
        """Place gradients of spread latents as their parameters are placed."""
        for _, p in self._named():
            if p.grad is not None:
                p.grad = placed_as(p.grad, p)

    @torch.no_grad()
    def clip(self) -> None:
        """Have Adam scale gradients down to max_grad_norm as it reads them."""
        if self.args.max_grad_norm is None:
            return
        grads = [p.grad for p in self.sae.parameters() if p.grad is not None]
        norms = [whole(torch.linalg.vector_norm(g)) for g in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        excess = ((norm + 1e-6) / self.args.max_grad_norm).float()  # whatever the gradients' dtype
        # Fused optimisers read these two fields for AMP; clip_grad_norm_ would rewrite gradients.
        fused = cast(Any, self._adam)
        fused.grad_scale = excess if excess > 1 else None
        fused.found_inf = torch.zeros_like(excess) if excess > 1 else None

    def step(self) -> None:
        """Move the parameters."""
        for name, p in self._named():
            self._views[name].grad = None if p.grad is None else self._view(name, p.grad)
        self._adam.step()
        for view in self._views.values():
            view.grad = None

    def moments(self, kept: Callable[[Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
        """By parameter: Adam's moments in its orientation, passed through `kept`, and steps."""
        return {name: self._moments_of(name, p, kept) for name, p in self._named()}

    def _moments_of(
        self, name: str, p: nn.Parameter, kept: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._adam.state[self._views[name]]
        matrices = {key: self._view(name, value) for key, value in state.items() if value.ndim}
        return {**state, **{key: kept(joined(x, like=p)) for key, x in matrices.items()}}

    def load_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Continue with moments that `moments` returned."""
        for name, p in self._named():
            for key, value in moments[name].items():
                mine = self._view(name, part(value, like=p)) if value.ndim else value.to(p.device)
                self._adam.state[self._views[name]][key] = mine.contiguous()

    def _view(self, name: str, x: Tensor) -> Tensor:
        """This process's part of what belongs to a parameter, latents first; its own inverse."""
        return local(x).transpose(0, self.sae.latent_dims.get(name, 0))
