"""Answers of children: facts as JSON and arrays as raw bytes. Never a pickle: the child has read hostile input."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The dtypes that an answer may hold.
_DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of work in a child: plain facts, and arrays."""

    facts: dict[str, Any]
    arrays: Sequence[NDArray[Any]] = field(default=())


def to_bytes(answer: Answer) -> bytes:
    """Write an answer: one line of JSON, then the arrays one after another."""
    arrays = [np.ascontiguousarray(array) for array in answer.arrays]
    forms = [(array.dtype.name, array.shape) for array in arrays]
    head = json.dumps({"facts": answer.facts, "arrays": forms}).encode()
    return b"".join((head, b"\n", *(array.tobytes() for array in arrays)))


def from_bytes(data: bytes) -> Answer:
    """Read an answer.

    Raises:
        ValueError: these are not the bytes of an answer.
    """
    start = data.index(b"\n") + 1
    header = json.loads(data[:start])
    arrays = []
    for name, shape in header["arrays"]:
        if name not in _DTYPES or any(not isinstance(side, int) or side < 0 for side in shape):
            raise ValueError(f"a child answered an array {name} {shape}")
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(data, np.dtype(name), count, start).reshape(shape).copy()  # aligned
        arrays.append(array)
        start += array.nbytes
    return Answer(dict(header["facts"]), arrays)
