"""Health: one answer to "may requests come?", told over gRPC and to the HTTP port."""

from collections.abc import Callable

from grpc_health.v1 import health, health_pb2


class Health:
    """Ready while `is_ready` says so and no drain has begun.

    why_not: says why `is_ready` is false, for people.
    """

    def __init__(self, services: tuple[str, ...], is_ready: Callable[[], bool], why_not: Callable[[], str]) -> None:
        self.servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        self._services = services
        self._is_ready = is_ready
        self._why_not = why_not
        self._draining = False

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

    async def publish(self) -> None:
        """Tell those who watch over gRPC."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, serving if self.ready else not_serving)

    async def drain(self) -> None:
        """Be not ready from now on."""
        self._draining = True
        await self.publish()
