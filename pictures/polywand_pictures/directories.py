"""Directories of TIFF structures, classic and BigTIFF: in TIFF files and in EXIF."""

import struct
from collections.abc import Container, Mapping
from typing import Any

# Most entries of a directory that are read; honest ones have some dozens.
MAX_ENTRIES = 512
# Most values of one entry: of samples; and of offsets, of which each row may have one.
MAX_VALUES = 1024
MAX_OFFSETS = 4 * 65_536
# struct's letters, by the type of an entry: BYTE, ASCII, SHORT, LONG, SBYTE, SSHORT, SLONG, FLOAT, DOUBLE, LONG8.
_LETTERS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 18: "Q"}

# A tag without a meaning.
_NO_TAG = 65_000

Tags = Mapping[int, tuple[Any, ...]]


def byte_order(data: memoryview) -> str:
    """Return struct's letter for the byte order: "<" or ">"."""
    return "<" if bytes(data[:2]) == b"II" else ">"


def is_big(data: memoryview) -> bool:
    """Return whether this is a BigTIFF structure."""
    return bytes(data[2:4]) in (b"+\0", b"\0+")


def first_directory(data: memoryview) -> int | None:
    """Return the offset of the first directory; None if this is not a TIFF structure."""
    order, magic = byte_order(data), bytes(data[:4])
    if magic in (b"II*\0", b"MM\0*") and len(data) >= 8:
        return int(struct.unpack_from(f"{order}I", data, 4)[0])
    if magic in (b"II+\0", b"MM\0+") and len(data) >= 16:
        return int(struct.unpack_from(f"{order}Q", data, 8)[0])
    return None


def read_directory(data: memoryview, at: int, wanted: Mapping[int, int]) -> Tags:
    """Read the numbers of a directory, by tag; entries that are damaged or of another type are left out.

    Text is returned as byte values. wanted: tags, and the most values of each, so that many entries with the same large
    content cost nothing.
    """
    order = byte_order(data)
    big = is_big(data)
    count_letter, head, entry_bytes, inline = ("Q", "HHQ", 20, 8) if big else ("H", "HHI", 12, 4)
    tags: dict[int, tuple[Any, ...]] = {}
    try:
        (count,) = struct.unpack_from(f"{order}{count_letter}", data, at)
        at += struct.calcsize(f"={count_letter}")
        for entry in range(at, at + min(count, MAX_ENTRIES) * entry_bytes, entry_bytes):
            tag, kind, number = struct.unpack_from(f"{order}{head}", data, entry)
            letter = _LETTERS.get(kind)
            if letter is None or not 0 < number <= wanted.get(tag, 0) or tag in tags:
                continue
            offset = entry + entry_bytes - inline
            if number * struct.calcsize(f"={letter}") > inline:
                (offset,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, offset)
            if offset + number * struct.calcsize(f"={letter}") <= len(data):
                tags[tag] = struct.unpack_from(f"{order}{number}{letter}", data, offset)
    except (struct.error, OverflowError):
        pass  # damaged: the entries before are valid
    return tags


def without(data: memoryview, tags: Container[int]) -> bytes:
    """Return a copy without these tags in the first directory: they are renamed, so that offsets stay valid."""
    changed, order, at = bytearray(data), byte_order(data), first_directory(data)
    count_letter, entry_bytes = ("Q", 20) if is_big(data) else ("H", 12)
    try:
        (count,) = struct.unpack_from(f"{order}{count_letter}", data, at or 0)
        begin = (at or 0) + struct.calcsize(f"={count_letter}")
        for entry in range(begin, begin + min(count, MAX_ENTRIES) * entry_bytes, entry_bytes):
            if struct.unpack_from(f"{order}H", data, entry)[0] in tags:
                struct.pack_into(f"{order}H", changed, entry, _NO_TAG)
    except struct.error:
        pass  # damaged: its reader will raise
    return bytes(changed)
