"""Values for JSON, which has neither NaN nor infinity."""

import math
from collections.abc import Mapping
from typing import Any


def json_safe(value: Any) -> Any:
    """The same without tensors, tuples and numbers that are not finite: those become lists, and
    None."""
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if hasattr(value, "tolist"):  # of torch or numpy
        return json_safe(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
