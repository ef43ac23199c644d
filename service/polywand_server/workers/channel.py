"""Messages between the service and a child: the bytes are in a memory file, whose descriptor is sent over a socket.

So a message of any size is written without waiting for its reader, and read without waiting for its writer.
"""

import array
import contextlib
import os
import socket
from collections.abc import Sequence

# Descriptors of one message at most: its content, and those that it passes on.
MAX_DESCRIPTORS = 4


def send(end: socket.socket, content: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message. descriptors: passed on after the content; they stay open here.

    Raises:
        OSError: the other end is closed.
    """
    memory = os.memfd_create("polywand-message", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(memory, view) :]
        socket.send_fds(end, [b"m"], [memory, *descriptors])
    finally:
        os.close(memory)


def receive(end: socket.socket) -> tuple[bytes, list[int]] | None:
    """Receive one message and its descriptors, which belong to the caller; None when the other end is closed.

    Raises:
        BlockingIOError: no message yet, on a non-blocking socket.
        OSError: the message has no content, or the socket fails.
    """
    said, (memory, *descriptors) = _receive(end)
    if not said:
        return None
    try:
        return os.pread(memory, os.fstat(memory).st_size, 0), descriptors
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
