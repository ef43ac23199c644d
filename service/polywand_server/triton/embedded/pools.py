"""The memory that Triton's Python backend shares with the processes of its models: crops and masks pass through it."""

import contextlib
import os
import stat

from polywand_server.triton.embedded.launch import SHARED_MEMORY

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_private(prefix: str) -> int:
    """Take the rights of other users from the pools whose names begin with `prefix`; returns how many had them.

    Triton makes them readable for all. Mostly `launch.keep_regions_private` prevents that; this is for where it cannot.
    """
    found = 0
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it has just gone, is a link, or is another user's
            descriptor = os.open(path, _OPEN)
            try:
                found += _make_private(descriptor)
            finally:
                os.close(descriptor)
    return found


def _make_private(descriptor: int) -> bool:
    # The folder is everybody's: another user may put something of that name there.
    status = os.fstat(descriptor)
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or not status.st_mode & 0o077:
        return False
    os.fchmod(descriptor, 0o600)
    return True
