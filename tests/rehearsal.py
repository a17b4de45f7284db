"""A second device on a machine that has none, to find on a CPU what would only show on a GPU.

Tensors of the device "rehearsal" hold CPU data, and each operation runs on the CPU, so results are
those of the CPU to the bit. An operation that mixes devices raises. `WAITS` counts, by the line of
the package that asked, what makes a GPU's host wait: reading a value, copying to the CPU without
`non_blocking`, and operations whose result's size depends on values, such as indexing by a mask.
`UPLOADS` counts copies to the device that are not `non_blocking`.

Importing this module registers the device for the whole process: do so in a forked one.
"""

import traceback
from collections import Counter
from types import SimpleNamespace

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from hfsae.ops import ASYNCHRONOUS, sparse

WAITS: Counter[str] = Counter()
UPLOADS: Counter[str] = Counter()
PLACE = "/hfsae/"
# Whose result's size depends on values, or that read one on the host.
_READS = {
    *("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}


class Rehearsal(torch.Tensor):
    """A tensor of the device; `raw` is its CPU data, of the same shape and strides."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "Rehearsal":
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        self = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, dtype=raw.dtype, device=torch.device("rehearsal", 0), **layout
        )
        self.raw = raw
        return self

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return on_cpu(op, *args, **(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        WAITS[asked_by()] += 1
        return self.raw.tolist()

    def untyped_storage(self):
        return self.raw.untyped_storage()

    def data_ptr(self):
        return self.raw.data_ptr()


def asked_by() -> str:
    """The innermost line of the package on the stack, as file:line; "?": transformers' own."""
    stack = traceback.extract_stack()
    frames = [f for f in stack if PLACE in f.filename or "/transformers/" in f.filename]
    if not frames or PLACE not in frames[-1].filename:
        return "?"
    return f"{frames[-1].filename.rsplit(PLACE, 1)[-1]}:{frames[-1].lineno}"


def on_cpu(op, *args, **kwargs):
    """The operation on the CPU data, its result on the device unless it is asked for elsewhere."""
    name = op._schema.name.removeprefix("aten::")
    if name in ("_copy_from", "_copy_from_and_resize"):
        source, target, *waits_not = args
        if not any(waits_not):
            (WAITS if target.device.type == "cpu" else UPLOADS)[asked_by()] += 1
        raw(target).copy_(raw(source))
        return target
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if name == "_to_copy" and not isinstance(args[0], Rehearsal) and not kwargs.get("non_blocking"):
        UPLOADS[asked_by()] += 1
    if name not in ("copy_", "_to_copy"):
        for x in leaves:
            if x.device.type == "cpu" and x.dim() > 0 and x.layout is torch.strided:
                raise RuntimeError(f"{name}: a {tuple(x.shape)} tensor is on the CPU, another not")
    by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
        x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    )
    if name in _READS or by_mask:
        WAITS[asked_by()] += 1
    on_cpu_args, on_cpu_kwargs = pytree.tree_map(raw, (args, kwargs))
    device = kwargs.get("device")
    if device is not None:
        on_cpu_kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        on_cpu_kwargs["pin_memory"] = False
    result = op(*on_cpu_args, **on_cpu_kwargs)
    if device is not None and torch.device(device).type == "cpu":
        if name == "_to_copy" and not kwargs.get("non_blocking"):
            WAITS[asked_by()] += 1
        return result
    if op._schema.is_mutable:
        values = [*zip(op._schema.arguments, args, strict=False)]
        values += [(a, kwargs[a.name]) for a in op._schema.arguments if a.name in kwargs]
        written = [v for a, v in values if a.alias_info is not None and a.alias_info.is_write]
        if not op._schema.returns:
            return None
        if len(op._schema.returns) == len(written):
            return written[0] if len(written) == 1 else tuple(written)
    return pytree.tree_map(placed, result)


def raw(x):
    return x.raw if isinstance(x, Rehearsal) else x


def placed(x):
    """x on the device; sparse matrices, which torch's wrappers cannot hold, stay what they are."""
    is_cpu = isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.layout is torch.strided
    return Rehearsal(x.detach()) if is_cpu else x


class Module:
    """What torch.rehearsal needs beside what the registration makes."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = empty_cache = staticmethod(lambda *seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    Event = staticmethod(lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    synchronize = staticmethod(lambda device=None: WAITS.update({asked_by(): 1}))


def _register() -> list[torch.library.Library]:
    backend_registration._setup_privateuseone_for_python_backend("rehearsal")
    for name in vars(Module):
        if not name.startswith("__"):
            setattr(torch.rehearsal, name, getattr(Module, name))
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(on_cpu, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")  # composite operations would skip the fallback
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::") or has(name, "PrivateUse1"):
            continue
        if has(name, "CompositeExplicitAutograd"):
            base, _, overload = name.removeprefix("aten::").partition(".")
            op = getattr(getattr(torch.ops.aten, base), overload or "default", None)
            if op is not None:
                aten.impl(
                    name.removeprefix("aten::"),
                    lambda *args, op=op, **kwargs: on_cpu(op, *args, **kwargs),
                    "PrivateUse1",
                )
    return [fallback, aten]


_KEPT = _register()
for devices in (ASYNCHRONOUS, sparse.DEVICES):
    devices.add("rehearsal")
_sampled_addmm, _save = torch.sparse.sampled_addmm, torch.save


def sampled_addmm(pattern, a, b, **options):
    """Of tensors on the device: its values are there, too."""
    product = _sampled_addmm(pattern, raw(a), raw(b), **options)
    if not isinstance(a, Rehearsal):
        return product
    return SimpleNamespace(values=lambda: placed(product.values()))


def save(state, file, **options):
    """Tensors of the device as those of the CPU: a class of its own is not loaded again."""
    _save(pytree.tree_map(raw, state), file, **options)


torch.sparse.sampled_addmm, torch.save = sampled_addmm, save
torch.Tensor.pin_memory = lambda self: self  # type: ignore[method-assign]
