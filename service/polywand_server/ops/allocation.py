"""Settings of the C library's memory allocator, for many short-lived arrays, and of the garbage collector."""

import asyncio
import ctypes
import gc
import os
from pathlib import Path

from polywand_server.config import MEBIBYTE

# Larger allocations (images, not the arrays of a click) get a mapping each, which is unmapped when they are freed.
MAPPED_FROM_BYTES = 4 * MEBIBYTE
# Free memory that stays at the end of the heap for the next click; to get it again takes as long as tracing a contour.
KEPT_BYTES = 16 * MEBIBYTE

# When resident memory has grown by this much since the last check, free memory is returned to the system.
GROWTH_BYTES = 64 * MEBIBYTE
CHECK_SECONDS = 5.0
# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune() -> None:
    """Set the thresholds of glibc's allocator; do nothing with another C library.

    By default they follow the size of what was freed last. After one large image, megabytes are kept; after small
    arrays only, every click returns its memory to the system and requests it again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def freeze() -> None:
    """Exempt what exists now, mostly modules, from garbage collection, which holds the event loop to inspect it."""
    gc.collect()
    gc.freeze()


async def trim_periodically() -> None:
    """Return free memory to the system whenever the process has grown, until cancelled.

    gRPC reads large messages in many small pieces, and the allocator keeps those per thread.
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
