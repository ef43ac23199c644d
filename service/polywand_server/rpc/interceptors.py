"""The interceptor of all calls: request ids, principals, quotas, counts, the audit, and which a drain waits for."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from polywand_server.admission.quotas import Accounts
from polywand_server.auth.authenticator import Authenticator, require
from polywand_server.caller import begin, current, identify
from polywand_server.errors import MethodNotFoundError, PolywandError, QuotaError
from polywand_server.ops import metrics, tracing
from polywand_server.ops.audit import AuditLog
from polywand_server.principal import Role
from polywand_server.rpc.endings import Ending
from polywand_server.rpc.ingress import Ingress
from polywand_server.rpc.status import REQUEST_ID_KEY, TRACEPARENT_KEY, abort, trailers, undecodable

# A client's own request id, where it has one that logs can carry.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_REQUEST_ID_BYTES = 8  # of a generated one, in hexadecimal digits
# W3C Trace Context, version 00: the ids of the trace and of the client's span, not zero, and flags.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_log = logging.getLogger(__name__)
_refused = logging.getLogger("polywand_server.refused")

# Generic for the type checker only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Calls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Gives every call its request id, counts calls by method and code, and knows when none of a service is active.

    A method that this server does not have never becomes a label. audit: gets a line of every call; None for none.
    """

    def __init__(
        self,
        service: str,
        ingress: Ingress,
        authenticator: Authenticator,
        accounts: Accounts,
        audit: AuditLog | None,
    ) -> None:
        self._accounts = accounts
        self._audit = audit
        self._authenticator = authenticator
        self._ingress = ingress
        self._prefix = f"{service}/"
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call of the service is active."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wrap the method's handler."""
        method = handler_call_details.method.removeprefix("/")
        if method.startswith(self._prefix):
            self._enter()
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._refuse(method))
        return self._wrap(handler, method) if method.startswith(self._prefix) else self._count(handler, method)

    def _enter(self) -> None:
        """Count this call as active until its task ends: from before its message arrives until its reply is sent."""
        task = asyncio.current_task()
        assert task is not None  # gRPC runs each call in a task
        self._active += 1
        self._idle.clear()
        task.add_done_callback(self._leave)

    def _leave(self, _: object) -> None:
        self._active -= 1
        if not self._active:
            self._idle.set()

    @asynccontextmanager
    async def _admitted(self, context: _Context, *, is_stream: bool) -> AsyncIterator[None]:
        """Note the principal of a call, and count the call for its quotas until the block ends.

        Or end the call, before a message of it is read.
        """
        sent = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
        try:
            principal = await self._authenticator.authenticate(sent, _certificate_names(context))
            identify(principal)
            require(principal, Role.ANNOTATE)
        except PolywandError as error:
            metrics.REFUSED_CALLS.labels(error.reason.name).inc()
            _refused.warning("refused a call of %s: %s", context.peer(), error)
            await abort(context, error)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._accounts.call(is_stream=is_stream))
            except QuotaError as error:
                await abort(context, error)
            yield

    def _wrap(self, handler: Any, method: str) -> _Handler:
        """Serve a method of the contract: messages are bytes, and are read when there is room for them."""
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.unary_unary, method))
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method))

    def _unary(self, inner: Any, method: str) -> Any:
        async def call(_: object, context: _Context) -> Any:
            end = Ending()
            with metrics.REQUEST_SECONDS.labels(method).time(), self._call(method, context, is_stream=False):
                async with self._admitted(context, is_stream=False):
                    with self._ingress.call(end):
                        async with end.of(context):
                            return await inner(context)

        return call

    def _stream(self, inner: Any, method: str) -> Any:
        async def call(_: object, context: _Context) -> None:
            end, active = Ending(), metrics.ACTIVE_STREAMS.labels(method)
            with active.track_inprogress(), self._call(method, context, is_stream=True):
                async with self._admitted(context, is_stream=True):
                    with self._ingress.call(end):
                        async with end.of(context):
                            await inner(context, end)

        return call

    def _count(self, handler: Any, method: str) -> _Handler:
        """Count a method of another service, such as health; its messages are read at once."""
        if handler.request_streaming:
            return self._count_stream(handler, method)
        if handler.response_streaming:
            return self._count_watch(handler, method)

        async def call(message: bytes, context: _Context) -> Any:
            with metrics.REQUEST_SECONDS.labels(method).time(), self._call(method, context, is_stream=False):
                try:
                    return await handler.unary_unary(await _parsed(handler, message, context), context)
                except PolywandError as error:
                    await abort(context, error)

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _count_stream(self, handler: Any, method: str) -> _Handler:
        async def call(requests: Any, context: _Context) -> None:
            # Closed here: gRPC leaves the generator of a client that has gone to the garbage collector.
            active = metrics.ACTIVE_STREAMS.labels(method)
            with active.track_inprogress(), self._call(method, context, is_stream=True):
                async with (
                    self._admitted(context, is_stream=True),
                    aclosing(handler.stream_stream(requests, context)) as responses,
                ):
                    async for response in responses:
                        await context.write(response)

        return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _count_watch(self, handler: Any, method: str) -> _Handler:
        async def call(message: bytes, context: _Context) -> None:
            active = metrics.ACTIVE_STREAMS.labels(method)
            with active.track_inprogress(), self._call(method, context, is_stream=True):
                await handler.unary_stream(await _parsed(handler, message, context), context)

        return grpc.unary_stream_rpc_method_handler(call, None, handler.response_serializer)

    def _refuse(self, method: str) -> Any:
        """Answer a call of a method that this server does not have."""

        async def call(_: object, context: _Context) -> None:
            began = time.perf_counter()
            _begin(context)
            try:
                text = "this server has no such method: is it of another service or version?"
                await abort(context, MethodNotFoundError(text))
            finally:
                self._note(method, grpc.StatusCode.UNIMPLEMENTED, began)

        return call

    @contextmanager
    def _call(self, method: str, context: _Context, *, is_stream: bool) -> Iterator[None]:
        """Begin a call; count, trace and note it when the block ends."""
        began = time.perf_counter()
        _begin(context)
        code = grpc.StatusCode.UNKNOWN
        with tracing.call(method, is_stream=is_stream) as traced:
            try:
                yield
                code = grpc.StatusCode.OK
            except (asyncio.CancelledError, GeneratorExit):
                code = grpc.StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError:
                code = _named(context.code())
                raise
            finally:
                metrics.REQUESTS.labels(method, code.name).inc()
                if traced is not None:
                    traced.end(code.name, current().request_id)
                self._note(method, code, began)
                _log.debug("%s: %s", method, code.name)

    def _note(self, method: str, code: grpc.StatusCode, began: float) -> None:
        if self._audit is not None:
            self._audit.call(current(), method, code.name, time.perf_counter() - began)


def _certificate_names(context: _Context) -> list[str]:
    """Return the names in the client's verified certificate."""
    known = context.auth_context()
    keys = ("x509_common_name", "x509_subject_alternative_name")
    return [name.decode(errors="replace") for key in keys for name in known.get(key, ())]


async def _parsed(handler: Any, message: bytes, context: _Context) -> Any:
    """Parse the message of a call, or end the call."""
    current().usage.received_bytes += len(message)
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        await abort(context, undecodable())


def _begin(context: _Context) -> None:
    """Begin a call, which gets a request id, and keeps the client's trace."""
    request_id = _sent(context, REQUEST_ID_KEY, _REQUEST_ID) or secrets.token_hex(_REQUEST_ID_BYTES)
    caller = begin(context.peer(), request_id, _sent(context, TRACEPARENT_KEY, _TRACEPARENT))
    context.set_trailing_metadata(trailers(caller))


def _sent(context: _Context, key: str, pattern: re.Pattern[str]) -> str:
    """Return the value that the client sent under a key; empty where it sent none, several, or another kind of text."""
    sent = [value for name, value in context.invocation_metadata() or () if name == key]
    is_right = len(sent) == 1 and isinstance(sent[0], str) and pattern.fullmatch(sent[0])
    return str(sent[0]) if is_right else ""


def _named(code: Any) -> grpc.StatusCode:
    """Return a status code as a member; the context returns it as it was set: a member, or its number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((member for member in grpc.StatusCode if member.value[0] == code), grpc.StatusCode.UNKNOWN)
