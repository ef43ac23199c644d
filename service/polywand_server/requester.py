"""On whose behalf work is done: the client and the stream, known to all tasks of a call without being passed along."""

from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Requester:
    """client: its connection. stream: a number for each call."""

    client: str
    stream: int


_NUMBERS = count(1)
_NOBODY = Requester("", 0)
_current: ContextVar[Requester] = ContextVar("requester", default=_NOBODY)


def begin(client: str) -> Requester:
    """Say on whose behalf this task, and all that it starts from now on, works."""
    requester = Requester(client, next(_NUMBERS))
    _current.set(requester)
    return requester


def current() -> Requester:
    """On whose behalf this task works."""
    return _current.get()
