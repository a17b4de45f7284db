"""Copies between main memory and a device for which the host does not wait.

Such a copy needs pinned memory and a device with streams. What a device has computed is in main
memory a step later, so whoever can wait that long asks for it with `Download`.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

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
