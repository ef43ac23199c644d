"""Where Triton is: a server elsewhere, or our own, which is started."""

import secrets
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from polywand_server.config import Settings
from polywand_server.ops import metrics
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
    models. supervised: waits until the supervision of our own Triton fails; None for a Triton elsewhere.
    """

    url: str
    memory_prefix: str
    end_model_processes: EndProcesses = no_op
    supervised: Callable[[], Coroutine[Any, Any, None]] | None = None


async def locate_triton(settings: Settings, stack: AsyncExitStack) -> TritonLocation:
    """Return the Triton that the settings name, or start our own, which the stack stops.

    Raises:
        TritonStartError
    """
    if settings.triton_url is not None:
        return TritonLocation(settings.triton_url, f"polywand-{secrets.token_hex(4)}-")
    if not settings.model_repository.is_dir():
        raise TritonStartError(
            f"there is no model repository at '{settings.model_repository}': name one with --model-repository, "
            "or a Triton elsewhere with --triton-url"
        )
    triton = EmbeddedTriton(
        settings.model_repository,
        hang_timeout_s=settings.triton_hang_seconds,
        traces_url=settings.tracing.url if settings.tracing else None,
        on_restart=metrics.TRITON_RESTARTS.inc,
    )
    stack.push_async_callback(partial(triton.stop, GRACE_SECONDS))
    try:
        await triton.start()
    except EmbeddedTritonError as error:
        raise TritonStartError(str(error)) from error
    return TritonLocation(triton.url, triton.region_prefix, triton.end_model_processes, triton.supervised)
