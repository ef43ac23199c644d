"""Two replicas behind a proxy, one of which is drained and the other killed while annotators drag: nobody notices."""

import asyncio
import itertools
import logging
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Segmentation
from polywand.aio import Update
from tests.client.helpers import polywand_threads
from tests.envoy import Proxy, free_port, proxy_to
from tests.faults.footprint import DETECT_STREAMS, INTERACT_STREAMS
from tests.interactors import DISK, add_interactor
from tests.puppets import add_detector
from tests.running import Service, running_service, until, wait_for

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
                self._sent[session.send("disk", points=[at])] = at
                await asyncio.sleep(1 / 60)
                if self._over or watching.done():
                    break
            await watching

    async def _watch(self, session: polywand.aio.Session) -> None:
        async for update in session.updates():
            self.shown.append(update)
            if self._over and update.sequence == max(self._sent):
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


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A tool and a detector of a few milliseconds."""
    models = tmp_path / "models"
    add_interactor(models, "disk", DISK)
    add_detector(models, "finder")
    return models


class Replicas:
    """Replicas at fixed ports behind a proxy; each is started, and ended, by the test."""

    def __init__(self, stack: ExitStack, repository: Path, folder: Path) -> None:
        self._stack, self._repository, self._folder = stack, repository, folder
        self._ports = (free_port(), free_port())
        self._starts = itertools.count()
        self.proxy: Proxy = stack.enter_context(proxy_to(self._ports, folder))

    def start(self, number: int) -> Service:
        """Start a replica, and wait until the proxy sends calls to it."""
        log = self._folder / f"log-{number}-{next(self._starts)}"
        options = (f"--model-repository={self._repository}", f"--grpc-port={self._ports[number]}")
        service = self._stack.enter_context(running_service(log, *options))
        service.wait_ready("disk", "finder")
        wait_for(lambda: self._ports[number] in self.proxy.healthy(), 60, service)
        return service


def streams(service: Service) -> int:
    """How many streams a replica serves."""
    return int(service.metric(INTERACT_STREAMS) + service.metric(DETECT_STREAMS))


async def test_drags_and_frames_outlive_a_drain_a_kill_and_a_restart(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One replica serves two drags and two streams of frames, and is drained; they go on at the other one. That is
    killed, and nothing answers until it is started again. Callers see answers only: each once, and in order.
    """
    in_thread = asyncio.to_thread
    with ExitStack() as stack, caplog.at_level(logging.INFO, "polywand"):
        replicas = await in_thread(Replicas, stack, repository, tmp_path)
        target = replicas.proxy.target
        client = stack.enter_context(polywand.connect(target, timeout=TIMEOUT_S))
        async with polywand.aio.connect(target, timeout=TIMEOUT_S) as async_client:
            first = await in_thread(replicas.start, 0)
            drag, frames = Drag(client), Frames(client)
            async_drag, async_frames = AsyncDrag(async_client), AsyncFrames(async_client)
            workloads: tuple[Drag | Frames | AsyncDrag | AsyncFrames, ...] = (drag, frames, async_drag, async_frames)

            async def all_go_on() -> None:
                so_far = [workload.answers for workload in workloads]
                await until(
                    lambda: all(w.answers >= before + MORE for w, before in zip(workloads, so_far, strict=True)),
                    TIMEOUT_S,
                )

            await all_go_on()
            assert streams(first) == len(workloads)
            second = await in_thread(replicas.start, 1)
            assert streams(second) == 0
            first.process.send_signal(signal.SIGTERM)
            assert await in_thread(first.process.wait, 60) == 0
            await all_go_on()
            assert streams(second) == len(workloads)
            assert "cancelled" not in first.log.read_text()

            second.process.kill()
            await in_thread(second.process.wait)
            third = await in_thread(replicas.start, 1)
            await all_go_on()
            assert streams(third) == len(workloads)
            await in_thread(drag.stop)
            await in_thread(frames.stop)
            await async_drag.stop()
            await async_frames.stop()
    assert not polywand_threads()
    # At the drain and at the kill, each of the four went on with a new stream.
    assert sum("goes on with a new stream" in message for message in caplog.messages) == 2 * len(workloads)


def test_a_replica_that_is_still_starting_is_waited_for(repository: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        replicas = Replicas(stack, repository, tmp_path)
        client = stack.enter_context(polywand.connect(replicas.proxy.target, timeout=TIMEOUT_S))
        workloads = (Drag(client), Frames(client))
        service = replicas.start(0)
        for workload in workloads:
            wait_for(lambda workload=workload: workload.answers > 0, TIMEOUT_S, service)
            workload.stop()
