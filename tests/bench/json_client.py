"""An annotator at the JSON server, and that server as a child process."""

import base64
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import TracebackType

import aiohttp
import orjson

from tests.bench.photos import Click, Photo
from tests.bench.player import Answer, deadline


class JsonAnnotator:
    """One client with its own connection. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout())  # `deadline` bounds every answer
        self._photo: Photo | None = None
        self._image = ""

    async def __aenter__(self) -> "JsonAnnotator":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def open(self, photo: Photo) -> None:
        """Encode the photo for all its clicks."""
        self._photo = photo
        self._image = base64_text(photo.jpeg)

    async def click(self, object_id: str, clicks: Sequence[Click]) -> Answer:
        """Send the photo with all clicks and wait for the mask as lists; tracing its outline is not on the clock."""
        assert self._photo is not None  # a photo is opened first
        begin = time.perf_counter()
        points = [[at.x, at.y, int(at.positive)] for at in clicks]
        request = orjson.dumps({"image": self._image, "points": points})
        async with deadline(), self._session.post(self._url, data=request) as response:
            body = await response.read()
        if response.status != 200:
            raise RuntimeError(f"the JSON server answered {response.status}: {body[:500]!r}")
        arrived = time.perf_counter()
        mask = orjson.loads(body)["mask"]
        parsed = time.perf_counter()
        if (len(mask), len(mask[0])) != (self._photo.height, self._photo.width):
            raise RuntimeError(f"a mask of {len(mask[0])} x {len(mask)} for {self._photo}")
        if b"1" not in body:
            raise RuntimeError("an empty mask")
        return Answer((parsed - begin) * 1000, 1, len(request), len(body), parse_ms=(parsed - arrived) * 1000)

    async def undo(self, object_id: str, clicks: Sequence[Click]) -> None:
        """The client still has the mask."""


@cache
def base64_text(jpeg: bytes) -> str:
    """A file as JSON carries it."""
    return base64.b64encode(jpeg).decode()


@contextmanager
def running_json_server(triton: str, model: str) -> Iterator[tuple[str, int]]:
    """Run the server until the block ends; gives the URL to post clicks to, and its process id."""
    command = [sys.executable, "-m", "tests.bench.json_server", f"--triton={triton}", f"--model={model}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # it is a pipe
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("the JSON server did not start")
            yield f"http://127.0.0.1:{port}/segment", process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
