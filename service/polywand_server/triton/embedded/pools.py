"""The memory pools that Triton's Python backend shares with the processes of its models; they hold crops and masks."""

import contextlib
import os
import stat

from polywand_server.triton.embedded.launch import SHARED_MEMORY

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_private(prefix: str) -> int:
    """Make the pools whose names begin with `prefix` unreadable for other users; return how many were readable.

    Triton makes them readable for all users. This is for systems where `launch.keep_regions_private` is not possible.
    """
    found = 0
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it was just removed, is a link, or is another user's
            descriptor = os.open(path, _OPEN)
            try:
                found += _make_private(descriptor)
            finally:
                os.close(descriptor)
    return found


def _make_private(descriptor: int) -> bool:
    # All users can write to the folder: this may be another user's file.
    status = os.fstat(descriptor)
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or not status.st_mode & 0o077:
        return False
    os.fchmod(descriptor, 0o600)
    return True
