"""Resampling: the conventions by which published predictors resize crops and maps, each exactly as its authors do."""

from collections.abc import Iterator
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

# Of Keys' cubic kernel, as in OpenCV.
CUBIC_A = -0.75
# How many values are interpolated at a time.
BAND_VALUES = 2**17


class Resampling(StrEnum):
    """How a crop becomes the network's input, where on it the prompt's points lie, and how its answer comes back.

    All but SMOOTH read the image's own pixels once, however much smaller the input is; a point counts as the pixel that
    it lies in, whose index is scaled and not shifted by half a pixel; the answer is brought back to the image's pixels,
    by the same interpolation or, for LINEAR, by CUBIC's.
    """

    # Averages what shrinks, by a pyramid; points lie between pixels; the answer stays at the input's size.
    SMOOTH = "smooth"
    # The edges of crop and input lie on each other (OpenCV's `resize`).
    LINEAR = "linear"
    CUBIC = "cubic"
    # Linear; the centres of the corner pixels lie on each other (PyTorch's `align_corners`).
    CORNERS = "corners"


def resize(window: Pixels, target: Pixels, resampling: Resampling) -> None:
    """Resize pixels [H, W, C] into a target [h, w, C] by any resampling but SMOOTH."""
    height, width = target.shape[:2]
    if resampling is not Resampling.CORNERS:
        cubic = resampling is Resampling.CUBIC
        cv2.resize(window, (width, height), dst=target, interpolation=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR)
        return
    if window.shape == target.shape:
        np.copyto(target, window)
        return
    rows, columns = (np.linspace(0, window.shape[axis] - 1, target.shape[axis]) for axis in (0, 1))
    for part, band in _bands(window, rows, columns, cubic=False):
        target[part] = np.rint(band)


def sample(
    values: NDArray[np.generic], rows: NDArray[np.float64], columns: NDArray[np.float64], *, cubic: bool = False
) -> Values:
    """Interpolate values [H, W] or [H, W, C] at all pairs of rows [h] and columns [w], which may lie between indices.

    OpenCV's `warpAffine` and `remap` would round positions to 1/32 of a pixel. Outside, the outermost values go on.
    """
    result = np.empty((len(rows), len(columns), *values.shape[2:]), np.float32)
    for part, band in _bands(values, rows, columns, cubic):
        result[part] = band
    return result


def _bands(
    values: NDArray[np.generic], rows: NDArray[np.float64], columns: NDArray[np.float64], cubic: bool
) -> Iterator[tuple[slice, Values]]:
    """Sample a few rows at a time, which stay in the processor's cache."""
    height = max(1, BAND_VALUES * len(values) // values.size)
    for start in range(0, len(rows), height):
        part = slice(start, start + height)
        along_columns = cv2.transpose(_along(values, rows[part], cubic))
        yield part, cv2.transpose(_along(along_columns, columns, cubic))


def _along(values: NDArray[np.generic], positions: NDArray[np.float64], cubic: bool) -> Values:
    """Interpolate along the first axis."""
    low = np.floor(positions)
    weights = _cubic_weights(positions - low) if cubic else (1 - (positions - low), positions - low)
    first = low.astype(np.intp) - (1 if cubic else 0)
    result: Values | None = None
    for tap, weight in enumerate(weights):
        indices = np.clip(first + tap, 0, values.shape[0] - 1)
        part = values[indices] * weight.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        result = part if result is None else np.add(result, part, out=result)
    assert result is not None  # there are weights
    return result


def _cubic_weights(fraction: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Weights of the four neighbours of a position that lies a fraction behind the second."""

    def near(x: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
        return result

    def far(x: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A
        return result

    return far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)
