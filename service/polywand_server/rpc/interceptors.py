"""Interceptors: what every call gets without asking for it: counts, durations, open streams by method and code."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio

from polywand_server import metrics

# Generic for the type checker only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CallMetrics(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Counts calls by method and code. Methods that this server does not have never become labels."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wrap the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method.removeprefix("/")
        if handler.response_streaming:
            return _wrap_stream(handler, method)
        return _wrap_unary(handler, method)


def _wrap_unary(handler: Any, method: str) -> _Handler:
    async def call(request: Any, context: _Context) -> Any:
        begin = time.perf_counter()
        with _counted(method, context):
            response = await handler.unary_unary(request, context)
        metrics.REQUEST_SECONDS.labels(method).observe(time.perf_counter() - begin)
        return response

    return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _wrap_stream(handler: Any, method: str) -> _Handler:
    inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
    make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler

    async def by_generator(request: Any, context: _Context) -> AsyncIterator[Any]:
        with metrics.ACTIVE_STREAMS.labels(method).track_inprogress(), _counted(method, context):
            async for response in inner(request, context):
                yield response

    async def by_writing(request: Any, context: _Context) -> None:
        with metrics.ACTIVE_STREAMS.labels(method).track_inprogress(), _counted(method, context):
            await inner(request, context)

    call = by_writing if asyncio.iscoroutinefunction(inner) else by_generator
    return make(call, handler.request_deserializer, handler.response_serializer)


@contextmanager
def _counted(method: str, context: _Context) -> Iterator[None]:
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


def _named(code: Any) -> grpc.StatusCode:
    """The context gives the code as it was set: a member, or its number."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((member for member in grpc.StatusCode if member.value[0] == code), grpc.StatusCode.UNKNOWN)
