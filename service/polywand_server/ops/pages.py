"""The pages of the HTTP ports: /livez and /readyz for orchestrators, /metrics and /metrics/triton for Prometheus."""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client import exposition as text
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from polywand_server.errors import ForbiddenError, UnauthenticatedError, UnavailableError
from polywand_server.ops.health import Health
from polywand_server.ops.triton_metrics import CONTENT_TYPE, NoMetricsError, TritonMetrics

# The most of the event loop's time that encoding metrics may take.
METRICS_SHARE = 0.1

Encode = Callable[[CollectorRegistry], bytes]
Page = Callable[[Request], Awaitable[Response]]


def probes(health: Health) -> list[Route]:
    """Return the pages for orchestrators."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        reason = health.reason
        return PlainTextResponse(f"not ready: {reason}\n" if reason else "ready\n", 503 if reason else 200)

    return [Route("/livez", livez), Route("/readyz", readyz)]


# Raises a PolywandError where a request may not have the page.
Admit = Callable[[Request], Awaitable[None]]


def metrics(triton: TritonMetrics | None, admit: Admit | None = None) -> list[Route]:
    """Return the pages for Prometheus.

    triton: the metrics of Triton; None where their URL is unknown. admit: None where everybody may have them.
    """
    pages = MetricsPages()

    async def own(request: Request) -> Response:
        page, content_type = await pages.get(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    async def of_triton(_: Request) -> Response:
        if triton is None:
            text = "the URL of Triton's metrics is not known here: name it with --triton-metrics-url\n"
            return PlainTextResponse(text, 404)
        try:
            page = await triton.get()
        except NoMetricsError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return Response(page, headers={"content-type": CONTENT_TYPE})

    return [Route("/metrics", _guarded(own, admit)), Route("/metrics/triton", _guarded(of_triton, admit))]


def _guarded(page: Page, admit: Admit | None) -> Page:
    """Return a page that is shown to those who are admitted."""
    if admit is None:
        return page

    async def guarded(request: Request) -> Response:
        try:
            await admit(request)
        except UnauthenticatedError as error:
            return PlainTextResponse(f"{error}\n", 401, {"www-authenticate": "Bearer"})
        except ForbiddenError as error:
            return PlainTextResponse(f"{error}\n", 403)
        except UnavailableError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return await page(request)

    return guarded


def make_app(routes: list[Route]) -> Starlette:
    """Make the ASGI application of these pages."""
    return Starlette(routes=routes)


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
