"""How long a request that the server refused for now rests before it is sent again."""

import random
import time
from collections.abc import Callable
from typing import TypeAlias

import grpc

from polywand import errors
from polywand.errors import PolywandError

FIRST_REST_S = 0.05
FIRST_IMAGE_REST_S = 0.5  # of a request that carries an image: what is large is not sent many times a second
LONGEST_REST_S = 8.0  # unless the server says more
LARGEST_STRETCH = 1.5  # by chance, so that clients refused at the same time do not come back at the same time

Uniform: TypeAlias = Callable[[float, float], float]
"""Draws a number between two; `random.Random.uniform` is one."""


def system_uniform() -> Uniform:
    """The system's own randomness: a program that seeds `random` draws the same numbers in all its copies."""
    return random.SystemRandom().uniform


class Rests:
    """The rests of one request. Each is twice as long as the last, up to the longest, and stretched by chance.

    A rest is never shorter than what the server says. Only where that reaches past the deadline does the rest, too.
    """

    def __init__(self, deadline: float, first_s: float, uniform: Uniform) -> None:
        """Start anew. deadline: when the request's time is over, in monotonic seconds. first_s: the shortest rest."""
        self.deadline = deadline
        self._first_s, self._uniform = first_s, uniform
        self._last_s = first_s / 2

    def next_s(self, told_s: float | None) -> float:
        """Seconds to rest now. told_s: what the server says; None when it does not."""
        left_s = self.deadline - time.monotonic()
        grown_s = min(
            2 * self._last_s, LONGEST_REST_S, left_s / 2
        )  # half, so that the last try has time for its answer
        self._last_s = max(self._first_s, told_s or 0.0, grown_s)
        return self._last_s * self._uniform(1.0, max(1.0, min(LARGEST_STRETCH, left_s / self._last_s)))


def before_again_s(rests: Rests, refusal: PolywandError, call: grpc.RpcError) -> float | None:
    """Seconds to rest before a unary call that failed is made again.

    None when that is no use: the refusal will stay, no server is there, or the call's time is over by then.
    """
    if not errors.is_passing(refusal) or errors.never_arrived(call):
        return None
    rest_s = rests.next_s(refusal.retry_after_s)
    return rest_s if time.monotonic() + rest_s < rests.deadline else None
