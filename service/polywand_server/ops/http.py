"""A server of HTTP/1.1, with TLS or without, in the service's event loop."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from polywand_server.ops.certificates import names_of

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
STOP_SECONDS = 2

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """A connection with deadlines for receiving a request's header and for sending its response.

    waiting: all connections that wait for a header, longest wait first. The request's state has the names in the
    client's certificate, as `certificate_names`.
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
        encrypted = transport.get_extra_info("ssl_object")
        certificate = encrypted.getpeercert(binary_form=True) if encrypted is not None else None
        self.app_state = {"certificate_names": names_of(certificate) if certificate else ()}
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
    silent connections cannot block probes. When all are being answered, the new one is closed. A connection counts
    from when it is accepted, and has HEADER_SECONDS for its TLS handshake.

    tls: returns the TLS context of a new connection; None for none.
    """

    def __init__(
        self,
        app: Starlette,
        max_connections: int = MAX_CONNECTIONS,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
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
        self._tls = tls
        self._handshakes: dict[asyncio.Task[None], None] = {}
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
            for task in (self._accepting, *self._handshakes):
                task.cancel()
            await asyncio.wait([self._accepting, *self._handshakes])
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
            is_full = len(self.server_state.connections) + len(self._handshakes) >= self._max_connections
            if is_full and not self._close_longest_waiting():
                accepted.close()
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(0)  # the connection that was closed is now removed
            await self._begin(accepted)

    async def _begin(self, accepted: socket.socket) -> None:
        """Begin a connection; nobody waits for its TLS handshake."""
        context = self._tls()
        if context is None:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, accepted)
            return
        task = asyncio.create_task(self._shake_hands(accepted, context), name="TLS handshake")
        self._handshakes[task] = None
        task.add_done_callback(self._end_handshake)

    def _end_handshake(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _shake_hands(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connection, accepted, ssl=context, ssl_handshake_timeout=HEADER_SECONDS
            )
        except OSError as error:  # of TLS too
            log.debug("a TLS handshake failed: %s", error)

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, self._waiting)

    def _close_longest_waiting(self) -> bool:
        """Close the connection that has waited longest for a handshake or a header; return whether there was one."""
        handshake = next(iter(self._handshakes), None)
        if handshake is not None:
            del self._handshakes[handshake]
            handshake.cancel()
            return True
        longest = next(iter(self._waiting), None)
        if longest is None:
            return False
        del self._waiting[longest]
        longest.transport.abort()
        return True
