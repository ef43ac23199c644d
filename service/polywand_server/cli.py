"""The command `polywand-server`: reads options and environment variables, and runs the service."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from polywand_common.console import Command
from polywand_server import __version__
from polywand_server.budgets import total
from polywand_server.config import MEBIBYTE, Settings
from polywand_server.ops import logs
from polywand_server.ops.container import usable_memory
from polywand_server.ops.native_output import NativeOutput
from polywand_server.ops.repeats import quiet_libraries
from polywand_server.options import limits, listening, operating, triton
from polywand_server.ports import StartError
from polywand_server.server import Server

log = logging.getLogger(__name__)

_SUBJECTS = (listening, triton, operating, limits)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add all options; the help has them in this order."""
    for subject in reversed(_SUBJECTS):
        for option in reversed(subject.OPTIONS):
            command = option(command)
    return command


@click.command(
    cls=Command,
    context_settings={
        "auto_envvar_prefix": "POLYWAND",
        "show_default": True,
        "max_content_width": 110,
        "help_option_names": ["-h", "--help"],
    },
)
@click.version_option(__version__, allow_from_autoenv=False)
@_with_options
def main(log_level: str, log_format: logs.Format, **given: Any) -> None:
    """Serve semi-automatic image annotation: clicks in, polygons out.

    Every option can also be set by its environment variable. SIGTERM drains: health changes to NOT_SERVING, running
    requests finish, streams are told to reconnect, and the embedded Triton stops.
    """
    settings = Settings(
        **{name: value for subject in reversed(_SUBJECTS) for name, value in subject.take(given).items()}
    )
    logs.configure(log_level.upper(), log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    quiet_libraries()
    _tell_memory(settings)
    native_output = NativeOutput()
    native_output.start()
    try:
        asyncio.run(_run(settings, native_output))
    except StartError as error:
        log.critical("cannot start: %s", error)
        sys.exit(1)
    except Exception:
        log.critical("stopped by an unexpected error", exc_info=True)
        sys.exit(1)
    finally:
        native_output.stop()


def _tell_memory(settings: Settings) -> None:
    """Log what memory there is, and what of it may be taken."""
    memory, most = usable_memory(), settings.limits
    log.info(
        "memory of %s: %d MiB; at most %d for images, %d for decoding one, %d for masks, %d for what waits, %d shared",
        memory.of,
        *(
            nbytes // MEBIBYTE
            for nbytes in (
                memory.nbytes,
                most.images_bytes,
                most.decoder_bytes,
                most.memory_bytes,
                most.bodies_bytes + most.reply_bytes,
                settings.shared_memory_bytes,
            )
        ),
    )
    if total(settings) > memory.nbytes:
        wanted = total(settings) // MEBIBYTE
        log.warning("these limits are %d MiB together, more than %s has: the service may be killed", wanted, memory.of)


async def _run(settings: Settings, native_output: NativeOutput) -> NoReturn:
    """Serve until stopped; then exit at once, without waiting for threads that still compute."""
    await Server(settings).run()
    native_output.stop()
    logging.shutdown()
    os._exit(0)
