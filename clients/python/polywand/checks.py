"""Checks of arguments before anything is sent; each error names the argument and its limits."""

import math
import operator
import os
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Any

import grpc
import numpy as np

from polywand.errors import InvalidRequest, Violation
from polywand_common.texts import printable

MAX_VERSION = 2**32 - 1
MAX_DETECTIONS = 1000
MIN_POINTS, MAX_POINTS = 3, 100_000  # vertices of one outline
MAX_TOLERANCE = 1000.0  # pixels
MAX_NAME_BYTES = 256  # of a model or a label
MAX_OBJECT_ID_BYTES = 128
MAX_COORDINATE = float(np.finfo(np.float32).max)  # of the contract's type; the server compares with the image's size


def invalid(argument: str, description: str) -> InvalidRequest:
    """Make the error of an argument, such as "max_points: -5 is not a whole number from 3 to 100000"."""
    return InvalidRequest(
        f"{argument}: {description}.", grpc.StatusCode.INVALID_ARGUMENT, [Violation(argument, description)]
    )


def integer(argument: str, value: Any, low: int, high: int) -> int:
    """Return a whole number from low to high as int. NumPy's integers are accepted; True, 5.0 and "5" are not."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise invalid(argument, f"{_shown(value)} is not a whole number from {low} to {high}")
    return number


def number(argument: str, value: Any, low: float, high: float, *, between: bool = False) -> float:
    """Return a finite number from low to high as float. between: the limits themselves are excluded."""
    real = _real(value)
    if real is None or not (low < real < high if between else low <= real <= high):
        limits = f"above {low:g} and below {high:g}" if between else f"from {low:g} to {high:g}"
        raise invalid(argument, f"{_shown(value)} is not a number {limits}")
    return real


def coordinates(argument: str, values: Any, count: int) -> list[float]:
    """Return `count` finite numbers, such as a point's x and y, as a list."""
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes) else []
    numbers = [real for value in listed if (real := _real(value)) is not None and abs(real) <= MAX_COORDINATE]
    if len(listed) != count or len(numbers) != count:
        raise invalid(argument, f"{_shown(values)} is not {count} finite numbers")
    return numbers


def rows(argument: str, values: Any) -> Sequence[Any]:
    """Return an iterable, such as one of points, as a list. Raises InvalidRequest for a number or a text."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise invalid(argument, f"{_shown(values)} is not a list of points")
    return list(values)


def frames(images: Any) -> None:
    """Raise InvalidRequest for one image instead of many: a file name is iterable, too."""
    if isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Iterable | AsyncIterable):
        raise invalid("images", f"{_shown(images)} is not a list of images, nor an iterator")


def flag(argument: str, value: Any) -> bool:
    """Return True or False. A name is neither: it would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise invalid(argument, f"{_shown(value)} is neither True nor False")
    return bool(value)


def version(argument: str, value: Any, model: str) -> int:
    """Return the version of a model; 0 is the highest that is ready. Raises InvalidRequest for one of no model."""
    number = integer(argument, value, 0, MAX_VERSION)
    if number and not model:
        raise invalid(argument, f"version {number} of which model? Name it")
    return number


def text(argument: str, value: Any, max_bytes: int = MAX_NAME_BYTES) -> str:
    """Return a text that can be encoded as UTF-8 in at most `max_bytes`."""
    if not isinstance(value, str):
        raise invalid(argument, f"{_shown(value)} is not a text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise invalid(argument, f"{_shown(value)} contains bytes that are not UTF-8") from None
    if size > max_bytes:
        raise invalid(argument, f"a text of {size} bytes; at most {max_bytes} are allowed")
    return value


def _real(value: Any) -> float | None:
    """Return a number as a finite float, else None. Texts are not numbers here, nor is True."""
    if isinstance(value, bool | np.bool_ | str | bytes | bytearray):
        return None
    try:
        real = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return real if math.isfinite(real) else None


def _shown(value: Any) -> str:
    shown = f"'{value}'" if isinstance(value, str) else str(value) if isinstance(value, np.generic) else repr(value)
    shown = " ".join(printable(shown).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
