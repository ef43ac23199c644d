"""Triton's own metrics, which /metrics/triton passes on."""

import asyncio
import ssl
from urllib.parse import SplitResult, urlsplit

import h11

# Of one page; Triton's has about 5 kB for each version of a model.
MAX_PAGE_BYTES = 16 * 1024 * 1024
FETCH_SECONDS = 5.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNIX = "unix:"

_CHUNK_BYTES = 64 * 1024
_PORTS = {"http": 80, "https": 443}


class NoMetricsError(Exception):
    """Triton's metrics cannot be had now; the text says why."""


def check_url(url: str) -> SplitResult:
    """Parse the URL of a Triton's metrics. Raises ValueError: it is none."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.port == 0:
        raise ValueError(f"'{url}' is not a URL such as http://triton:8002/metrics")
    if parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("it has a user, a space or a character that the URL of metrics cannot have")
    return parts


class TritonMetrics:
    """Fetches the metrics of one Triton, once at a time; requests that come meanwhile share what is fetched.

    url: http:// or https://, or unix: and the path of a socket. tls: for https; None for the system's certificates.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._tls = tls
        self._fetching: asyncio.Task[bytes] | None = None

    async def get(self) -> bytes:
        """Return the page, in Prometheus's text format.

        Raises:
            NoMetricsError
        """
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch(), name="fetch Triton's metrics")
            self._fetching.add_done_callback(self._end)
        return await asyncio.shield(self._fetching)

    def _end(self, fetched: asyncio.Task[bytes]) -> None:
        self._fetching = None
        if not fetched.cancelled():
            fetched.exception()  # retrieved, also where the requests have gone

    async def _fetch(self) -> bytes:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._exchange()
        except TimeoutError:
            raise NoMetricsError(f"Triton's metrics did not come within {FETCH_SECONDS:g} s") from None
        except (OSError, h11.ProtocolError) as error:
            raise NoMetricsError(f"Triton's metrics cannot be read: {error}") from error

    async def _exchange(self) -> bytes:
        """Connect, send one request, and read its response."""
        if self._url.startswith(UNIX):
            host, target = "triton", "/metrics"
            reader, writer = await asyncio.open_unix_connection(self._url.removeprefix(UNIX))
        else:
            parts = check_url(self._url)
            host, target = parts.netloc, (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
            tls = (self._tls or ssl.create_default_context()) if parts.scheme == "https" else None
            port = parts.port or _PORTS[parts.scheme]
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls)
        try:
            http = h11.Connection(h11.CLIENT)
            headers = [("host", host), ("accept", "text/plain"), ("connection", "close")]
            sent = http.send(h11.Request(method="GET", target=target, headers=headers))
            writer.write((sent or b"") + (http.send(h11.EndOfMessage()) or b""))
            return await _body(http, reader)
        finally:
            writer.transport.abort()


async def _body(http: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    """Read a response; return its body."""
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_CHUNK_BYTES))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise NoMetricsError(f"Triton answers its metrics with status {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_PAGE_BYTES:
                raise NoMetricsError(f"Triton's metrics have more than {MAX_PAGE_BYTES >> 20} MiB")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
