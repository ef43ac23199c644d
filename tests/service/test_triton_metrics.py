"""/metrics/triton: Triton's own metrics are passed on, whatever Triton does meanwhile."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from polywand_server.ops import triton_metrics
from polywand_server.ops.triton_metrics import NoMetricsError, TritonMetrics
from tests.interactors import DISK, add_interactor
from tests.running import Service, running_service, tritonservers, wait_for

PAGE = b"# TYPE nv_inference_count counter\nnv_inference_count 1\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
NO_TRITON = "--triton-url=127.0.0.1:9"


def response(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return head + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@asynccontextmanager
async def serving(*parts: bytes, tls: ssl.SSLContext | None = None, stalls: bool = False) -> AsyncIterator[str]:
    """An HTTP server that sends these parts; its URL. stalls: it does not end then."""
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
        if stalls:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://localhost:{server.sockets[0].getsockname()[1]}/metrics"
    finally:
        over.set()
        server.close()


async def test_a_page_of_any_framing_is_passed_on() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE)
    for sent in (response(PAGE), chunked, b"HTTP/1.0 200 OK\r\n\r\n" + PAGE):
        async with serving(sent) as url:
            assert await TritonMetrics(url).get() == PAGE


async def test_over_tls_the_certificate_is_checked() -> None:
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(theirs)
    authority.configure_trust(ours)
    async with serving(response(PAGE), tls=theirs) as url:
        assert await TritonMetrics(url, ours).get() == PAGE
        with pytest.raises(NoMetricsError, match="CERTIFICATE_VERIFY_FAILED"):
            await TritonMetrics(url).get()


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (response(b"", b"HTTP/1.1 404 Not Found"), "status 404"),
        (response(b"", b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/"), "status 302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", "cannot be read"),
        (b"", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000, "cannot be read"),
    ],
)
async def test_what_is_no_page_of_metrics_is_told(sent: bytes, sentence: str) -> None:
    async with serving(sent) as url:
        with pytest.raises(NoMetricsError, match=sentence):
            await TritonMetrics(url).get()


async def test_a_page_has_a_largest_size_and_a_longest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_metrics, "FETCH_SECONDS", 0.3)
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 1_000_000] * 20) as url:
        with pytest.raises(NoMetricsError, match="more than 16 MiB"):
            await TritonMetrics(url).get()
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n" + PAGE, stalls=True) as url:
        with pytest.raises(NoMetricsError, match="within"):
            await TritonMetrics(url).get()


async def test_requests_share_what_is_fetched_and_one_that_leaves_disturbs_no_other() -> None:
    connections, go_on = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        writer.write(response(PAGE))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        metrics = TritonMetrics(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        requests = [asyncio.create_task(metrics.get()) for _ in range(10)]
        await asyncio.sleep(0)
        requests.pop(0).cancel()
        go_on.set()
        assert await asyncio.gather(*requests) == [PAGE] * 9
        assert connections == 1
        assert await metrics.get() == PAGE  # a later one is fetched anew
        assert connections == 2


def test_the_embedded_tritons_metrics_are_passed_on_without_a_port_of_their_own(puppets: Service) -> None:
    status, page = puppets.get("/metrics/triton")
    assert status == 200
    assert 'nv_inference_request_success{model="finder"' in page
    (triton,) = tritonservers(puppets)
    assert [connection for connection in triton.net_connections("inet") if connection.status == "LISTEN"] == []


def test_while_triton_is_away_a_sentence_says_so(tmp_path: Path) -> None:
    models = tmp_path / "models"
    add_interactor(models, "disk", DISK)
    with running_service(tmp_path / "log", f"--model-repository={models}") as service:
        service.wait_ready("disk")
        assert service.get("/metrics/triton")[0] == 200
        tritonservers(service)[0].send_signal(signal.SIGSTOP)  # it hangs
        assert service.get("/metrics/triton") == (503, "Triton's metrics did not come within 5 s\n")
        tritonservers(service)[0].kill()
        wait_for(lambda: "cannot be read" in service.get("/metrics/triton")[1], 30, service)
        wait_for(lambda: service.get("/metrics/triton")[0] == 200, 60, service)  # it is back, at the same address
        assert "NODELAY" not in service.log.read_text()


def test_without_their_url_a_sentence_names_the_option(tmp_path: Path) -> None:
    with running_service(tmp_path / "log", NO_TRITON) as service:
        status, text = service.get("/metrics/triton")
        assert (status, "--triton-metrics-url" in text) == (404, True)


async def test_an_external_tritons_metrics_are_fetched_from_their_url(tmp_path: Path) -> None:
    async with serving(response(PAGE)) as url:
        with running_service(tmp_path / "log", NO_TRITON, f"--triton-metrics-url={url}") as service:
            assert await asyncio.to_thread(service.get, "/metrics/triton") == (200, PAGE.decode())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--triton-metrics-url=http://x:8002/metrics"], "needs --triton-url"),
        ([NO_TRITON, "--triton-metrics-url=x:8002/metrics"], "is not a URL"),
        ([NO_TRITON, "--triton-metrics-url=http://x:no/"], "--triton-metrics-url"),
        ([NO_TRITON, "--triton-metrics-url=ftp://x/"], "is not a URL"),
        ([NO_TRITON, "--triton-metrics-url=http://me:secret@x/"], "has a user"),
        (
            [NO_TRITON, "--triton-metrics-url=https://x/", "--triton-tls-ca=pyproject.toml"],
            "files of --triton-tls-ca, -cert and -key cannot be used",
        ),
    ],
)
def test_a_wrong_url_is_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    with pytest.raises(AssertionError) as caught, running_service(tmp_path / "log", *options):
        pass
    assert sentence in str(caught.value)
    assert "Traceback" not in str(caught.value)
