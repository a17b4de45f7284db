"""Values for JSON, which has neither NaN nor infinity."""

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """The same without tensors, tuples and numbers that are not finite: those become lists, and
    None."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):  # of torch or numpy
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
