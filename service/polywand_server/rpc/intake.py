"""Intake: parses the bytes of a message; large ones in a thread."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.errors import PolywandError, Reason, TooLargeError
from polywand_server.lanes import Lane
from polywand_server.rpc import wire

Kind = TypeVar("Kind", bound=Message)


@dataclass(frozen=True, slots=True)
class Received(Generic[Kind]):
    """A parsed message.

    message: without the bytes of its image, where these are in `image`. image: None where they are in the message.
    """

    message: Kind
    image: memoryview | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that exceeds a limit. number: its field 1, the sequence or frame id; 0 where it was not found."""

    error: PolywandError
    number: int


def is_small(nbytes: int) -> bool:
    """Whether a message of so many bytes is read on the event loop."""
    return nbytes <= wire.SMALL_BYTES


async def receive_interact(data: bytes, lane: Lane) -> Received[pb.InteractRequest] | Refused:
    """Read a message of Interact; see `_receive`."""
    return await _receive(data, pb.InteractRequest, wire.INTERACT, lane)


async def receive_detect(data: bytes, lane: Lane) -> Received[pb.DetectRequest] | Refused:
    """Read the message of Detect; see `_receive`."""
    return await _receive(data, pb.DetectRequest, wire.DETECT, lane)


async def receive_segment(data: bytes, lane: Lane) -> Received[pb.SegmentRequest] | Refused:
    """Read the message of Segment; see `_receive`."""
    return await _receive(data, pb.SegmentRequest, wire.SEGMENT, lane)


async def receive_frame(data: bytes, lane: Lane) -> Received[pb.DetectStreamRequest] | Refused:
    """Read a message of DetectStream; see `_receive`."""
    return await _receive(data, pb.DetectStreamRequest, wire.DETECT_STREAM, lane)


async def _receive(data: bytes, kind: type[Kind], path: wire.Path, lane: Lane) -> Received[Kind] | Refused:
    """Parse a message of a kind. path: the fields that lead to its image. lane: for large messages.

    Raises:
        DecodeError: the bytes are not a valid message.
    """
    if is_small(len(data)):
        message = kind.FromString(data)
        return Received(message, None)
    try:
        parts = wire.split(data, path, wire.FEW_FIELDS)
    except wire.TooManyFieldsError:
        return await lane.compute(lambda: _read(data, kind, path))
    if len(parts.rest) <= wire.SMALL_BYTES:
        return Received(kind.FromString(parts.rest), parts.image)
    return await lane.compute(lambda: _read_parts(parts, kind))


def _read(data: bytes, kind: type[Kind], path: wire.Path) -> "Received[Kind] | Refused":
    try:
        return _read_parts(wire.split(data, path, wire.MAX_FIELDS), kind)
    except wire.TooManyFieldsError:
        most = wire.MAX_FIELDS
        text = f"it has more than {most} fields, the most that are read"
        return Refused(TooLargeError("message", text, reason=Reason.MESSAGE_TOO_LARGE), 0)


def _read_parts(parts: wire.Split, kind: type[Kind]) -> "Received[Kind] | Refused":
    try:
        wire.check_rest(parts)
        wire.check_fields(parts.rest, kind.DESCRIPTOR)
    except TooLargeError as error:
        return Refused(error, parts.number)
    return Received(kind.FromString(parts.rest), parts.image)
