"""Messages between the service and a child: the bytes are in a memory file, whose descriptor is sent over a socket.

So a message of any size is written without waiting for its reader, and read without waiting for its writer.
"""

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import TypeAlias

Part: TypeAlias = bytes | memoryview

# Descriptors of one message at most: its content, and those that it passes on.
MAX_DESCRIPTORS = 4


def send(end: socket.socket, *content: Part, descriptors: Sequence[int] = ()) -> None:
    """Send one message. content: its parts. descriptors: passed on after the content; they stay open here.

    Raises:
        OSError: the other end is closed.
    """
    post(end, write(*content), descriptors)


def receive(end: socket.socket) -> tuple[bytes, list[int]] | None:
    """Receive one message and its descriptors, which belong to the caller; None when the other end is closed.

    Raises:
        BlockingIOError: no message yet, on a non-blocking socket.
        OSError: the message has no content, or the socket fails.
    """
    message = accept(end)
    return None if message is None else (read(message[0]), message[1])


def write(*content: Part) -> int:
    """Write content to a memory file; return its descriptor, which belongs to the caller."""
    memory = os.memfd_create("polywand-message", os.MFD_CLOEXEC)
    try:
        for part in content:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(memory, view) :]
    except BaseException:
        os.close(memory)
        raise
    return memory


def post(end: socket.socket, memory: int, descriptors: Sequence[int] = ()) -> None:
    """Send one message whose content `write` has written, and close the memory file. Raises OSError."""
    try:
        socket.send_fds(end, [b"m"], [memory, *descriptors])
    finally:
        os.close(memory)


def accept(end: socket.socket) -> tuple[int, list[int]] | None:
    """Receive one message without reading it: the memory file of its content, for `read`, and its descriptors.

    Raises:
        BlockingIOError, OSError: see `receive`.
    """
    said, (memory, *descriptors) = _receive(end)
    return (memory, descriptors) if said else None


def read(memory: int) -> bytes:
    """Read the content of a message, and close the memory file."""
    try:
        # Not mapped: the sender may still change or truncate the file.
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)


def _receive(end: socket.socket) -> tuple[bytes, list[int]]:
    said, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize))
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    for descriptor in received:
        os.set_inheritable(descriptor, False)
    if said and not received:
        raise OSError("a message came without its content")
    if not said:
        for descriptor in received:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return b"", [-1]
    return said, list(received)
