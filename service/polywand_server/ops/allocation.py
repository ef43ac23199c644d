"""The C library's memory allocator, set for what this process does: arrays of one click come and go by the hundred."""

import asyncio
import ctypes
import os
from pathlib import Path

from polywand_server.config import MEBIBYTE

# Arrays of a click are below, images above: these are mapped by themselves, and go back to the system when they go.
MAPPED_FROM_BYTES = 4 * MEBIBYTE
# What is free at the end of the heap stays up to this, for the next click; fetching it anew costs as long as a contour.
KEPT_BYTES = 16 * MEBIBYTE

# When so much more is resident than after the last look, what is free is given back to the system.
GROWTH_BYTES = 64 * MEBIBYTE
CHECK_SECONDS = 5.0
# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune() -> None:
    """Set glibc's allocator; where the C library is another one, nothing happens.

    Without, its thresholds follow what was freed last: a large image once, and megabytes are kept; small arrays only,
    and every click gives its memory back to the system and asks for it again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


async def give_back_what_is_free() -> None:
    """Give memory back to the system after large messages have gone, until cancelled.

    Those come in many small pieces, which the allocator keeps for each thread that took them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    resident = _resident_bytes()
    while trim is not None:
        await asyncio.sleep(CHECK_SECONDS)
        if _resident_bytes() > resident + GROWTH_BYTES:
            await asyncio.to_thread(trim, 0)
        resident = min(_resident_bytes(), resident + GROWTH_BYTES)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
