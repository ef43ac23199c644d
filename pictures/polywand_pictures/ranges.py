"""Values of more than 8 bits to 8 bits: which is black, which is white.

- A given range is used.
- Whole numbers from 0 to 65,535: 0 is black; white is the largest number of 8, 10, 12, 14 or 16 bits (15 with a sign),
  whichever is the first to fit the largest value, since cameras write 10 or 12 bits to 16-bit files.
- Floats from 0 to 1, the largest above a half: 0 is black, 1 is white.
- All others: the smallest value is black, the largest white. Infinities, NaN and values that mean no data do not count.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_pictures.header import ValueRange

Values = NDArray[Any]

_BITS = (8, 10, 12, 14, 16)
# Values that instruments and GIS programs write where nothing was measured; a file may declare another.
_NO_DATA = (-9999, -99999, -32767, -32768)
_TINY = 1e-30  # 32-bit floats, and quotients of them, are accurate above
_NO_DATA_SIZE = 1e20  # floats of this size or more are no data, too


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that are black and white. no_data: the file's own value for it, which becomes black."""

    low: float
    high: float
    no_data: float | None = None

    def units(self, values: Values) -> NDArray[np.float32]:
        """Convert values of any type to float32, 0 (black) to 1 (white)."""
        span = self.high - self.low
        if values.dtype == np.float32 and span > _TINY and _is_plain(values, self.no_data):
            unit = np.subtract(values, np.float32(self.low), dtype=np.float32)
            unit /= np.float32(span)
            return np.clip(unit, 0, 1, out=unit)
        with np.errstate(all="ignore"):
            unit = (values.astype(np.float64) - self.low) / span
        unit = np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0)
        unit[_is_no_data(values, self.no_data)] = 0
        return np.clip(unit, 0, 1).astype(np.float32)

    def to_8_bits(self, values: Values) -> NDArray[np.uint8]:
        """Convert values of any type to uint8."""
        if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
            every = np.arange(1 << 8 * values.dtype.itemsize, dtype=np.uint16)
            table = (self.units(every) * 255 + 0.5).astype(np.uint8)
            return np.asarray(table[values])
        unit = self.units(values)
        unit *= 255
        unit += 0.5
        return unit.astype(np.uint8)


def scale_of(parts: Iterable[Values], value_range: ValueRange | None, no_data: float | None = None) -> Scale:
    """Return the scale for values in parts of one type. value_range: used instead, if given."""
    if value_range is not None:
        return Scale(value_range.low, value_range.high, no_data)
    low, high, dtype = np.inf, -np.inf, np.dtype(np.uint8)
    for part in parts:
        dtype = part.dtype
        counting = _counting(part, no_data)
        if counting.size:
            low, high = min(low, float(counting.min())), max(high, float(counting.max()))
    if low > high:  # nothing counts
        return Scale(0, 1, no_data)
    if dtype.kind == "f":
        if low >= 0 and 0.5 < high <= 1:
            return Scale(0, 1, no_data)
    elif low >= 0 and high < 1 << _BITS[-1]:
        return Scale(0, min(white_of(high), np.iinfo(dtype).max), no_data)
    return Scale(low, high if high > low else low + 1, no_data)


def white_of(largest: float) -> int:
    """Return the value that is white, for whole numbers from 0 to `largest`."""
    return next(((1 << bits) - 1 for bits in _BITS if largest < 1 << bits), int(largest))


def _counting(values: Values, no_data: float | None) -> Values:
    if (values.dtype.kind == "u" and no_data is None) or _is_plain(values, no_data):
        return values
    counts = ~_is_no_data(values, no_data)
    if values.dtype.kind == "f":
        counts &= np.isfinite(values)
    return values if counts.all() else values[counts]


def _is_plain(values: Values, no_data: float | None) -> bool:
    """Return whether minimum and maximum already show that all values count."""
    low, high = values.min(initial=0), values.max(initial=0)  # NaN if there is one; then comparisons are false
    return bool(low > max(_NO_DATA) and high < _NO_DATA_SIZE and (no_data is None or not low <= no_data <= high))


def _is_no_data(values: Values, no_data: float | None) -> NDArray[np.bool_]:
    found = np.zeros(values.shape, np.bool_)
    own = () if no_data is None else (no_data,)
    for value in own if values.dtype.kind == "u" else (*own, *_NO_DATA):
        with np.errstate(over="ignore"):  # a float file has the float that is nearest to the declared text
            found |= values == (values.dtype.type(value) if values.dtype.kind == "f" else value)
    if values.dtype.kind == "f" and values.dtype.itemsize >= 4:
        found |= np.isfinite(values) & (np.abs(values) >= _NO_DATA_SIZE)
    return found
