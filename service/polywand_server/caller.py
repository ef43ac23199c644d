"""The caller: the client, the stream and the request that the running task works for."""

from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of one call.

    client: its connection, as gRPC names it ("ipv4:127.0.0.1:50123"). stream: a number for each call.
    request_id: for the logs; the client may choose it, so two calls may have the same one. Empty outside of calls.
    traceparent: of W3C Trace Context, as the client sent it; empty if it sent none.
    principal: on whose behalf it is made; nothing is shared between two. Empty: everybody, as there is no
    authentication yet.
    """

    client: str
    stream: int
    request_id: str = ""
    traceparent: str = ""
    principal: str = ""

    @property
    def trace_id(self) -> str:
        """The id of the client's trace, 32 hexadecimal digits; empty if it sent none."""
        return self.traceparent.split("-")[1] if self.traceparent else ""


_NUMBERS = count(1)
_NO_CALL = Caller("", 0)
_current: ContextVar[Caller] = ContextVar("caller", default=_NO_CALL)


def begin(client: str, request_id: str = "", traceparent: str = "", principal: str = "") -> Caller:
    """Begin a call: this task, and all that it starts from now on, works for it."""
    caller = Caller(client, next(_NUMBERS), request_id, traceparent, principal)
    _current.set(caller)
    return caller


def current() -> Caller:
    """Return the caller that this task works for; one without a name outside of calls."""
    return _current.get()
