"""The HTTP port: /metrics and /metrics/triton for Prometheus, /livez and /readyz for orchestrators."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client import exposition as text
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from polywand_server.ops.health import Health
from polywand_server.ops.triton_metrics import CONTENT_TYPE, NoMetricsError, TritonMetrics

MAX_CONNECTIONS = 64
MAX_HEADER_BYTES = 16 * 1024
# Time to receive a whole header: from when the connection is accepted, or the response before it has ended.
HEADER_SECONDS = 10.0
# Time from the end of the header until the client has received the response.
RESPONSE_SECONDS = 30.0
# Connections that wait in the kernel until they are accepted.
BACKLOG = 64
# Pause after an accept that failed.
ACCEPT_PAUSE_SECONDS = 0.1
# The most of the event loop's time that encoding metrics may take.
METRICS_SHARE = 0.1
STOP_SECONDS = 2

log = logging.getLogger(__name__)

Encode = Callable[[CollectorRegistry], bytes]


def make_app(health: Health, triton: TritonMetrics | None) -> Starlette:
    """Make the ASGI application. triton: the metrics of Triton; None where their URL is unknown."""
    pages = MetricsPages()

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        reason = health.reason
        return PlainTextResponse(f"not ready: {reason}\n" if reason else "ready\n", 503 if reason else 200)

    async def metrics(request: Request) -> Response:
        page, content_type = await pages.get(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    async def triton_metrics(_: Request) -> Response:
        if triton is None:
            text = "the URL of Triton's metrics is not known here: name it with --triton-metrics-url\n"
            return PlainTextResponse(text, 404)
        try:
            page = await triton.get()
        except NoMetricsError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return Response(page, headers={"content-type": CONTENT_TYPE})

    pages_by_path = {"/livez": livez, "/readyz": readyz, "/metrics": metrics, "/metrics/triton": triton_metrics}
    return Starlette(routes=[Route(path, page) for path, page in pages_by_path.items()])


class MetricsPages:
    """The metrics as text, encoded after each request has arrived.

    Requests that wait share one encoding. Between encodings is a pause, so that they take METRICS_SHARE of the time.
    """

    def __init__(self) -> None:
        self._next: dict[str, asyncio.Task[bytes]] = {}
        self._turn = asyncio.Lock()
        self._not_before = 0.0

    async def get(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type. accept: the request's header."""
        encode: Encode = generate_latest
        content_type = text.CONTENT_TYPE_LATEST
        if "application/openmetrics-text" in accept:
            encode, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        if content_type not in self._next:
            encoding = asyncio.create_task(self._encode(encode, content_type), name="encode metrics")
            self._next[content_type] = encoding
        return await asyncio.shield(self._next[content_type]), content_type

    async def _encode(self, encode: Encode, content_type: str) -> bytes:
        clock = asyncio.get_running_loop().time
        async with self._turn:
            await asyncio.sleep(self._not_before - clock())
            del self._next[content_type]  # later requests need a newer page
            began = clock()
            page = encode(REGISTRY)
            self._not_before = clock() + (clock() - began) * (1 / METRICS_SHARE - 1)
            return page


class Connection(H11Protocol):
    """A connection with deadlines for receiving a request's header and for sending its response.

    waiting: all connections that wait for a header, longest wait first.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: Any,
        app_state: dict[str, Any],
        waiting: "dict[Connection, None]",
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the deadline of the first header."""
        super().connection_made(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; a complete header starts the deadline of the response."""
        was_answering = self._is_answering
        super().data_received(data)
        if self._is_answering and not was_answering:
            self._set_deadline()

    def on_response_complete(self) -> None:
        """Start the deadline of the next header."""
        super().on_response_complete()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        super().connection_lost(exc)
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _set_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._waiting.pop(self, None)
        if not self._is_answering:
            self._waiting[self] = None
        seconds = RESPONSE_SECONDS if self._is_answering else HEADER_SECONDS
        # Not close(), which would wait until the client has received everything.
        self._deadline = self.loop.call_later(seconds, self.transport.abort)


class HttpServer(uvicorn.Server):
    """Uvicorn in the service's event loop; the service handles signals, and stops it.

    max_connections: at this limit, a new connection replaces the one that has waited longest for a header, so that
    silent connections cannot block probes. When all are being answered, the new one is closed.
    """

    def __init__(
        self, health: Health, triton: TritonMetrics | None = None, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(health, triton),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                headers=[("x-content-type-options", "nosniff")],
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._max_connections = max_connections
        self._waiting: dict[Connection, None] = {}
        self._accepting: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: uvicorn must not install signal handlers."""
        yield

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve on a bound socket until `should_exit` is set."""
        await self.serve(sockets=[listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections; uvicorn itself would accept any number."""
        assert sockets is not None
        await self.lifespan.startup()
        self.servers = []
        self._accepting = asyncio.create_task(self._accept(sockets[0]), name="accept HTTP connections")
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop. Raises the error that ended accepting, if any."""
        if self._accepting is not None and self._accepting.done():
            self._accepting.result()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and close all connections."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except ConnectionError:  # the client has left already
                await asyncio.sleep(0)
                continue
            except OSError as error:  # usually: no free descriptor
                log.warning("cannot accept an HTTP connection: %s", error.strerror)
                await asyncio.sleep(0 if self._close_longest_waiting() else ACCEPT_PAUSE_SECONDS)
                continue
            is_full = len(self.server_state.connections) >= self._max_connections
            if is_full and not self._close_longest_waiting():
                accepted.close()
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(0)  # the connection that was closed is now removed
            await loop.connect_accepted_socket(self._connection, accepted)

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._waiting)

    def _close_longest_waiting(self) -> bool:
        """Close the connection that has waited longest for a header; return whether there was one."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.transport.abort()
        return True
