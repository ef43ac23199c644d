"""The number formats of this machine's processor."""

from functools import cache

import openvino


@cache
def has_bfloat16() -> bool:
    """Whether it multiplies in bfloat16; others emulate it, ten times slower."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
