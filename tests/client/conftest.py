"""Fixtures of the client's tests: the synchronous client on the real service."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import polywand
from tests.running import Service


@pytest.fixture(scope="session")
def client(server: Service) -> Iterator[polywand.Client]:
    with polywand.connect(server.target) as client:
        yield client


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three small photos in the working directory, an empty one but for them."""
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        cv2.imwrite(name, np.full((3, 4, 3), 90, np.uint8))
    return names
