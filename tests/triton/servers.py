"""Embedded Tritons for tests that are not about their ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from polywand_server.triton.embedded.server import EmbeddedTriton


@asynccontextmanager
async def running_triton(repository: Path, **options: Any) -> AsyncIterator[EmbeddedTriton]:
    """Run a Triton until the block ends, and then kill it: an orderly stop takes two seconds."""
    server = EmbeddedTriton(repository, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace_s=0)
