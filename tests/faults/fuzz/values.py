"""Hostile values: for each scalar type of protobuf, those at and beyond an edge."""

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

FLOATS = (
    *(0.0, -0.0, float("nan"), float("inf"), -float("inf")),
    *(1e-45, -1e-45, 1.17e-38, 1e-7, 3.4028235e38, -3.4028235e38),  # denormal, smallest normal, largest
    *(-1.0, 0.5, 0.99999994, 1.0, 1.0000001, 2.0, 255.0, 1e3, 1000.0001, 1e6, 1000000.06, 16777217.0),
)
UNSIGNED = (0, 1, 2, 3, 4, 127, 128, 1000, 1001, 65535, 65536, 100_000, 100_001, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (2**32, 2**53 + 1, 2**63 - 1)
NUMBERS = {
    FieldDescriptor.CPPTYPE_FLOAT: FLOATS,
    FieldDescriptor.CPPTYPE_DOUBLE: FLOATS,
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_UINT32: UNSIGNED,
    FieldDescriptor.CPPTYPE_UINT64: (*UNSIGNED, *WIDE, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT64: (*UNSIGNED, *WIDE, -1, -(2**31), -(2**63)),
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 3, 4, 5, 99, -1, 2**31 - 1, -(2**31)),
}
LENGTHS = (1, 127, 128, 129, 255, 256, 257, 4096, 10_000)
ALPHABETS = (
    "x",
    "\0",
    "\n\r\t\x1b[31m",
    "%s%n{}${}",
    "\u00e4\u4f60\U0001f600",  # two, three and four bytes in UTF-8
    "\u202e\u200b\ufeff",  # right-to-left override, zero width space, byte order mark
    "\"'<&>\\;",
)


def text(rng: random.Random) -> str:
    """A string that a field may not be ready for. Paths are not among them: the oracle looks for the service's own."""
    if rng.random() < 0.2:
        return ""
    letters = rng.choice(ALPHABETS)
    return (letters * rng.choice(LENGTHS))[: rng.choice(LENGTHS)]


def scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    """A hostile value for a field that is no message."""
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, *LENGTHS)))
    if field.type == field.TYPE_STRING:
        return text(rng)
    return rng.choice(NUMBERS[field.cpp_type])
