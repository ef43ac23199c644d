"""One real tritonserver for all tests of this folder; tests that harm theirs start their own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from polywand_server.triton.client import TritonClient
from polywand_server.triton.embedded.server import EmbeddedTriton
from tests.triton.models import make_repository
from tests.triton.servers import running_triton


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("models"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def triton(repository: Path) -> AsyncIterator[EmbeddedTriton]:
    async with running_triton(repository) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(triton: EmbeddedTriton) -> AsyncIterator[TritonClient]:
    opened = TritonClient(triton.url)
    yield opened
    await opened.close()
