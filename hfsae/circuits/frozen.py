"""A language model as one text makes it, held still: affine in its embeddings and in what it adds.

In one pass over a text attention's patterns, the denominators of norms, and what every MLP (or
mixture of experts, or mixer of states) adds to the residual stream are noted. Inside the block the
model runs on these constants: between embeddings and added outputs on the one side, and any
activation on the other, all is a sum of products with fixed numbers. So a gradient there is no
approximation, and is the same at every input (`Frozen.check`). This is the local replacement model
of Circuit Tracing (Anthropic 2025, "Building an attribution graph").

    attention   weights of the text, softmax and all, times the values of the moment
    norm        gain * (x - [mean x]) * r + bias,   r noted for each token
    MLP         a leaf: a constant that a caller may change or take a gradient by

Gain and bias of a norm are found by calling it, so that no table of families is needed; a module
that is not of this form is refused by its name. The final soft cap on logits is left out:
`Frozen.run` returns what the unembedding reads.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from ..io.errors import Refused
from ..lm import find_module, running_as, unwrapped

_NAME = "hfsae_frozen"
_TOLERANCE = 1e-4  # of a norm's output, relative to its largest
Attention = Callable[..., tuple[Tensor, Tensor | None]]
_attend: ContextVar[Attention | None] = ContextVar("attention of a frozen model", default=None)


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The model's own attention in plain torch."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


AttentionInterface.register(
    _NAME, lambda *args, **kwargs: (_attend.get() or _eager)(*args, **kwargs)
)
AttentionMaskInterface.register(_NAME, eager_mask)


class Frozen:
    """The constants of one text, and passes on them. Made by `frozen`."""

    def __init__(self, lm: PreTrainedModel, input_ids: Int[Tensor, "1 ctx"]) -> None:
        self.lm: Any = unwrapped(lm)
        self.input_ids = input_ids
        self.decoder = self.lm.get_decoder()
        stacks = [m for m in self.decoder.children() if isinstance(m, nn.ModuleList)]
        if not stacks:
            raise Refused(f"{type(self.lm).__name__} has no list of blocks, so it is not frozen")
        self.blocks: list[nn.Module] = list(max(stacks, key=len))
        self.embedding: nn.Module = self.lm.get_input_embeddings()
        self.patterns: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        """what embedding and MLPs gave, [1, ctx, d]; MLPs in the order of their blocks"""
        self.layers: dict[nn.Module, int] = {}
        """block of each MLP"""
        self._norms: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        self._given: dict[nn.Module, Tensor] = {}
        self._leaves: Mapping[nn.Module, Tensor | Callable[[], Tensor]] = {}

    @torch.no_grad()
    def note(self) -> None:
        """The text's own pass: notes all constants."""
        noted: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

        def see(module: nn.Module, args: tuple, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            if args and isinstance(y, Tensor):
                noted.setdefault(module, []).append((args[0], y))

        def attend(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            out, weights = _eager(module, *args, **kwargs)
            if weights is None or not torch.allclose(
                _mixed(weights, args[2]), out, rtol=_TOLERANCE, atol=_TOLERANCE
            ):
                raise Refused(
                    f"{type(module).__name__} does more than weigh values, so it is not frozen"
                )
            self.patterns[module] = weights
            return out, weights

        children = [child for block in self.blocks for child in block.children()]
        norms = [m for m in self.decoder.modules() if type(m).__name__.endswith("Norm")]
        watched = dict.fromkeys([self.embedding, *children, *norms])
        with ExitStack() as stack:
            for module in watched:
                stack.callback(module.register_forward_hook(see).remove)
            with _attending(attend):
                self.decoder(input_ids=self.input_ids, use_cache=False)
        self._given = {module: of[0][1] for module, of in noted.items()}
        self.outputs[self.embedding] = self._given[self.embedding]
        for module in self._given:  # in the order in which they ran
            layer = next((i for i, b in enumerate(self.blocks) if module in b.children()), None)
            idle = type(module).__name__.endswith(("Norm", "Dropout", "Identity"))
            if layer is None or idle or any(m in self.patterns for m in module.modules()):
                continue
            self.outputs[module], self.layers[module] = self._given[module], layer
        if not self.patterns:
            raise Refused(
                f"{type(self.lm).__name__} does not dispatch its attention by transformers' "
                "AttentionInterface, so its patterns cannot be held; use a model that does"
            )
        hidden = {m for module in self.layers for m in module.modules()}
        for norm in norms:
            if norm in noted and norm not in hidden:
                (x, y), *more = noted[norm]
                if more:
                    raise Refused(f"{type(norm).__name__} runs more than once in a pass")
                self._norms[norm] = _held(norm, x, y)

    def hold(self, site: str) -> nn.Module:
        """The module whose output a transcoder stands for; of a norm behind an MLP, the norm is
        held in the place of the MLP.

        Raises:
            ValueError: what is there is not added to the residual stream by an MLP.
        """
        module = find_module(self.lm, site)
        if site.endswith(":in") or not (module in self.layers or module in self._norms):
            raise Refused(
                f"the SAE writes at {site!r}, which is not what an MLP adds; a graph takes "
                "transcoders of MLPs: for other SAEs there is hfsae.attribute"
            )
        if module in self._norms:
            order = list(self._given)
            before = [m for m in self.layers if order.index(m) < order.index(module)]
            layer = self.layers.pop(max(before, key=order.index)) if before else -1
            if layer < 0 or module not in self.blocks[layer].children():
                raise Refused(f"no MLP runs before {site!r} in its block")
            del self._norms[module]
            self.outputs[module], self.layers[module] = self._given[module], layer
        return module

    def run(
        self, leaves: Mapping[nn.Module, Tensor | Callable[[], Tensor]], rows: int = 1
    ) -> Float[Tensor, "rows ctx d"]:
        """What the unembedding reads, with some outputs in place of those noted.

        Args:
            leaves: by module, [rows, ctx, d], or what is called there and returns it; a module that
                is missing gives what was noted.
        """
        self._leaves = leaves
        ids = self.input_ids.expand(rows, -1)
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """What each module does that is held, or will be by `hold`."""
        modules = [*self.outputs, *self._norms]
        return {module: partial(self._forward, module) for module in modules}

    def _forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if module in self._norms:
            return self._norms[module](args[0])
        leaf = self._leaves.get(module)
        if leaf is None:
            return self.outputs[module].expand(len(args[0]), -1, -1)
        return leaf if isinstance(leaf, Tensor) else leaf()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> tuple[Tensor, Tensor]:
        """Attention with the patterns of the text."""
        return _mixed(self.patterns[module], value), self.patterns[module]

    def check(self) -> float:
        """The largest change of a logit's gradient by the embeddings where these are others,
        relative to the largest gradient: 0 but for rounding, if nothing was forgotten."""
        embedded = self.outputs[self.embedding]
        others = 1.5 * embedded.flip(1) + embedded.mean()
        direction = self.lm.get_output_embeddings().weight[0].detach()
        slopes = []
        with torch.enable_grad():
            for x in (embedded, others):
                leaf = x.detach().clone().requires_grad_()
                final = self.run({self.embedding: leaf})[0, -1]
                slopes.append(torch.autograd.grad((final * direction).sum(), leaf)[0])
        return float((slopes[0] - slopes[1]).abs().max() / slopes[0].abs().max())


@contextmanager
def frozen(lm: PreTrainedModel, input_ids: Int[Tensor, "1 ctx"]) -> Iterator[Frozen]:
    """Inside the block the model is held as it runs on these tokens: see the module.

        with frozen(lm, ids) as held:
            final = held.run({mlp: other_output})

    On exit, after an error too, everything is as before. Other threads must not run the model
    meanwhile: its attention is plain torch's while the block is open.

    Raises:
        ValueError: attention does not dispatch, or a norm is of another form.
    """
    if input_ids.ndim != 2 or len(input_ids) != 1 or input_ids.shape[1] < 2:
        raise Refused(f"give one text of at least two tokens, [1, ctx], got {[*input_ids.shape]}")
    held = Frozen(lm, input_ids.to(unwrapped(lm).device))
    own: dict[int, Any] = {
        id(m.config): m.config for m in held.lm.modules() if hasattr(m, "config")
    }
    before = {number: config._attn_implementation for number, config in own.items()}
    try:
        for config in own.values():  # of all parts; masks are as eager attention has them
            config._attn_implementation = _NAME
        held.note()
        with running_as(held.forwards()), _attending(held.attend):
            yield held
    finally:
        for number, config in own.items():
            config._attn_implementation = before[number]


@contextmanager
def _attending(attend: Attention) -> Iterator[None]:
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def _mixed(
    weights: Float[Tensor, "_ heads ctx ctx"], value: Float[Tensor, "rows kv ctx d"]
) -> Float[Tensor, "rows ctx heads d"]:
    value = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    return (weights.to(value.dtype) @ value).transpose(1, 2)


def _held(norm: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """gain * (x - [mean x]) * r + bias with the r of each token; gain and bias by two calls.

    Raises:
        ValueError: the norm is not of that form.
    """
    large = torch.linspace(1e4, 2e4, x.shape[-1], dtype=x.dtype, device=x.device)
    large[::2] *= -1
    bias, of_large, of_shifted = (norm(v) for v in (torch.zeros_like(large), large, large + 1e4))
    is_centred = torch.allclose(of_large, of_shifted, rtol=1e-2, atol=1e-2)
    wide = torch.promote_types(x.dtype, torch.float32)

    def centred(v: Tensor) -> Tensor:
        v = v.to(wide)
        return v - v.mean(dim=-1, keepdim=True) if is_centred else v

    whole = centred(large)
    gain = (of_large.to(wide) - bias) / (whole * whole.square().mean().rsqrt())
    linear = gain * centred(x)
    square = linear.square().sum(dim=-1, keepdim=True)
    r = ((y - bias) * linear).sum(dim=-1, keepdim=True) / square.clamp(min=1e-30)
    error = (linear * r + bias - y).abs().max() / y.abs().max().clamp(min=1e-30)
    if not error <= max(_TOLERANCE, 10 * torch.finfo(x.dtype).eps):
        raise Refused(
            f"{type(norm).__name__} is not gain * (x - mean) / spread + bias (off by {error:.1e}), "
            "so it cannot be held; this model has no attribution graph"
        )
    return lambda v: (gain * centred(v) * r + bias).to(v.dtype)
