"""Two replicas behind a proxy, one of which is drained and the other killed while annotators drag: nobody notices."""

import asyncio
import logging
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

import polywand
from tests.client.helpers import polywand_threads
from tests.interactors import DISK, add_interactor
from tests.proxies.running import Envoy, Replicas
from tests.puppets import add_detector
from tests.running import until, wait_for
from tests.workloads import MORE, TIMEOUT_S, AsyncDrag, AsyncFrames, Drag, Frames, streams


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A tool and a detector of a few milliseconds."""
    models = tmp_path / "models"
    add_interactor(models, "disk", DISK)
    add_detector(models, "finder")
    return models


async def test_drags_and_frames_outlive_a_drain_a_kill_and_a_restart(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One replica serves two drags and two streams of frames, and is drained; they go on at the other one. That is
    killed, and nothing answers until it is started again. Callers see answers only: each once, and in order.
    """
    in_thread = asyncio.to_thread
    with ExitStack() as stack, caplog.at_level(logging.INFO, "polywand"):
        replicas = await in_thread(Replicas, stack, repository, tmp_path)
        target = replicas.target
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
        replicas = Replicas(stack, Envoy(), tmp_path, f"--model-repository={repository}")
        client = stack.enter_context(polywand.connect(replicas.target, timeout=TIMEOUT_S))
        workloads = (Drag(client), Frames(client))
        service = replicas.start(0)
        for workload in workloads:
            wait_for(lambda workload=workload: workload.answers > 0, TIMEOUT_S, service)
            workload.stop()
