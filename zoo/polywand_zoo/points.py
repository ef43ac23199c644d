"""Rows of POINTS, the input tensor of points and boxes, [B, N, 3]: x, y and a label."""

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # code that needs labels alone does not load PyTorch
    from torch import Tensor


class Label(IntEnum):
    """The label of a row of POINTS; the service's own copy is not imported, since that would load gRPC before forks."""

    PADDING = -1
    NEGATIVE = 0
    POSITIVE = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3
    EXTREME = 4


def borders_passed(points: "Tensor", borders: "Tensor") -> "Tensor":
    """Count for each value of points [B, N, 3] how many of the borders [K] lie below it: [B, N, 3], integers.

    The borders get the new axis in front, so that the comparison reads `points` itself and no reshaped copy: that is
    what keeps it exact in OpenVINO's bfloat16, where a comparison reads the graph's inputs and constants as they are.
    """
    return (points > borders.view(-1, 1, 1, 1)).sum(0)
