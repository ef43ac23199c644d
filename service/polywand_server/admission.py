"""Admission: what clients have sent and nobody has worked on yet, bounded in calls and in bytes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from polywand_server import metrics
from polywand_server.config import MEBIBYTE, Limits
from polywand_server.errors import QuotaError
from polywand_server.requester import current
from polywand_server.turns import Turns

# Messages up to this size are not counted: they are prompts, and each stream holds one at most.
SMALL_BODY_BYTES = 64 * 1024
RETRY_SECONDS = 1.0


class Admission:
    """Lets calls with images in: some at once, some in a line, and no more; the rest is told to come back.

    calls: turns of unary calls with an image, taken before a message is read.
    """

    def __init__(self, limits: Limits) -> None:
        self.calls = Turns(limits.calls_at_once, limits.calls_waiting, "calls with an image")
        self._most = limits.bodies_bytes
        self._largest = limits.message_bytes
        self._bytes = 0
        self._held: Counter[str] = Counter()

    @contextmanager
    def body(self, nbytes: int) -> Iterator[None]:
        """Count a message of so many bytes until the block ends.

        Raises:
            QuotaError: too much waits already, of all clients or of this one.
        """
        if nbytes <= SMALL_BODY_BYTES:
            yield
            return
        client = current().client
        self._check(client, nbytes)
        self._grow(client, nbytes)
        try:
            yield
        finally:
            self._grow(client, -nbytes)

    def _check(self, client: str, nbytes: int) -> None:
        # Half is for others; a single message of the greatest size is always let in while there is room.
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
