"""How long to wait before a request that the server refused for now is sent again.

gRPC's own retry policy (a service config) is not used: it does not read RetryInfo, by which the server says when to
come back, ends after five attempts whatever the caller's timeout, and does not repeat messages of more than 256 KiB.
Told to repeat those, it would send a photo five times in 1.5 s to a server that asked for 3 s of rest.
"""

import random
import time
from collections.abc import Callable
from typing import TypeAlias

from polywand import errors
from polywand.errors import PolywandError

FIRST_DELAY_S = 0.05
FIRST_IMAGE_DELAY_S = 0.5  # of a request with an image: large messages are not sent many times a second
MAX_DELAY_S = 8.0  # unless the server asks for more
MAX_JITTER = 1.5  # random factor, so that clients refused together do not retry together

Uniform: TypeAlias = Callable[[float, float], float]
"""Returns a random number between two; `random.Random.uniform` is one."""


def system_uniform() -> Uniform:
    """Return a generator that seeding `random` does not affect: copies of one program must not retry together."""
    return random.SystemRandom().uniform


class Backoff:
    """The delays of one request. Each is twice as long as the last, up to a limit, times a random factor.

    A delay is never shorter than the server asks. It exceeds the deadline only if the server asks for that.
    """

    def __init__(self, deadline: float, first_s: float, uniform: Uniform, longest_s: float = MAX_DELAY_S) -> None:
        """Start with no delay yet. deadline: of the request, in monotonic seconds. first_s: the shortest delay."""
        self.deadline = deadline
        self._first_s, self._longest_s, self._uniform = first_s, longest_s, uniform
        self._last_s = first_s / 2

    def next_s(self, server_delay_s: float | None) -> float:
        """Return the next delay in seconds. server_delay_s: what the server asks for; None if it does not say."""
        left_s = self.deadline - time.monotonic()
        # Half of the time left: the last try needs time for its answer.
        grown_s = min(2 * self._last_s, self._longest_s, left_s / 2)
        self._last_s = max(self._first_s, server_delay_s or 0.0, grown_s)
        return self._last_s * self._uniform(1.0, max(1.0, min(MAX_JITTER, left_s / self._last_s)))


def retry_delay_s(backoff: Backoff, refusal: PolywandError) -> float | None:
    """Return the seconds to wait before a failed unary call is made again.

    None if a retry is useless: the error will stay, or the deadline comes first.
    """
    if not errors.is_temporary(refusal):
        return None
    delay_s = backoff.next_s(refusal.retry_after_s)
    return delay_s if time.monotonic() + delay_s < backoff.deadline else None
