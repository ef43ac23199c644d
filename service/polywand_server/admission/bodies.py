"""Admission: bounds the calls and bytes that clients have sent and that wait to be processed."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from polywand_server.admission.turns import Turns
from polywand_server.caller import current
from polywand_server.config import MEBIBYTE, Limits
from polywand_server.errors import QuotaError
from polywand_server.ops import metrics

# Messages up to this size are not counted: they are prompts, and each stream holds one at most.
SMALL_BODY_BYTES = 64 * 1024
RETRY_SECONDS = 1.0
# Read without a pause, and then per second, while prompts are expected: gRPC holds the interpreter for about 60 ms to
# deliver a message of 60 MB.
BURST_BYTES = 128 * MEBIBYTE
BYTES_PER_SECOND = 60 * MEBIBYTE
# The longest pause before a message is read.
MOST_PAUSE_SECONDS = 10.0
# Unary calls are read one by one; a read that takes longer goes on beside the next.
READ_ALONE_SECONDS = 1.0
# The payer of all frames.
FRAMES = "frames"


class Pace:
    """Limits how fast large messages are read while prompts are expected.

    payer: the name that bytes are counted under: FRAMES for all frames together, else `Caller.share`.
    """

    def __init__(self, prompts_expected: Callable[[], bool]) -> None:
        self._prompts_expected = prompts_expected
        self._debts: dict[str, _Debt] = {}

    async def pause(self, payer: str) -> int:
        """Wait until the next message may be read; return the bytes that are counted for it in advance."""
        debt = self._debts.get(payer)
        if debt is None or not self._prompts_expected():
            return 0
        over = debt.nbytes - BURST_BYTES
        if over <= 0:
            return 0
        expected = debt.last  # so that messages that wait together are not read together
        debt.add(expected)
        await asyncio.sleep(min(over / BYTES_PER_SECOND, MOST_PAUSE_SECONDS))
        return expected

    def read(self, payer: str, nbytes: int, expected: int) -> None:
        """Count what was read. expected: what `pause` has counted for it."""
        if nbytes > SMALL_BODY_BYTES:
            self._debts.setdefault(payer, _Debt()).last = nbytes
        if payer in self._debts:
            self._debts[payer].add((nbytes if nbytes > SMALL_BODY_BYTES else 0) - expected)
            self._debts = {name: debt for name, debt in self._debts.items() if debt.nbytes > 0}


class _Debt:
    """Bytes that were read, less BYTES_PER_SECOND since. last: bytes of the last large message."""

    def __init__(self) -> None:
        self.last = 0
        self._nbytes = 0.0
        self._at = time.monotonic()

    @property
    def nbytes(self) -> float:
        """The debt now."""
        return max(0.0, self._nbytes - (time.monotonic() - self._at) * BYTES_PER_SECOND)

    def add(self, nbytes: int) -> None:
        """Add bytes; a negative number removes some."""
        self._nbytes, self._at = self.nbytes + nbytes, time.monotonic()


class Admission:
    """Admits calls with images: some run, some wait, and the rest are refused.

    calls: turns of unary calls with an image, acquired before a message is read. clicks: the same, of calls that may
    have one prompt only, and must not wait behind many. pace: of reading.
    """

    def __init__(self, limits: Limits, prompts_expected: Callable[[], bool]) -> None:
        self.pace = Pace(prompts_expected)
        self.calls = Turns(limits.calls_at_once, limits.calls_waiting, "calls with an image")
        self.clicks = Turns(limits.calls_at_once, limits.calls_waiting, "calls with prompts")
        self._reading = Turns(1, what="calls that are read")
        self._most = limits.bodies_bytes
        self._largest = limits.message_bytes
        self._bytes = 0
        self._held: Counter[str] = Counter()

    async def one_by_one(self, read: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """Read the message of a unary call; reads of several calls do not begin together."""
        async with self._reading.turn():
            reading = asyncio.create_task(read(), name="read a call")
            try:
                await asyncio.wait((reading,), timeout=READ_ALONE_SECONDS)
            except asyncio.CancelledError:
                reading.cancel()
                raise
        try:
            return await reading
        finally:
            reading.cancel()

    @contextmanager
    def body(self, nbytes: int) -> Iterator[None]:
        """Count a message of so many bytes until the block ends.

        Raises:
            QuotaError: too much waits already, of all clients or of this one.
        """
        if nbytes <= SMALL_BODY_BYTES:
            yield
            return
        client = current().share
        self._check(client, nbytes)
        self._grow(client, nbytes)
        try:
            yield
        finally:
            self._grow(client, -nbytes)

    def _check(self, client: str, nbytes: int) -> None:
        # Half is for other clients; one message of the largest size is always admitted while the total allows it.
        own_most = max(self._largest, self._most // 2)
        if self._bytes + nbytes > self._most or self._held[client] + nbytes > own_most:
            held = f"{self._bytes // MEBIBYTE} of at most {self._most // MEBIBYTE} MiB of images wait to be decoded"
            raise QuotaError("images that wait", f"{held}: try later, or another replica", RETRY_SECONDS)

    def _grow(self, client: str, nbytes: int) -> None:
        self._bytes += nbytes
        self._held[client] += nbytes
        if not self._held[client]:
            del self._held[client]
        metrics.BODY_MEMORY.inc(nbytes)
