"""The interceptor of all calls: request ids, counts by method and code, and which calls a drain waits for."""

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from polywand_server.caller import begin
from polywand_server.errors import InvalidInputError
from polywand_server.ops import metrics
from polywand_server.rpc.endings import Ending
from polywand_server.rpc.ingress import Ingress
from polywand_server.rpc.status import REQUEST_ID_KEY, UNDECODABLE, abort

# A client's own request id, where it has one that logs can carry.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_REQUEST_ID_BYTES = 8  # of a generated one, in hexadecimal digits

_log = logging.getLogger(__name__)

# Generic for the type checker only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Calls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Gives every call its request id, counts calls by method and code, and knows when none of a service is active.

    A method that this server does not have never becomes a label.
    """

    def __init__(self, service: str, ingress: Ingress) -> None:
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
            return handler
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

    def _wrap(self, handler: Any, method: str) -> _Handler:
        """Serve a method of the contract: messages are bytes, and are read when there is room for them."""
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.unary_unary, method))
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method))

    def _unary(self, inner: Any, method: str) -> Any:
        async def call(_: object, context: _Context) -> Any:
            end = Ending()
            with metrics.REQUEST_SECONDS.labels(method).time(), _call(method, context), self._ingress.call(end):
                async with end.of(context):
                    return await inner(context)

        return call

    def _stream(self, inner: Any, method: str) -> Any:
        async def call(_: object, context: _Context) -> None:
            end, active = Ending(), metrics.ACTIVE_STREAMS.labels(method)
            with active.track_inprogress(), _call(method, context), self._ingress.call(end):
                async with end.of(context):
                    await inner(context, end)

        return call

    def _count(self, handler: Any, method: str) -> _Handler:
        """Count a method of another service, such as health; its messages are read at once."""
        if handler.response_streaming:
            return self._count_stream(handler, method)

        async def call(message: bytes, context: _Context) -> Any:
            with metrics.REQUEST_SECONDS.labels(method).time(), _call(method, context):
                try:
                    request = handler.request_deserializer(message)
                except DecodeError:
                    await abort(context, InvalidInputError("message", UNDECODABLE))
                return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _count_stream(self, handler: Any, method: str) -> _Handler:
        if handler.request_streaming:
            inner, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        else:
            inner, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler

        async def by_generator(request: Any, context: _Context) -> None:
            # Closed here: gRPC leaves the generator of a client that has gone to the garbage collector.
            with metrics.ACTIVE_STREAMS.labels(method).track_inprogress(), _call(method, context):
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        async def by_writing(request: Any, context: _Context) -> None:
            with metrics.ACTIVE_STREAMS.labels(method).track_inprogress(), _call(method, context):
                await inner(request, context)

        call = by_writing if asyncio.iscoroutinefunction(inner) else by_generator
        return make(call, handler.request_deserializer, handler.response_serializer)


@contextmanager
def _call(method: str, context: _Context) -> Iterator[None]:
    """Begin a call, which gets a request id; count it when the block ends."""
    caller = begin(context.peer(), _request_id(context))
    context.set_trailing_metadata(((REQUEST_ID_KEY, caller.request_id),))
    code = grpc.StatusCode.UNKNOWN
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
        _log.debug("%s: %s", method, code.name)


def _request_id(context: _Context) -> str:
    """Return the id that the client sent, or a new one where it sent none, or one that is too long or strange."""
    sent = next((value for key, value in context.invocation_metadata() or () if key == REQUEST_ID_KEY), "")
    if isinstance(sent, str) and _REQUEST_ID.fullmatch(sent):
        return sent
    return secrets.token_hex(_REQUEST_ID_BYTES)


def _named(code: Any) -> grpc.StatusCode:
    """Return a status code as a member; the context returns it as it was set: a member, or its number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((member for member in grpc.StatusCode if member.value[0] == code), grpc.StatusCode.UNKNOWN)
