"""Health: one answer to "may requests come?", told over gRPC and to the HTTP port."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Generic for the type checker only.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Response: TypeAlias = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Ready while `is_ready` says so and no drain has begun; it is also what gRPC's health service answers.

    grpcio-health-checking has a servicer too, whose watchers share one condition: the first that leaves takes it along,
    and one that does not read holds it. Here each watcher has an event of its own.

    services: that are asked for by name. why_not: says why `is_ready` is false, for people.
    """

    def __init__(self, services: tuple[str, ...], is_ready: Callable[[], bool], why_not: Callable[[], str]) -> None:
        self._services = services
        self._is_ready = is_ready
        self._why_not = why_not
        self._draining = False
        self._watchers: set[asyncio.Event] = set()

    @property
    def ready(self) -> bool:
        """Whether requests may come."""
        return not self._draining and self._is_ready()

    @property
    def reason(self) -> str:
        """Why requests may not come; empty when they may."""
        if self._draining:
            return "draining"
        return "" if self._is_ready() else self._why_not()

    def publish(self) -> None:
        """Tell those who watch over gRPC."""
        for changed in self._watchers:
            changed.set()

    def drain(self) -> None:
        """Be not ready from now on."""
        self._draining = True
        self.publish()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Response:  # noqa: N802 - gRPC's
        """Answer once."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Response(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:  # noqa: N802 - gRPC's
        """Answer now and after every change, until the client goes; one that reads late gets the newest alone."""
        changed, last = asyncio.Event(), None
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != last:
                    await context.write(_Response(status=status))
                    last = status
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> Any:  # a value of the enumeration, which has no types
        if service not in self._services:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self.ready else _Response.NOT_SERVING
