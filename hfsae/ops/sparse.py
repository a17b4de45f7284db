"""The algebra of an SAE over the entries that matter, instead of over all of [tokens, d_sae].

Of a token's many thousand latents about fifty fire. Everything after the encoder's product (the
non-linearity, the decoder, every gradient) is zero elsewhere, so it is computed only at the
*entries*: the (token, latent) pairs where a latent can have a value or a gradient. Formulas are the
same as for matrices; the place of the computation is a parameter, `at`:

    EVERYWHERE       values are matrices [*batch, d_sae]; plain dense algebra, the reference
    Entries(...)     values are vectors [n], one number per entry

Only four linear maps differ:

    at.project(x, W, b)   x W + b                  -> values
    at.combine(z, W)      z W                      values -> [tokens, d]
    at.of(p)              a parameter per latent   [d_sae] -> values
    at.count(mask)        sums over tokens         values -> [d_sae]

`project` and `combine` are adjoint to each other, so three loops compute both and their gradients:
dot products at the entries, and sums of rows by token and by latent. The order of entries is fixed
and one thread makes each sum, so that these sums do not depend on the number of threads. Loops are
torch's own; on CUDA with Triton they are those of `hfsae.ops.fused`.

`hfsae.ops.screening` finds the entries.

**Copies** between main memory and a device for which the host does not wait. Such a copy needs
pinned memory and a device with streams. What a device has computed is in main memory a step later,
so whoever can wait that long asks for it with `Download`.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import pairwise
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard

ASYNCHRONOUS = {"cuda"}
"""types of devices with such copies; for others each copy is waited for"""


def upload(x: Tensor, device: torch.device) -> Tensor:
    """x on a device."""
    if x.device.type == "cpu" and device.type in ASYNCHRONOUS:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def indices_of(mask: Bool[Tensor, " n"], device: torch.device) -> Int64[Tensor, " m"]:
    """The indices that a mask in main memory marks, on a device. A mask on a GPU would make the
    host wait, since it has to know how many there are."""
    return upload(mask.nonzero()[:, 0], device)


class Download:
    """The copy of a tensor in main memory, begun at once."""

    def __init__(self, x: Tensor) -> None:
        self._copy, self._end = x, None
        if x.device.type in ASYNCHRONOUS:
            self._copy = torch.empty_like(x, device="cpu").pin_memory()
            self._copy.copy_(x, non_blocking=True)
            self._end = torch.get_device_module(x.device).Event()
            self._end.record()

    def value(self) -> Tensor:
        """The copy, once it is whole."""
        if self._end is not None:
            self._end.synchronize()
        return self._copy.cpu()


_BLOCK = 2**19  # numbers, 2 MiB of float32: they stay in cache from one operation to the next
_WORTH_LEAVING_OUT = 0.5  # share of entries with a value; above it, zero entries are kept
_GPU_BLOCK = 2**24  # on a GPU a launch costs more than memory

DEVICES = {"cpu", "cuda"}
"""types of devices on which entries are found; PyTorch calls AMD cards "cuda", too"""
as_if_on_gpu = False
"""For tests: CPU tensors take the code path of CUDA tensors, with Triton's interpreter."""
use_triton = True
"""For comparisons: False uses torch's loops on CUDA, as without Triton."""

logger = logging.getLogger(__name__)


class Everywhere:
    """Every latent of every token: values are matrices [*batch, d_sae]."""

    def project(
        self, x: Float[Tensor, "*batch d_in"], W: Float[Tensor, "d_in d_sae"], b: Tensor
    ) -> Float[Tensor, "*batch d_sae"]:
        """x W + b."""
        return x @ W + b

    def combine(
        self, values: Float[Tensor, "*batch d_sae"], W: Float[Tensor, "d_sae d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """values W."""
        return values @ W

    def of(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """A parameter of each latent, in the shape of values."""
        return parameter

    def count(self, mask: Bool[Tensor, "*batch d_sae"]) -> Int[Tensor, " d_sae"]:
        """Number of tokens at which each latent is marked."""
        return mask.reshape(-1, mask.shape[-1]).sum(dim=0)

    def parts(self, n: int) -> "list[Place]":
        """The place of each of n equal parts of the latents."""
        return [self] * n

    def split(self, values: Float[Tensor, "*batch d_sae"], n: int) -> Sequence[Tensor]:
        """The values of each of n equal parts of the latents; concatenated they are `values`."""
        return values.chunk(n, dim=-1)

    def split_rows(self, rows: Float[Tensor, "d_sae d"], n: int) -> Sequence[Tensor]:
        """The rows of each of n equal parts of the latents; of a DTensor, each part is spread over
        all processes, which means that it is sent anew."""
        parts = rows.chunk(n)
        if not isinstance(rows, DTensor):
            return parts
        return [cast(DTensor, p).redistribute(rows.device_mesh, [Shard(0)]) for p in parts]

    def totals_by_latent(self, values: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, " d_sae"]:
        """For each latent, the sum of its values over tokens."""
        return values.reshape(-1, values.shape[-1]).sum(dim=0)

    def share(self, mask: Bool[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
        """Share of marked pairs among all pairs of a token and a latent."""
        return mask.float().mean()

    def sums_by_latent(
        self, values: Float[Tensor, "tokens d_sae"], x: Float[Tensor, "tokens d"]
    ) -> Float[Tensor, "d_sae d"]:
        """For each latent, the sum over tokens of value * x[token]."""
        return values.T @ x

    def gram(self, values: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, "d_sae d_sae"]:
        """For each pair of latents, the sum over tokens of the product of their values."""
        return values.T @ values

    def support(
        self, values: Float[Tensor, "tokens d_sae"]
    ) -> tuple["Everywhere", Float[Tensor, "tokens d_sae"]]:
        """Itself: zeros have their place in a dense matrix."""
        return self, values


EVERYWHERE = Everywhere()


class Workspace:
    """Large buffers that the next step uses again.

    The allocator returns blocks over 32 MiB to the system, and the next allocation faults in every
    page again: a gradient of that size then costs more to allocate than to compute.
    """

    def __init__(self) -> None:
        self._named: dict[str, Tensor] = {}
        self._spare: list[Tensor] = []

    def buffer(self, name: str, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised memory under a name; its old content is lost."""
        size = int(np.prod(shape))
        old = self._named.get(name)
        if old is None or old.numel() < size or (old.dtype, old.device) != (dtype, device):
            old = self._named[name] = torch.empty(size, dtype=dtype, device=device)
        return old[:size].view(shape)

    def take(self, *shape: int, device: torch.device) -> Tensor:
        """Uninitialised float32 memory for the caller: a spare gradient of this shape, or new."""
        for i, spare in enumerate(self._spare):
            if spare.shape == shape and spare.device == device:
                return self._spare.pop(i)
        return torch.empty(shape, device=device)

    def recycle_(self, parameter: nn.Parameter) -> None:
        """Clear a matrix's gradient and keep its memory for `take`; a vector keeps its gradient."""
        grad = parameter.grad
        if grad is not None and grad.ndim == 2:
            parameter.grad = None
            rows = grad if grad.is_contiguous() else grad.T
            if rows.is_contiguous() and rows.dtype == torch.float32:
                self._spare.append(rows)


class Entries:
    """Pairs (token, latent), sorted by latent and then by token: values are vectors [n].

    In this order both of a step's products of x's width read the large matrices row by row, and
    look up rows of the small one: three times faster than the other order.

    Args:
        tokens, latents: [n] indices.
        values: [n] pre-activations of the entries, if already computed.
    """

    def __init__(
        self,
        tokens: Int[Tensor, " n"],
        latents: Int[Tensor, " n"],
        n_tokens: int,
        d_sae: int,
        values: Float[Tensor, " n"] | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.tokens, self.latents, self.values = tokens, latents, values
        self.n_tokens, self.d_sae = n_tokens, d_sae
        self.workspace = workspace or Workspace()
        self._parts: list[Place] = []

    @classmethod
    def joined(cls, parts: "Sequence[Entries]") -> "Entries":
        """Entries of equal parts of the latents as those of all; `parts` gives them back."""
        first, n = parts[0], len(parts)
        if n == 1:
            return first
        latents = torch.cat([part.latents + i * first.d_sae for i, part in enumerate(parts)])
        values = None
        if all(part.values is not None for part in parts):
            values = torch.cat([part.values for part in parts if part.values is not None])
        tokens = torch.cat([part.tokens for part in parts])
        sizes = first.n_tokens, n * first.d_sae
        return cls(tokens, latents, *sizes, values, first.workspace)

    def parts(self, n: int) -> "list[Place]":
        """The entries of each of n equal parts of the latents, counted from the part's first."""
        if n == 1:
            return [self]
        if len(self._parts) != n:
            size = self.d_sae // n
            tokens, latents = self.split(self.tokens, n), self.split(self.latents, n)
            values = [None] * n if self.values is None else self.split(self.values, n)
            self._parts = [
                Entries(t, of - i * size, self.n_tokens, size, v, self.workspace)
                for i, (t, of, v) in enumerate(zip(tokens, latents, values, strict=True))
            ]
        return self._parts

    def split(self, values: Shaped[Tensor, " n_entries"], n: int) -> Sequence[Tensor]:
        """The values of each of n equal parts of the latents; concatenated they are `values`."""
        if n == 1:
            return [values]
        ends = self.latent_offsets[:: self.d_sae // n]
        return values.split(ends.diff().tolist())

    def split_rows(self, rows: Float[Tensor, "d_sae d"], n: int) -> Sequence[Tensor]:
        """The rows of each of n equal parts of the latents. Their gradients are put together in the
        workspace's memory."""
        return [rows] if n == 1 else _Rows.apply(rows, n, self.workspace)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def density(self) -> float:
        """Share of entries among all pairs of a token and a latent."""
        return len(self) / (self.n_tokens * self.d_sae)

    @cached_property
    def latent_offsets(self) -> Int[Tensor, " _"]:
        """The start of each latent's entries, and the end of the last latent's."""
        return _offsets(self.latents, self.d_sae)

    @cached_property
    def by_token(self) -> Int[Tensor, " n"]:
        """Positions of entries sorted by token and then by latent."""
        return stable_order(self.tokens, self.n_tokens)

    @cached_property
    def latents_by_token(self) -> Int[Tensor, " n"]:
        """The latent of each entry, in the order of `by_token`."""
        return self.latents.index_select(0, self.by_token)

    @cached_property
    def token_offsets(self) -> Int[Tensor, " _"]:
        """The start of each token's entries in `by_token`, and the end of the last token's."""
        return _offsets(self.tokens.index_select(0, self.by_token), self.n_tokens)

    def project(
        self, x: Float[Tensor, "tokens d_in"], W: Float[Tensor, "d_in d_sae"], b: Tensor
    ) -> Float[Tensor, " n"]:
        """x W + b at the entries."""
        return _Project.apply(x, W.T.contiguous(), b, self)

    def combine(
        self, values: Float[Tensor, " n"], W: Float[Tensor, "d_sae d_out"]
    ) -> Float[Tensor, "tokens d_out"]:
        """values W, with values 0 at pairs that are not entries."""
        return _Combine.apply(values, W.contiguous(), self)

    def of(self, parameter: Float[Tensor, " d_sae"]) -> Float[Tensor, " n"]:
        """A parameter of each latent, at the entries."""
        return _Of.apply(parameter, self)

    def count(self, mask: Bool[Tensor, " n"]) -> Int[Tensor, " d_sae"]:
        """Number of tokens at which each latent is marked."""
        zeros = torch.zeros(self.d_sae, dtype=torch.int64, device=self.latents.device)
        return zeros.index_add_(0, self.latents, mask.long())

    def share(self, mask: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
        """Share of marked pairs among all pairs of a token and a latent."""
        return mask.sum() / (self.n_tokens * self.d_sae)

    def dots(
        self, x: Float[Tensor, "tokens d"], W: Float[Tensor, "d_sae d"]
    ) -> Float[Tensor, " n"]:
        """x[token] . W[latent] at each entry, in float32."""
        if kernels := kernels_for(x):
            return kernels.dots(x, W, self.tokens, self.latents)
        if not len(self):
            return x.new_zeros(0)
        with warnings.catch_warnings():  # torch warns once that its CSR tensors are in beta
            warnings.filterwarnings("ignore", "Sparse CSR")
            pattern = torch.sparse_csr_tensor(
                self.latent_offsets,
                self.tokens,
                x.new_zeros(len(self)),
                (self.d_sae, self.n_tokens),
                check_invariants=False,
            )
        return torch.sparse.sampled_addmm(pattern, W, x.T, beta=0.0).values()

    def gram(self, values: Float[Tensor, " n"]) -> Float[Tensor, "d_sae d_sae"]:
        """For each pair of latents, the sum over tokens of the product of their values.

        On a CPU SciPy makes it: torch's product of two sparse matrices loses its memory.
        """
        if on_gpu(values):
            dense = values.new_zeros(self.n_tokens, self.d_sae)
            dense[self.tokens, self.latents] = values
            return EVERYWHERE.gram(dense)
        from scipy.sparse import csr_array

        def matrix(offsets: Tensor, columns: Tensor, values: Tensor, width: int) -> Any:
            parts = (each.detach().numpy() for each in (values, columns, offsets))
            return csr_array(tuple(parts), shape=(len(offsets) - 1, width))

        by_token = values.index_select(0, self.by_token)
        of_tokens = matrix(self.token_offsets, self.latents_by_token, by_token, self.d_sae)
        of_latents = matrix(self.latent_offsets, self.tokens, values, self.n_tokens)
        gram, first = values.new_empty(self.d_sae, self.d_sae), 0
        for (part,) in blocks(gram):
            rows, first = of_latents[first : first + len(part)], first + len(part)
            (rows @ of_tokens).toarray(out=part.numpy())
        return gram

    def sums_by_token(
        self, values: Float[Tensor, " n"], W: Float[Tensor, "d_sae d"]
    ) -> Float[Tensor, "tokens d"]:
        """For each token, the sum over its entries of value * W[latent]."""
        by_token = values.index_select(0, self.by_token)
        return _bags(self.latents_by_token, W, self.token_offsets, by_token)

    def sums_by_latent(
        self, values: Float[Tensor, " n"], x: Float[Tensor, "tokens d"]
    ) -> Float[Tensor, "d_sae d"]:
        """For each latent, the sum over its entries of value * x[token]."""
        sums = self.workspace.take(self.d_sae, x.shape[1], device=x.device)
        if kernels := kernels_for(x):
            return kernels.sums(self.tokens, x, self.latent_offsets, values, sums)
        for part, begins, ends in blocks(sums, self.latent_offsets[:-1], self.latent_offsets[1:]):
            first, last = int(begins[0]), int(ends[-1])
            offsets = torch.cat([begins, ends[-1:]]) - first
            part.copy_(_bags(self.tokens[first:last], x, offsets, values[first:last]))
        return sums

    def support(self, values: Float[Tensor, " n"]) -> tuple["Entries", Float[Tensor, " m"]]:
        """Entries with non-zero values, and these values: enough for sums.

        Most of JumpReLU's entries may be zero: those between the window's lower end and the
        threshold.
        """
        kept = values.nonzero().squeeze(1)
        if len(kept) > _WORTH_LEAVING_OUT * len(self):
            return self, values
        tokens, latents = self.tokens.index_select(0, kept), self.latents.index_select(0, kept)
        support = Entries(tokens, latents, self.n_tokens, self.d_sae, workspace=self.workspace)
        return support, values.index_select(0, kept)

    def totals_by_latent(self, values: Float[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        """For each latent, the sum of its entries' values."""
        return _Totals.apply(values, self)


Place = Everywhere | Entries


def nested_sums(
    values: Tensor, W: Float[Tensor, "d_sae d_out"], at: Place, ends: Sequence[int]
) -> Float[Tensor, "levels *batch d_out"]:
    """values W over the first `end` latents, for each of the rising `ends`; the last is d_sae.

    Each latent is multiplied once, in its segment between two ends; prefixes are running sums of
    segments: at hardly more cost than over all latents.
    """
    if isinstance(at, Entries):  # one product, with a row for every pair of a segment and a token
        last = upload(torch.tensor(ends), at.latents.device)
        rows = torch.bucketize(at.latents, last, right=True) * at.n_tokens + at.tokens
        n_rows = len(ends) * at.n_tokens
        spread = Entries(rows, at.latents, n_rows, at.d_sae, workspace=at.workspace)
        segments = spread.combine(values, W).unflatten(0, (len(ends), at.n_tokens))
        return segments.cumsum(dim=0, dtype=torch.float32)
    mesh = None
    if isinstance(values, DTensor) and isinstance(W, DTensor):
        # Each process sums its own latents, which may be in several segments.
        mesh, values, W = W.device_mesh, values.to_local(), W.to_local()
        first = mesh.get_local_rank() * len(W)
        ends = [min(max(end - first, 0), len(W)) for end in ends]
    parts = pairwise((0, *ends))
    segments = torch.stack([EVERYWHERE.combine(values[..., a:b], W[a:b]) for a, b in parts])
    if mesh is not None:
        segments = DTensor.from_local(segments, mesh, [Partial()])
    return segments.cumsum(dim=0, dtype=torch.float32)


class _Of(torch.autograd.Function):
    """p[latent] at the entries. dp = the sum over each latent's entries."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, at: Entries) -> Tensor:
        ctx.at = at
        return parameter.index_select(0, at.latents)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.at.totals_by_latent(grad), None


class _Rows(torch.autograd.Function):
    """Equal parts of a matrix's rows. Their gradients side by side are the matrix's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, n: int, workspace: Workspace) -> tuple[Tensor, ...]:
        ctx.shape, ctx.workspace = rows.shape, workspace
        return rows.chunk(n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        whole = ctx.workspace.take(*ctx.shape, device=grads[0].device)
        return torch.cat(grads, out=whole), None, None


class _Totals(torch.autograd.Function):
    """The sum of each latent's values. dvalues = the sum's gradient, at the entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, at: Entries) -> Tensor:
        ctx.at = at
        if on_gpu(values):  # on CUDA index_add_ adds in any order: results would not repeat
            ones = values.new_ones(at.n_tokens, 1)
            return _bags(at.tokens, ones, at.latent_offsets, values)[:, 0]
        return values.new_zeros(at.d_sae).index_add_(0, at.latents, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.at.latents), None


class _Project(torch.autograd.Function):
    """z = x W^T + b at the entries. dx = dz W, dW = dz^T x, db = sum of dz."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor, at: Entries) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.at = at
        return at.dots(x, W) + at.of(b) if at.values is None else at.values.clone()

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, W = ctx.saved_tensors
        at, dz = ctx.at.support(dz)
        dx = at.sums_by_token(dz, W) if ctx.needs_input_grad[0] else None
        return dx, at.sums_by_latent(dz, x), at.totals_by_latent(dz), None


class _Combine(torch.autograd.Function):
    """y = z W, z at the entries. dz = dy W^T at the entries, dW = z^T dy."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, W: Tensor, at: Entries) -> Tensor:
        ctx.at, (ctx.on, on) = at, at.support(z)
        ctx.save_for_backward(on, W)
        return ctx.on.sums_by_token(on, W)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        on, W = ctx.saved_tensors
        dy = dy.contiguous()
        wants_z, wants_W, _ = ctx.needs_input_grad
        dz = ctx.at.dots(dy, W) if wants_z else None
        return dz, ctx.on.sums_by_latent(on, dy) if wants_W else None, None


def _bags(rows: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """For each bag, the weighted sum of the table's rows in it."""
    if kernels := kernels_for(table):
        return kernels.sums(rows, table, offsets, weights)
    table, weights = table.detach(), weights.detach()  # else torch prepares a backward pass
    return nn.functional.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def on_gpu(x: Tensor) -> bool:
    """Whether x takes the code path of CUDA tensors; in tests CPU tensors can take it too."""
    return x.is_cuda or as_if_on_gpu


def kernels_for(x: Tensor) -> ModuleType | None:
    """`hfsae.ops.fused`, if it computes with x; else None."""
    if not (on_gpu(x) and use_triton and _has_triton()):
        return None
    from . import fused  # needs Triton; `import hfsae` must work without it

    return fused


@cache
def _has_triton() -> bool:
    is_installed = importlib.util.find_spec("triton") is not None
    if not is_installed:
        logger.info(
            "Triton is not installed: sparse steps on CUDA use torch's loops (hfsae[gpu] has it)"
        )
    return is_installed


def _offsets(keys: Int[Tensor, " n"], n_keys: int) -> Int[Tensor, " _"]:
    """The start of each key 0, 1, ... among sorted keys, and the end of the last key."""
    return torch.searchsorted(keys, torch.arange(n_keys + 1, device=keys.device))


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in blocks of rows; a block of the first, a matrix, fits in the cache.

    For DTensors, this process's rows.
    """
    n_numbers = _GPU_BLOCK if on_gpu(tensors[0]) else _BLOCK
    n_rows = max(1, n_numbers // tensors[0].shape[1])
    local = (getattr(t, "to_local", lambda t=t: t)() for t in tensors)  # DTensors have to_local
    return zip(*(t.split(n_rows) for t in local), strict=True)


def stable_order(keys: Int[Tensor, " n"], n_keys: int) -> Int[Tensor, " n"]:
    """Indices that sort keys in [0, n_keys); equal keys keep their order.

    On a CPU numpy sorts 16-bit keys by radix, fifty times faster than torch sorts these; wider keys
    take two such passes, low half first.
    """
    if on_gpu(keys):
        return keys.sort(stable=True).indices
    plain = keys.numpy()
    order = np.argsort((plain & 0xFFFF).astype(np.uint16), kind="stable")
    if n_keys > 2**16:
        order = order[np.argsort((plain[order] >> 16).astype(np.uint16), kind="stable")]
    return torch.from_numpy(order)
