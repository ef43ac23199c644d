"""Triton killed in the middle of a session: what it left unanswered is sent again by the clients themselves."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Segmentation
from tests.client.helpers import FACE, polywand_threads
from tests.interactors import DISK, add_interactor
from tests.running import Service, outage, running_service, until

SUIT, FLAG = (225, 400), (60, 250)
HASTY_SECONDS = 2.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose Triton these tests kill."""
    folder = tmp_path_factory.mktemp("outages")
    add_interactor(folder / "models", "disk", DISK)
    with running_service(folder / "log", f"--model-repository={folder / 'models'}") as service:
        service.wait_ready("disk")
        yield service


def test_prompts_outlive_an_outage(service: Service, astronaut: NDArray[np.uint8]) -> None:
    service.wait_ready()
    with (
        polywand.connect(service.target, timeout=120) as client,
        polywand.connect(service.target, timeout=HASTY_SECONDS) as hasty,
        client.open(astronaut) as session,
        client.open(astronaut) as closing,
        hasty.open(astronaut) as hasty_session,
        ThreadPoolExecutor(4) as threads,
    ):
        calm = session.prompt("disk", positive=[FACE])
        with outage(service):
            face = threads.submit(session.prompt, "disk", object_id="face", positive=[FACE])
            older = threads.submit(session.prompt, "disk", object_id="other", positive=[SUIT])
            to_be_closed = threads.submit(closing.prompt, "disk", positive=[FACE])

            # A client with a shorter timeout gets the error that the server sends, though not before its timeout.
            started = time.monotonic()
            with pytest.raises(polywand.Unavailable, match="riton") as error:
                hasty_session.prompt("disk", positive=[FACE])
            assert time.monotonic() - started > HASTY_SECONDS / 2
            assert error.value.code is grpc.StatusCode.UNAVAILABLE
            assert not any(prompt.done() for prompt in (face, older, to_be_closed))

            newer = threads.submit(session.prompt, "disk", object_id="other", positive=[FLAG])
            started = time.monotonic()
            closing.close()
            assert time.monotonic() - started < 5  # and not until the prompt is answered
            assert isinstance(to_be_closed.exception(10), polywand.Closed)
        assert face.result(90).area == calm.area
        # The older prompt was not sent again: the newer one stands for it.
        assert older.result(90) is newer.result(90)
        assert newer.result().skipped == 1
        assert polywand.rasterise(newer.result().polygons, 512, 512)[FLAG[1], FLAG[0]]
        assert session.prompt("disk", positive=[FACE]).area == calm.area
    assert not polywand_threads()


async def test_a_drag_over_an_outage_shows_outlines_only(service: Service, astronaut: NDArray[np.uint8]) -> None:
    service.wait_ready()
    async with (
        polywand.aio.connect(service.target, timeout=120) as client,
        polywand.aio.connect(service.target, timeout=HASTY_SECONDS) as hasty,
        client.open(astronaut) as session,
        hasty.open(astronaut) as hasty_session,
    ):
        calm = await session.prompt("disk", object_id="face", positive=[FACE])
        shown: asyncio.Queue[polywand.aio.Update] = asyncio.Queue()
        watcher = asyncio.create_task(_watch(session, "dragged", shown))
        sent = []
        with outage(service):
            for x in range(210, 250):
                sent.append(session.send("disk", object_id="dragged", positive=[(x, 110)]))
                await asyncio.sleep(1 / 60)
            waiting = asyncio.create_task(session.prompt("disk", object_id="awaited", positive=[FACE]))

            # A client with a shorter timeout gets the error that the server sends, though not before its timeout.
            number = hasty_session.send("disk", positive=[FACE])
            async with aclosing(hasty_session.updates()) as updates, asyncio.timeout(30):
                update = await anext(updates)
            assert update.sequence == number
            assert isinstance(update.result, polywand.Unavailable)
            with pytest.raises(polywand.Unavailable, match="riton") as error:
                await hasty_session.prompt("disk", positive=[FACE])
            assert error.value.code is grpc.StatusCode.UNAVAILABLE

            tasks = asyncio.all_tasks()
            async with client.open(astronaut) as closing:
                to_be_closed = asyncio.create_task(closing.prompt("disk", positive=[FACE]))
                await asyncio.sleep(0.2)
            with pytest.raises(polywand.Closed):
                await to_be_closed
            await until(lambda: asyncio.all_tasks() == tasks, 10)
        async with asyncio.timeout(90):
            assert (await waiting).area == calm.area
            seen = [await shown.get()]
            while seen[-1].sequence != sent[-1]:
                seen.append(await shown.get())
    await watcher
    assert all(isinstance(update.result, Segmentation) for update in seen)
    assert {update.sequence for update in seen} <= set(sent)
    assert sum(update.skipped + 1 for update in seen) == len(sent)
    assert polywand.rasterise(seen[-1].result.polygons, 512, 512)[110, 249]


async def _watch(session: polywand.aio.Session, object_id: str, shown: asyncio.Queue[polywand.aio.Update]) -> None:
    async for update in session.updates():
        if update.object_id == object_id:
            shown.put_nowait(update)
