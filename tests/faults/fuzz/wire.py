"""Mangled bytes: messages whose encoding is unusual, or wrong, while most of their structure stays."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz.case import DETECT, DETECT_STREAM, INTERACT, LIST_MODELS, SEGMENT, Case, Send
from tests.faults.fuzz.messages import make_detect, make_frame, make_image, make_prompt, make_segment
from tests.faults.fuzz.sizes import Sizes, copies, up_to

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
# The first that is free, one of a reserved range, the highest, and two that are none.
UNKNOWN_NUMBERS = (8, 16, 19_000, 2**29 - 1)
NO_NUMBERS = (0, 2**29)
# A varint of 64 bits has ten bytes; the eleventh is one too many.
LONGEST_VARINT = b"\xff" * 9 + b"\x01"
TOO_LONG_VARINT = b"\xff" * 10 + b"\x01"


@dataclass(slots=True)
class Field:
    """A field on the wire. value: a number, bytes, or the fields of a message."""

    number: int
    wire_type: int
    value: "int | bytes | list[Field | bytes]"


Fields = list[Field | bytes]  # bytes are written as they are


def hostile_bytes(rng: random.Random, sizes: Sizes) -> Case:
    """A call whose messages are mangled; on a stream with prompts the image before them is good."""
    method = rng.choices((INTERACT, SEGMENT, DETECT, DETECT_STREAM, LIST_MODELS), (5, 2, 1, 1, 1))[0]
    gzip = rng.random() < 0.03
    if method == LIST_MODELS:
        data = rng.choice(
            (rng.randbytes(rng.choice((0, 1, 3, 100))), _nested_groups([], rng, sizes), b"\x0a\x00" * 100)
        )
        return Case("bytes", method, (Send(data),), gzip=gzip)
    if method == SEGMENT:
        return Case("bytes", method, (Send(mangle(make_segment(rng, sizes), rng, sizes)),), gzip=gzip)
    if method in (DETECT, DETECT_STREAM):
        message: Message = make_detect(rng) if method == DETECT else make_frame(rng)
        return Case("bytes", method, (Send(mangle(message, rng, sizes)),), gzip=gzip)
    image = make_image(rng)
    steps = [Send(pb.InteractRequest(sequence=1, image=image).SerializeToString())]
    for number in range(rng.randint(1, 3)):
        prompt = make_prompt(rng, image.raw.width, image.raw.height, sizes)
        request = pb.InteractRequest(sequence=2 + number, prompt=prompt)
        if rng.random() < 0.15:
            request = pb.InteractRequest(sequence=2 + number, image=make_image(rng))
        steps.append(Send(mangle(request, rng, sizes)))
    return Case("bytes", method, tuple(steps), gzip=gzip)


def mangle(message: Message, rng: random.Random, sizes: Sizes) -> bytes:
    """Encode a message with one or two changes that no library would make."""
    fields = parse(message.SerializeToString(), message.DESCRIPTOR)
    for _ in range(rng.choice((0, 1, 1, 2))):
        rng.choice(CHANGES)(rng.choice(list(_levels(fields))), rng, sizes)
    data = encode(fields)
    return data if not data or rng.random() < 0.7 else _damage_blindly(data, rng)


def parse(data: bytes, descriptor: Descriptor | None) -> Fields:
    """Take a valid encoding apart, down to the fields of the sub-messages that the descriptor knows."""
    fields: Fields = []
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        number, wire_type = key >> 3, key & 7
        value: Any
        if wire_type == VARINT:
            value, place = _read_varint(data, place)
        elif wire_type == BYTES:
            length, place = _read_varint(data, place)
            value = data[place : place + length]
            place += length
            known = descriptor.fields_by_number.get(number) if descriptor is not None else None
            if known is not None and known.message_type is not None:
                value = parse(value, known.message_type)
        else:
            length = 8 if wire_type == FIXED64 else 4
            value = data[place : place + length]
            place += length
        fields.append(Field(number, wire_type, value))
    return fields


def encode(fields: Fields) -> bytes:
    """Put fields together again."""
    return b"".join(field if isinstance(field, bytes) else _encode_field(field) for field in fields)


def _encode_field(field: Field) -> bytes:
    key = _varint(field.number << 3 | field.wire_type)
    if isinstance(field.value, int):
        return key + _varint(field.value)
    body = encode(field.value) if isinstance(field.value, list) else field.value
    if field.wire_type == GROUP:
        return key + body + _varint(field.number << 3 | END_GROUP)
    return key + (_varint(len(body)) if field.wire_type == BYTES else b"") + body


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        group = data[place]
        place += 1
        number |= (group & 0x7F) << shift
        shift += 7
        if group < 0x80:
            return number, place


def _levels(fields: Fields) -> Iterator[Fields]:
    """The fields of the message, and those of each message in it."""
    yield fields
    for field in fields:
        if isinstance(field, Field) and isinstance(field.value, list):
            yield from _levels(field.value)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _insert(fields: Fields, what: Field | bytes, rng: random.Random) -> None:
    fields.insert(rng.randint(0, len(fields)), what)


def _duplicate(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """Repeat a field: the last one of a scalar counts, messages are merged, and of a oneof the last member counts."""
    if fields:
        field = rng.choice(fields)
        fields.extend([field] * copies(rng, sizes, len(encode([field]))))


def _shuffle(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    rng.shuffle(fields)


def _unknown(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """Insert fields that the contract does not have, which receivers ignore."""
    number = rng.choice(UNKNOWN_NUMBERS)
    field = rng.choice(
        (
            Field(number, VARINT, 2**64 - 1),
            Field(number, FIXED64, bytes(8)),
            Field(number, FIXED32, bytes(4)),
            Field(number, BYTES, rng.randbytes(100)),
            Field(number, GROUP, [Field(1, VARINT, 1)]),
        )
    )
    place = rng.randint(0, len(fields))
    fields[place:place] = [field] * copies(rng, sizes, len(encode([field])))


def _other_type(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """Send a known field with another wire type: parsers take it for unknown, or for damage."""
    number, wire_type = rng.randint(1, 8), rng.choice((VARINT, FIXED64, BYTES, GROUP, FIXED32))
    sizes_by_type = {FIXED64: 8, FIXED32: 4, BYTES: 3}
    value = 1 if wire_type == VARINT else [] if wire_type == GROUP else bytes(sizes_by_type[wire_type])
    _insert(fields, Field(number, wire_type, value), rng)


def _lying_length(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """A length that ends within the data, behind it, or far beyond any."""
    length = rng.choice((0, 1, 5, 100, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
    _insert(fields, _key(rng.randint(1, 8), BYTES) + _varint(length) + rng.randbytes(rng.randint(0, 5)), rng)


def _broken_group(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """A group that does not end, an end without a group, or an end of another one."""
    start, end, other = _key(1, GROUP), _key(1, END_GROUP), _key(2, END_GROUP)
    _insert(fields, rng.choice((start, end, start + other, start + start + end, _key(9, 6), _key(9, 7))), rng)


def _deep_groups(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    _insert(fields, _nested_groups(fields, rng, sizes), rng)


def _nested_groups(fields: Fields, rng: random.Random, sizes: Sizes) -> bytes:
    """Groups in groups: parsers have a limit of 100 levels."""
    depth = rng.choice((50, 99, 100, 101, sizes.depth))
    number = rng.choice((3, 100))
    ends = depth if rng.random() < 0.7 else 0
    return _key(number, GROUP) * depth + _key(number, END_GROUP) * ends


def _deep_messages(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """An unknown message in a message in a message."""
    data = b""
    for _ in range(min(sizes.depth, rng.choice((50, 101, 2_000)))):
        data = _key(2, BYTES) + _varint(len(data)) + data
    _insert(fields, Field(rng.randint(1, 8), BYTES, data), rng)


def _long_varint(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """Numbers and keys with more bytes than they need, or than there may be."""
    padded = rng.choice((b"\x81\x80\x80\x00", b"\x80" * 9 + b"\x00", LONGEST_VARINT, TOO_LONG_VARINT, b"\x80" * 30))
    keys = (_key(rng.randint(1, 8), VARINT), b"\x88\x80\x80\x00", padded)
    _insert(fields, rng.choice(keys) + padded, rng)


def _no_number(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    _insert(fields, _key(rng.choice(NO_NUMBERS), VARINT) + b"\x01", rng)


def _empties(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """Two bytes on the wire for each, and an object for each in the service."""
    fields.append((_key(rng.randint(1, 8), BYTES) + b"\0") * up_to(rng, sizes.entries))


def _packed(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    """Coordinates that are not packed, or packed with a length that is no multiple of four."""
    loose = (_key(1, FIXED32) + rng.randbytes(4)) * up_to(rng, sizes.entries)
    torn = _key(1, BYTES) + b"\x07" + bytes(7)
    _insert(fields, rng.choice((loose, torn)), rng)


def _not_utf8(fields: Fields, rng: random.Random, sizes: Sizes) -> None:
    text = rng.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80"))
    _insert(fields, Field(rng.choice((1, 3)), BYTES, text), rng)


CHANGES: tuple[Callable[[Fields, random.Random, Sizes], None], ...] = (
    *(_duplicate, _duplicate, _shuffle, _unknown, _other_type, _lying_length, _broken_group, _deep_groups),
    *(_deep_messages, _long_varint, _no_number, _empties, _empties, _packed, _not_utf8),
)


def _damage_blindly(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, insert, repeat, or drop a run of bytes."""
    place, other = sorted(rng.randrange(len(data)) for _ in range(2))
    # The head holds the structure, and pixels most of the rest.
    head = rng.randrange(min(len(data), 40))
    changed = bytearray(data)
    changed[head] ^= 1 << rng.randrange(8)
    return rng.choice(
        (
            bytes(changed),
            data[:place],
            data[:head],
            data[:head] + rng.randbytes(rng.randint(1, 10)) + data[head:],
            data[:place] + data[place:other] * 2 + data[other:],
            data[:head] + data[other:],
            data + data,
        )
    )
