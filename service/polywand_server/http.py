"""The HTTP port: /metrics for Prometheus, /livez and /readyz for who schedules the process."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from polywand_server.health import Health


def make_app(health: Health) -> Starlette:
    """Make the ASGI application."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        reason = health.reason
        return PlainTextResponse(f"not ready: {reason}\n" if reason else "ready\n", 503 if reason else 200)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": content_type})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


class HttpServer(uvicorn.Server):
    """Uvicorn inside our event loop; signals belong to the service, which stops it."""

    def __init__(self, health: Health) -> None:
        super().__init__(uvicorn.Config(make_app(health), log_config=None, access_log=False, lifespan="off"))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve on a bound socket until `should_exit` is set."""
        await self.serve(sockets=[listener])
