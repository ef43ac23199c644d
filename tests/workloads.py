"""What clients of the SDK do while replicas come and go: they drag, and send frames; each answer is checked."""

import asyncio
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

import polywand
from polywand import Segmentation
from polywand.aio import Update
from tests.faults.footprint import DETECT_STREAMS, INTERACT_STREAMS
from tests.running import Service

TIMEOUT_S = 120  # of each answer; a replica starts within seconds
MORE = 5  # answers, after which a workload goes on
SIDE, RADIUS = 256, 8
IMAGE = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def positions() -> Iterator[tuple[float, float]]:
    """Where a drag goes, without an end."""
    for number in itertools.count():
        yield 20 + number % 200, 20 + number // 200 % 200


def shows(outline: Segmentation, at: tuple[float, float]) -> bool:
    """Whether an outline is the answer to the click there."""
    assert outline.box is not None
    box = outline.box
    return abs((box.x0 + box.x1) / 2 - at[0]) < RADIUS and abs((box.y0 + box.y1) / 2 - at[1]) < RADIUS


class Workload(ABC):
    """What a client of the synchronous SDK does in a thread of its own, until it is stopped."""

    def __init__(self, client: polywand.Client) -> None:
        self._client = client
        self._answers = 0
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def answers(self) -> int:
        """How many answers came. Raises what went wrong."""
        if self._failure is not None:
            raise self._failure
        return self._answers

    def stop(self) -> None:
        """Ask for nothing more, and wait for the last answers. Raises what went wrong."""
        self._over.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        assert self.answers

    @abstractmethod
    def work(self) -> None:
        """Ask and count answers until stopped."""

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as failure:
            self._failure = failure


class Drag(Workload):
    """An annotator: each click waits for its answer."""

    def work(self) -> None:
        """Click here and there."""
        with self._client.open(IMAGE) as session:
            for at in positions():
                if self._over.wait(0.01):
                    return
                outline = session.prompt("disk", points=[at])
                assert shows(outline, at)
                assert outline.skipped == 0
                self._answers += 1


class Frames(Workload):
    """Frames without an end in one `detect_stream`: each has its answer, in order."""

    def work(self) -> None:
        """Send frames until stopped, and read all answers."""
        sent = itertools.count()
        for number, found in self._client.detect_stream(self._images(sent), model="finder"):
            assert number == self._answers
            assert isinstance(found, polywand.Detections), found
            self._answers += 1
        assert self._answers == next(sent)

    def _images(self, sent: Iterator[int]) -> Iterator[NDArray[np.uint8]]:
        while not self._over.wait(0.01):
            next(sent)
            yield IMAGE


class AsyncDrag:
    """An annotator of the asyncio client: clicks are sent at a pace, and the newest answer of each object is shown."""

    def __init__(self, client: polywand.AsyncClient) -> None:
        self.shown: list[Update] = []
        self._sent: dict[int, tuple[float, float]] = {}
        self._over = False
        self._last: int | None = None  # sent when it is over
        self._task = asyncio.create_task(self._run(client))

    @property
    def answers(self) -> int:
        """How many answers were shown. Raises what went wrong."""
        if self._task.done():
            self._task.result()
        return len(self.shown)

    async def stop(self) -> None:
        """Stop after the answer to the last click. Raises what went wrong."""
        self._over = True
        async with asyncio.timeout(TIMEOUT_S):
            await self._task
        for update in self.shown:
            assert isinstance(update.result, Segmentation), update.result
            assert shows(update.result, self._sent[update.sequence])
        sequences = [update.sequence for update in self.shown]
        assert sequences == sorted(set(sequences))
        assert sequences[-1] == max(self._sent)
        assert sum(update.skipped + 1 for update in self.shown) == len(self._sent)

    async def _run(self, client: polywand.AsyncClient) -> None:
        async with client.open(IMAGE) as session:
            watching = asyncio.create_task(self._watch(session))
            for at in positions():
                is_last, sequence = self._over, session.send("disk", points=[at])
                self._sent[sequence] = at
                if is_last:
                    self._last = sequence
                if is_last or watching.done():
                    break
                await asyncio.sleep(1 / 60)
            await watching

    async def _watch(self, session: polywand.aio.Session) -> None:
        async for update in session.updates():
            self.shown.append(update)
            if update.sequence == self._last:
                return


class AsyncFrames:
    """Frames without an end in one `detect_stream` of the asyncio client."""

    def __init__(self, client: polywand.AsyncClient) -> None:
        self._answers = self._sent = 0
        self._over = False
        self._task = asyncio.create_task(self._run(client))

    @property
    def answers(self) -> int:
        """How many answers came. Raises what went wrong."""
        if self._task.done():
            self._task.result()
        return self._answers

    async def stop(self) -> None:
        """Send no more frames; each that was sent has its answer, in order. Raises what went wrong."""
        self._over = True
        async with asyncio.timeout(TIMEOUT_S):
            await self._task
        assert self.answers == self._sent

    def _images(self) -> Iterator[NDArray[np.uint8]]:
        while not self._over:
            self._sent += 1
            yield IMAGE

    async def _run(self, client: polywand.AsyncClient) -> None:
        async for result in client.detect_stream(self._images(), model="finder"):
            assert result.number == self._answers
            assert result.unwrap().model == "finder"
            self._answers += 1


def streams(service: Service) -> int:
    """How many streams a replica serves."""
    return int(service.metric(INTERACT_STREAMS) + service.metric(DETECT_STREAMS))
