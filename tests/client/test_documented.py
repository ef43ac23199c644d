"""The examples in Python of the documentation run as they stand, on the real service."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.running import Service

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/api.md")


def examples() -> list[tuple[str, str]]:
    """Return (page and number, code) of each example."""
    return [
        (f"{page} {number}", code)
        for page in PAGES
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    ]


@pytest.mark.parametrize("code", [code for _, code in examples()], ids=[name for name, _ in examples()])
def test_an_example_runs(code: str, server: Service, tmp_path: Path, astronaut: NDArray[np.uint8]) -> None:
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        cv2.imwrite(str(tmp_path / name), astronaut[..., ::-1])
    ran = subprocess.run(
        [sys.executable, "-c", code.replace("localhost:50051", server.target)],
        env=os.environ | {"POLYWAND_TARGET": server.target},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
    assert "Error" not in ran.stdout
