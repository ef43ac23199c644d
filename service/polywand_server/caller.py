"""The caller: the client, the stream and the request that the running task works for."""

from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import count

from polywand_server.principal import ANYBODY, Principal

# Tools that are kept of a call.
MOST_MODELS = 8


@dataclass(slots=True)
class Usage:
    """What a call has cost so far.

    received_bytes: of its messages. pixels: of its images. prompts, frames: that it sent. errors: messages and prompts
    that were answered with an error. models: tools that it got; few are kept. reason: why it failed, as `errors.Reason`
    names it; empty if it did not.
    """

    received_bytes: int = 0
    pixels: int = 0
    prompts: int = 0
    frames: int = 0
    errors: int = 0
    models: set[str] = field(default_factory=set)
    reason: str = ""

    def add_model(self, name: str) -> None:
        """Note a tool that the call got."""
        if len(self.models) < MOST_MODELS:
            self.models.add(name)


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of one call.

    client: its connection, as gRPC names it ("ipv4:127.0.0.1:50123"). stream: a number for each call.
    request_id: for the logs; the client may choose it, so two calls may have the same one. Empty outside of calls.
    traceparent: of W3C Trace Context, as the client sent it; empty if it sent none.
    principal: on whose behalf it is made; nothing is shared between two. ANYBODY before it is known, and where there is
    no authentication.
    usage: what it has cost so far, for the audit.
    """

    client: str
    stream: int
    request_id: str = ""
    traceparent: str = ""
    principal: Principal = ANYBODY
    usage: Usage = field(default_factory=Usage, compare=False)

    @property
    def share(self) -> str:
        """Whose share of the server it uses: its principal's, or where there is none, its connection's."""
        return self.principal.name or self.client

    @property
    def trace_id(self) -> str:
        """The id of the client's trace, 32 hexadecimal digits; empty if it sent none."""
        return self.traceparent.split("-")[1] if self.traceparent else ""


_NUMBERS = count(1)
_NO_CALL = Caller("", 0)
_current: ContextVar[Caller] = ContextVar("caller", default=_NO_CALL)


def begin(client: str, request_id: str = "", traceparent: str = "") -> Caller:
    """Begin a call: this task, and all that it starts from now on, works for it."""
    caller = Caller(client, next(_NUMBERS), request_id, traceparent)
    _current.set(caller)
    return caller


def identify(principal: Principal) -> None:
    """Note the principal of the call that this task works for: of what it starts from now on, too."""
    _current.set(replace(_current.get(), principal=principal))


def current() -> Caller:
    """Return the caller that this task works for; one without a name outside of calls."""
    return _current.get()
