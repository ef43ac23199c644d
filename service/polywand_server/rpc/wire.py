"""The wire format: separate the image from a message and check limits, before protobuf parses the rest.

An empty sub-message takes two bytes on the wire and some hundred in memory. So everything but the image is limited in
bytes and in fields, which are counted in the wire format. The bytes of an image are never copied.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.config import MEBIBYTE
from polywand_server.errors import Reason, TooLargeError

# A message without its image: a bit more than two of its largest parts, which have limits of their own.
MAX_REST_BYTES = 2 * MEBIBYTE + 65_536
# Values and sub-messages of a message; packed numbers count as one value.
MAX_FIELDS = 100_000
# Messages up to this size are not checked.
SMALL_BYTES = 4096
# Messages with more fields are split in a thread.
FEW_FIELDS = 64

# The field numbers that lead to the bytes of an image; None marks the bytes themselves.
Path = Mapping[int, "Path | None"]
_RAW: Final[Path] = {pb.RawImage.DATA_FIELD_NUMBER: None}
IMAGE: Final[Path] = {pb.Image.ENCODED_FIELD_NUMBER: None, pb.Image.RAW_FIELD_NUMBER: _RAW}
DETECT: Final[Path] = {pb.DetectRequest.IMAGE_FIELD_NUMBER: IMAGE}
SEGMENT: Final[Path] = {pb.SegmentRequest.IMAGE_FIELD_NUMBER: IMAGE}
INTERACT: Final[Path] = {pb.InteractRequest.IMAGE_FIELD_NUMBER: IMAGE}
DETECT_STREAM: Final[Path] = {pb.DetectStreamRequest.REQUEST_FIELD_NUMBER: DETECT}

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_NUMBERS = 1  # the field with the sequence or frame id of a stream's message


class TooManyFieldsError(Exception):
    """The message has more fields than the given limit."""


@dataclass(frozen=True, slots=True)
class Split:
    """A message in two parts.

    rest: the message, with an empty field instead of the image's bytes. image: these bytes. number: field 1, or 0.
    """

    rest: bytes
    image: memoryview | None
    number: int


def split(data: bytes, path: Path, most_fields: int) -> Split:
    """Separate the bytes of the image from a message.

    Raises:
        TooManyFieldsError: there are more than most_fields on the levels of the path.
        DecodeError: the bytes are not a valid message.
    """
    images: list[memoryview | None] = []
    numbers: list[int] = []
    budget = _Budget(most_fields)
    rest = _without_images(memoryview(data), path, budget, images, numbers)
    # As in protobuf, the last of several equal fields counts.
    return Split(rest, images[-1] if images else None, numbers[-1] if numbers else 0)


def check_fields(data: bytes, message: Any) -> None:
    """Check the number of all fields of a message, including nested ones. message: its descriptor.

    Raises:
        TooLargeError: there are more than MAX_FIELDS.
        DecodeError: the bytes are not a valid message.
    """
    try:
        _count(memoryview(data), message, _Budget(MAX_FIELDS))
    except TooManyFieldsError:
        text = f"it has more than {MAX_FIELDS} values and sub-messages, the most that are read"
        raise TooLargeError("message", text, reason=Reason.MESSAGE_TOO_LARGE) from None


def check_rest(split_message: Split) -> None:
    """Check the size of a message without its image. Raises TooLargeError."""
    nbytes = len(split_message.rest)
    if nbytes > MAX_REST_BYTES:
        text = f"it has {nbytes} bytes beside its image; at most {MAX_REST_BYTES} are read"
        raise TooLargeError("message", text, reason=Reason.MESSAGE_TOO_LARGE)


def delimited(number: int, *parts: bytes) -> bytes:
    """Return a length-delimited field: bytes, or a serialised message."""
    return b"".join((_varint(number << 3 | _BYTES), _varint(sum(map(len, parts))), *parts))


class _Budget:
    def __init__(self, fields: int) -> None:
        self.left = fields

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooManyFieldsError


def _without_images(
    data: memoryview, path: Path, budget: _Budget, images: list[memoryview | None], numbers: list[int] | None = None
) -> bytes:
    parts: list[bytes | memoryview] = []
    for number, kind, start, begin, end in _fields(data):
        budget.spend()
        if numbers is not None and number == _NUMBERS and kind == _VARINT:
            numbers.append(_read_varint(data, begin)[0] & 0xFFFF_FFFF)  # as protobuf reads a uint32
        if kind != _BYTES or number not in path:
            parts.append(data[start:end])
            continue
        further = path[number]
        if further is None:
            images.append(data[begin:end])
            parts.append(delimited(number))
            continue
        if further is _RAW:
            images.append(None)  # as in protobuf, it replaces an encoded one before it, also if it has no data itself
        parts.append(delimited(number, _without_images(data[begin:end], further, budget, images)))
    return b"".join(parts)


def _count(data: memoryview, message: Any, budget: _Budget) -> None:
    known = message.fields_by_number
    for number, kind, _, begin, end in _fields(data):
        budget.spend()
        field = known.get(number)
        if kind == _BYTES and field is not None and field.message_type is not None:
            _count(data[begin:end], field.message_type, budget)


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, wire type, start of the tag, start and end of the content of each field; also tags of groups."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _read_varint(data, at)
        kind = tag & 7
        begin = at
        if kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind == _BYTES:
            size, begin = _read_varint(data, at)
            at = begin + size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        elif kind not in (_GROUP, _END_GROUP):
            raise DecodeError("a field of an unknown wire type")
        if at > len(data):
            raise DecodeError("a field ends after its message")
        yield tag >> 3, kind, start, begin, at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise DecodeError("a number ends after its message")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise DecodeError("a number of more than ten bytes")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
