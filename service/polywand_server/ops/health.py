"""Readiness, published over gRPC and HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polywand_server.errors import NotFoundError, Reason

# Generic for the type checker only.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Response: TypeAlias = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """The service's readiness, and gRPC's health service. Ready: `is_ready` returns True, and no drain has begun.

    services: the names that clients may ask for. not_ready_reason: returns, in words, why `is_ready` returns False.

    The servicer of grpcio-health-checking is not used: its watchers share one condition, so a watcher that does not
    read, or that leaves, stops the others. Here each watcher has its own event.
    """

    def __init__(
        self, services: tuple[str, ...], is_ready: Callable[[], bool], not_ready_reason: Callable[[], str]
    ) -> None:
        self._services = services
        self._is_ready = is_ready
        self._not_ready_reason = not_ready_reason
        self._draining = False
        self._watchers: set[asyncio.Event] = set()

    @property
    def ready(self) -> bool:
        """Whether requests would be served."""
        return not self._draining and self._is_ready()

    @property
    def is_draining(self) -> bool:
        """Whether the service is about to stop."""
        return self._draining

    @property
    def reason(self) -> str:
        """Why the service is not ready; empty when it is."""
        if self._draining:
            return "draining"
        return "" if self._is_ready() else self._not_ready_reason()

    def publish(self) -> None:
        """Notify all watchers that readiness may have changed."""
        for changed in self._watchers:
            changed.set()

    def drain(self) -> None:
        """Report not ready from now on."""
        self._draining = True
        self.publish()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> _Response:  # noqa: N802 - gRPC's
        """Return the status of a service.

        Raises:
            NotFoundError
        """
        if request.service not in self._services:
            names = ", ".join(f"'{name}'" for name in self._services)
            text = f"there is no such service; there are: {names}"
            raise NotFoundError("service", text, resource=request.service, reason=Reason.SERVICE_NOT_FOUND)
        return _Response(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:  # noqa: N802 - gRPC's
        """Write the status now and after every change, until the client leaves; a slow reader gets the newest only."""
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

    def _status(self, service: str) -> Any:  # a member of an enum without types
        if service not in self._services:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self.ready else _Response.NOT_SERVING
