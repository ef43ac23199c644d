"""Fixtures of the client's tests: the synchronous client on the real service."""

from collections.abc import Iterator

import pytest

import polywand
from tests.running import Service


@pytest.fixture(scope="session")
def client(server: Service) -> Iterator[polywand.Client]:
    with polywand.connect(server.target) as client:
        yield client
