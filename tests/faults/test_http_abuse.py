"""Clients of the HTTP port that send nothing, too much, too often, or do not read: probes are answered all the same."""

import asyncio
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import GaugeMetricFamily

from polywand_server.ops import descriptors, http, pages
from polywand_server.ops.health import Health
from tests.running import Service, running_service, until, wait_for

HALF_A_HEADER = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
REQUEST = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
# The second response waits until the client takes the first one.
LARGE_THEN_SMALL = REQUEST % b"/metrics" + REQUEST % b"/livez"
FEW_LINES = 10


@contextmanager
def without_triton(log: Path) -> Iterator[Service]:
    """A service without Triton: it is up at once, and its HTTP port is the same."""
    with running_service(log, "--triton-url=127.0.0.1:9") as running:
        wait_for(lambda: running.get("/readyz")[0] == 503, 30, running)
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that tests leave as it was."""
    with without_triton(tmp_path_factory.mktemp("http") / "log") as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own, which it limits or ends."""
    with without_triton(tmp_path / "log") as running:
        yield running


def connect(service: Service, stack: ExitStack) -> socket.socket:
    host, _, port = service.http.removeprefix("http://").rpartition(":")
    return stack.enter_context(socket.create_connection((host, int(port)), timeout=60))


@pytest.fixture
def large_page() -> Iterator[None]:
    """Metrics of 20 MB: more than the kernel takes for a client that does not read."""
    REGISTRY.register(large := Large())
    yield
    REGISTRY.unregister(large)


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def read_until(end: bytes, connection: socket.socket) -> None:
    read = b""
    while end not in read:
        read += connection.recv(10_000)


def lines(service: Service) -> int:
    return service.log.read_text().count("\n")


def test_a_probe_is_answered_however_many_silent_connections_there_are(service):
    with ExitStack() as stack:
        silent = [connect(service, stack) for _ in range(http.MAX_CONNECTIONS + 30)]
        assert service.get("/livez") == (200, "alive\n")
        still_open = [is_open(connection) for connection in silent]
        assert sum(still_open) < http.MAX_CONNECTIONS
        assert still_open == sorted(still_open)  # the oldest went


def test_without_free_descriptors_a_probe_is_answered_and_little_is_logged(own_service):
    used = len(list(Path(f"/proc/{own_service.process.pid}/fd").iterdir()))
    resource.prlimit(own_service.process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
    before = lines(own_service)
    with ExitStack() as stack:
        silent = [connect(own_service, stack) for _ in range(30)]
        for _ in range(20):
            assert own_service.get("/livez") == (200, "alive\n")
        assert sum(map(is_open, silent)) < 10
    assert lines(own_service) - before < FEW_LINES


def test_too_large_and_wrong_headers_end_the_connection_and_little_is_logged(service):
    before = lines(service)
    for nonsense in (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 2 * http.MAX_HEADER_BYTES, b"\0\r\n\r\n"):
        for _ in range(30):
            with ExitStack() as stack:
                connection = connect(service, stack)
                connection.sendall(nonsense)
                assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert lines(service) - before < FEW_LINES


def test_a_response_does_not_tell_what_serves_it_nor_let_a_browser_guess_its_type(service):
    with ExitStack() as stack:
        connection = connect(service, stack)
        connection.sendall(REQUEST % b"/metrics")
        head = connection.recv(2000).lower()
        assert b"x-content-type-options: nosniff" in head
        assert b"\r\nserver:" not in head


def test_a_client_that_does_not_read_does_not_keep_the_service_from_its_end(own_service):
    with ExitStack() as stack:
        connection = connect(own_service, stack)
        connection.setblocking(False)
        sent = connection.send(REQUEST % b"/metrics" * 1000)
        assert sent
        own_service.get("/livez")  # it has begun to answer
        own_service.process.send_signal(signal.SIGTERM)
        assert own_service.process.wait(60) == 0


@asynccontextmanager
async def serving(health: Health) -> AsyncIterator[tuple[http.HttpServer, int]]:
    """The HTTP port alone, in this process."""
    server = http.HttpServer(pages.make_app([*pages.probes(health), *pages.metrics(None)]))
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve_on(listener))
    await until(lambda: server.started)
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


def healthy() -> Health:
    return Health((), lambda: True, lambda: "")


class Counting:
    """A collector that counts how often the metrics are encoded."""

    count = 0

    def collect(self) -> list[GaugeMetricFamily]:
        self.count += 1
        return []


class Large:
    """A collector of one metric with a long description."""

    def collect(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily("test_http_abuse_large", "x" * 20_000_000)]


async def fetch(port: int, path: bytes, times: int = 1) -> list[str]:
    """GET over one connection; returns the bodies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    bodies = []
    for _ in range(times):
        writer.write(REQUEST % path)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
        bodies.append((await reader.readexactly(int(length.split()[1]))).decode())
    writer.close()
    return bodies


async def test_requests_share_encodings_of_the_metrics_and_none_is_older_than_its_request():
    counting, gauge = Counting(), Gauge("test_http_abuse", "Of this test.")
    REGISTRY.register(counting)
    try:
        async with serving(healthy()) as (_, port):
            for value in range(5):
                gauge.set(value)
                (page,) = await fetch(port, b"/metrics")
                assert f"test_http_abuse {value}.0" in page
            before = counting.count
            pages = await asyncio.gather(*(fetch(port, b"/metrics", times=10) for _ in range(20)))
            assert sum(map(len, pages)) == 200
            assert counting.count - before <= 100
    finally:
        REGISTRY.unregister(counting)
        REGISTRY.unregister(gauge)


async def test_connections_without_a_whole_header_are_closed(monkeypatch: pytest.MonkeyPatch):
    """One that is silent, one that sends its header slowly, and one that was answered once."""
    monkeypatch.setattr(http, "HEADER_SECONDS", 1.0)
    async with serving(healthy()) as (_, port):
        with ExitStack() as stack:
            silent, slow, asked_once = (
                stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)
            )
            asked_once.sendall(REQUEST % b"/livez")
            await asyncio.to_thread(read_until, b"alive\n", asked_once)
            for connection in (asked_once, slow):
                connection.sendall(HALF_A_HEADER)

            def all_are_closed() -> bool:
                if is_open(slow):
                    slow.send(b"X-a: b\r\n")
                return not any(map(is_open, (silent, slow, asked_once)))

            await until(all_are_closed)


@pytest.mark.usefixtures("large_page")
async def test_a_client_that_does_not_take_its_response_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "RESPONSE_SECONDS", 0.5)
    async with serving(healthy()) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(LARGE_THEN_SMALL)
            await until(lambda: server.server_state.connections)
            await until(lambda: not server.server_state.connections)


@pytest.mark.usefixtures("large_page")
async def test_a_connection_is_closed_at_once_where_all_others_are_being_answered():
    async with serving(healthy()) as (server, port):
        server._max_connections = 2
        with ExitStack() as stack:
            for _ in range(2):
                busy = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                busy.sendall(LARGE_THEN_SMALL)
            await until(lambda: len(server.server_state.connections) == 2)
            await until(lambda: all(connection.flow.write_paused for connection in server.server_state.connections))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()


@pytest.mark.parametrize(("limit", "grpc", "http_connections"), [(65_536, 65_408, 64), (256, 128, 64), (64, 16, 16)])
def test_connections_share_what_descriptors_there_are(limit, grpc, http_connections):
    assert descriptors.connection_limits(limit) == descriptors.ConnectionLimits(grpc, http_connections)


@pytest.mark.parametrize(("soft", "hard", "raised"), [(100, 300, 300), (300, 300, 300), (2000, 2000, 2000)])
def test_the_soft_limit_of_descriptors_becomes_the_hard_one_and_a_low_one_is_told_in_a_line(soft, hard, raised):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "import logging; logging.basicConfig(level='INFO')\n"
        "from polywand_server.ops.descriptors import connection_limits, raise_limit\n"
        "limit = raise_limit()\nconnection_limits(limit)\n"
        "print(limit, resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{raised} ({raised}, {hard})\n"
    assert done.stderr.count("\n") == (raised < descriptors.LOW_DESCRIPTORS)
