"""Where Triton is: a server elsewhere, or our own, which is started."""

import secrets
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from polywand_server.config import Settings
from polywand_server.ops import metrics
from polywand_server.ops.triton_metrics import TritonMetrics
from polywand_server.triton.embedded.server import EmbeddedTriton, EmbeddedTritonError

# For requests that Triton still has when the service ends.
GRACE_SECONDS = 1.0

EndProcesses = Callable[[str, str | None], object]


class TritonStartError(Exception):
    """Our own Triton cannot be started; the text says what to do."""


def no_op(model: str, process: str | None) -> None:
    """End no process: those of a Triton elsewhere cannot be reached."""


@dataclass(frozen=True, slots=True)
class TritonLocation:
    """A running Triton.

    memory_prefix: of the names of the memory that is shared with it. end_model_processes: kills processes of its Python
    models. metrics: its own; None where their URL is unknown. supervised: waits until the supervision of our own Triton
    fails; None for a Triton elsewhere.
    """

    url: str
    memory_prefix: str
    end_model_processes: EndProcesses = no_op
    metrics: TritonMetrics | None = None
    supervised: Callable[[], Coroutine[Any, Any, None]] | None = None


async def locate_triton(settings: Settings, stack: AsyncExitStack) -> TritonLocation:
    """Return the Triton that the settings name, or start our own, which the stack stops.

    Raises:
        TritonStartError
    """
    if settings.triton_url is not None:
        prefix = f"polywand-{secrets.token_hex(4)}-"
        return TritonLocation(settings.triton_url, prefix, metrics=_metrics_elsewhere(settings))
    if not settings.model_repository.is_dir():
        raise TritonStartError(
            f"there is no model repository at '{settings.model_repository}': name one with --model-repository, "
            "or a Triton elsewhere with --triton-url"
        )
    try:
        triton = EmbeddedTriton(
            settings.model_repository,
            hang_timeout_s=settings.triton_hang_seconds,
            traces_url=settings.tracing.url if settings.tracing else None,
            scratch=settings.scratch,
            on_restart=metrics.TRITON_RESTARTS.inc,
        )
        stack.push_async_callback(partial(triton.stop, GRACE_SECONDS))
        await triton.start()
    except EmbeddedTritonError as error:
        raise TritonStartError(str(error)) from error
    return TritonLocation(
        triton.url,
        triton.region_prefix,
        triton.end_model_processes,
        TritonMetrics(triton.metrics_url),
        triton.supervised,
    )


def _metrics_elsewhere(settings: Settings) -> TritonMetrics | None:
    """Return the metrics of a Triton elsewhere; with https, the certificates are those of its gRPC service."""
    if settings.triton_metrics_url is None:
        return None
    tls = settings.triton_tls
    if tls is None:
        return TritonMetrics(settings.triton_metrics_url)
    try:
        context = ssl.create_default_context(cafile=tls.root_certificates)
        if tls.certificate_chain is not None:
            context.load_cert_chain(tls.certificate_chain, tls.private_key)
    except OSError as error:
        raise TritonStartError(f"the files of --triton-tls-ca, -cert and -key cannot be used: {error}") from error
    return TritonMetrics(settings.triton_metrics_url, context)
