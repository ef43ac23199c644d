"""The asyncio client on the real service."""

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Detections, Segmentation
from polywand.aio import AsyncClient, Session
from polywand.frames import FRAMES_AHEAD
from tests.client.helpers import FACE
from tests.running import Service, running_service, until


@pytest.fixture
async def client(server: Service) -> AsyncIterator[AsyncClient]:
    async with polywand.aio.connect(server.target) as client:
        yield client


@pytest.fixture
async def session(client: AsyncClient, astronaut: NDArray[np.uint8]) -> AsyncIterator[Session]:
    async with client.open(astronaut) as session:
        yield session


def other_tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_models_are_listed(client: AsyncClient) -> None:
    assert {"nanodet", "grabcut", "wand_click"} <= {model.name for model in await client.models()}


async def test_both_clients_give_the_same_answers(
    session: Session, client: AsyncClient, server: Service, astronaut: NDArray[np.uint8]
) -> None:
    with polywand.connect(server.target) as plain, plain.open(astronaut) as plain_session:
        ours = await session.prompt("wand_click", positive=[FACE], mask=True)
        theirs = plain_session.prompt("wand_click", positive=[FACE], mask=True)
        assert ours.mask is not None
        assert theirs.mask is not None
        np.testing.assert_array_equal(ours.mask, theirs.mask)
        assert (await client.detect(astronaut)).items == plain.detect(astronaut).items
        outlined, plainly = (
            (await client.detect(astronaut, polygons=True))[0],
            plain.detect(astronaut, polygons=True)[0],
        )
        assert outlined.polygons
        np.testing.assert_array_equal(outlined.polygons[0].exterior, plainly.polygons[0].exterior)


async def test_errors_are_those_of_the_synchronous_client(session: Session, client: AsyncClient) -> None:
    with pytest.raises(polywand.IncompletePrompt) as incomplete:
        await session.prompt("wand_click")
    assert incomplete.value.missing_positive_points == 1
    with pytest.raises(polywand.InvalidRequest) as outside:
        await session.prompt("wand_click", positive=[(-1, 5)])
    assert outside.value.violations[0].field == "prompt.points[0]"
    with pytest.raises(polywand.InvalidRequest) as unknown:
        await client.detect(b"", model="no_such_model")
    assert unknown.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(polywand.InvalidRequest, match="cannot be read"):
        async with client.open("missing.jpg"):
            pass


async def test_objects_are_worked_on_at_the_same_time(session: Session) -> None:
    clicks = {"face": FACE, "suit": (225, 400), "flag": (60, 250)}
    outlines = await asyncio.gather(
        *(session.prompt("wand_click", object_id=name, positive=[click]) for name, click in clicks.items())
    )
    for outline, (x, y) in zip(outlines, clicks.values(), strict=True):
        assert polywand.rasterise(outline.polygons, 512, 512)[y, x]


async def test_a_drag_is_answered_by_its_newest_prompt(session: Session) -> None:
    async with aclosing(session.updates()) as updates:
        for x in range(200, 250):
            last = session.send("wand_click", positive=[(x, 110)])
            await asyncio.sleep(0.002)
        covered = 0
        async with asyncio.timeout(20):
            async for update in updates:
                assert update.object_id == ""
                assert isinstance(update.result, Segmentation)
                assert update.result.skipped == update.skipped
                covered += update.skipped + 1
                if update.sequence == last:
                    break
    assert covered <= 50
    assert isinstance(update.result, Segmentation)
    exact = await session.prompt("wand_click", object_id="alone", positive=[(249, 110)])
    assert update.result.area == pytest.approx(exact.area, rel=0.02)


async def test_prompts_sent_at_once_leave_as_one(session: Session) -> None:
    for x in range(200, 240):
        session.send("wand_click", positive=[(x, 110)])
    outline = await session.prompt("wand_click", positive=[(240, 110)])
    assert outline.skipped == 40


async def test_updates_carry_errors_as_values(session: Session) -> None:
    session.send("wand_click", object_id="far", positive=[(9999, 0)])
    session.send("wand_click", object_id="little")
    results = {}
    async with aclosing(session.updates()) as updates, asyncio.timeout(20):
        async for update in updates:
            results[update.object_id] = update.result
            if len(results) == 2:
                break
    assert isinstance(results["far"], polywand.InvalidRequest)
    assert isinstance(results["little"], polywand.IncompletePrompt)


async def test_updates_end_with_the_session(client: AsyncClient, astronaut: NDArray[np.uint8]) -> None:
    async with client.open(astronaut) as session:
        watcher = asyncio.create_task(_collect(session))
        await session.prompt("wand_click", positive=[FACE])
    updates = await asyncio.wait_for(watcher, 30)
    assert [update.sequence for update in updates] == [2]


async def test_an_image_overtakes_the_prompts_about_the_last_one(session: Session, coffee: NDArray[np.uint8]) -> None:
    waiting = [
        asyncio.create_task(session.prompt("wand_click", object_id=str(n), positive=[(200 + n, 110)]))
        for n in range(30)
    ]
    await asyncio.sleep(0)
    await session.set_image(coffee)
    assert (session.width, session.height) == (600, 400)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, Segmentation | polywand.Superseded) for result in results)
    assert any(isinstance(result, polywand.Superseded) for result in results)
    assert (await session.prompt("wand_click", positive=[(590, 200)])).timing.inferences > 0


async def test_giving_up_a_prompt_harms_no_other(session: Session) -> None:
    abandoned = asyncio.create_task(session.prompt("wand_click", object_id="abandoned", positive=[FACE]))
    await asyncio.sleep(0)
    abandoned.cancel()
    assert (await session.prompt("wand_click", positive=[FACE])).polygons


async def test_closing_leaves_no_task_and_wakes_who_waits(client: AsyncClient, astronaut: NDArray[np.uint8]) -> None:
    before = other_tasks()
    async with client.open(astronaut) as session:
        waiting = asyncio.create_task(session.prompt("wand_click", positive=[FACE]))
        await asyncio.sleep(0)
    with pytest.raises(polywand.Closed):
        await waiting
    with pytest.raises(polywand.Closed):
        session.send("wand_click", positive=[FACE])
    await until(lambda: other_tasks() == before, 10)


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_a_stream_answers_frames_in_order(
    client: AsyncClient, astronaut: NDArray[np.uint8], coffee: NDArray[np.uint8], kind: str
) -> None:
    frames: list[polywand.ImageLike] = [astronaut, b"no image", coffee, "missing.jpg", astronaut]

    async def asynchronous() -> AsyncIterator[polywand.ImageLike]:
        for frame in frames:
            await asyncio.sleep(0.01)
            yield frame

    stream = client.detect_stream(frames if kind == "plain" else asynchronous())
    answers = [answer async for answer in stream]
    assert [frame for frame, _ in answers] == [0, 1, 2, 3, 4]
    assert [isinstance(result, Detections) for _, result in answers] == [True, False, True, False, True]
    assert all(isinstance(answers[n][1], polywand.InvalidRequest) for n in (1, 3))


async def test_a_session_that_was_not_entered_says_so(client: AsyncClient, astronaut: NDArray[np.uint8]) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        client.open(astronaut).send("wand_click", positive=[FACE])


async def test_a_stream_that_is_left_early_took_few_frames_and_leaves_no_task(
    client: AsyncClient, astronaut: NDArray[np.uint8]
) -> None:
    before = other_tasks()
    taken = itertools.count()
    async with aclosing(client.detect_stream(astronaut[::8, ::8] for _ in taken)) as stream:
        async for frame, _ in stream:
            if frame == 2:
                break
        await asyncio.sleep(0.3)
    assert next(taken) <= 3 + FRAMES_AHEAD
    await until(lambda: other_tasks() == before, 10)


async def test_what_the_callers_frames_raise_comes_after_the_answers_before(
    client: AsyncClient, astronaut: NDArray[np.uint8]
) -> None:
    def frames() -> Iterator[NDArray[np.uint8]]:
        yield astronaut
        raise RuntimeError("the camera is gone")

    stream = client.detect_stream(frames())
    assert isinstance((await anext(stream))[1], Detections)
    with pytest.raises(RuntimeError, match="camera"):
        await anext(stream)


async def test_no_server_is_told_in_a_sentence() -> None:
    async with polywand.aio.connect("localhost:1", timeout=1) as client:
        with pytest.raises(polywand.Unavailable, match=r"No Polywand server answers at localhost:1\. Is it running\?"):
            await client.models()
        with pytest.raises(polywand.Unavailable, match="No Polywand server answers"):
            async with client.open(np.zeros((4, 4, 3), np.uint8)):
                pass
        with pytest.raises(polywand.Unavailable, match="No Polywand server answers"):
            await anext(client.detect_stream([np.zeros((4, 4, 3), np.uint8)]))


async def test_a_server_that_hangs_or_dies_fails_who_waits(tmp_path: Path, astronaut: NDArray[np.uint8]) -> None:
    (tmp_path / "models").mkdir()
    with running_service(tmp_path / "log", f"--model-repository={tmp_path / 'models'}") as service:
        async with (
            polywand.aio.connect(service.target, timeout=3) as client,
            client.open(astronaut, reconnect=False) as session,
            client.open(astronaut) as patient,
        ):
            service.process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(polywand.Unavailable, match="did not answer within 3 s"):
                await session.prompt("x", positive=[FACE])
            assert time.monotonic() - started < 20
            watcher = asyncio.create_task(_collect(session))
            waiting = asyncio.create_task(session.prompt("x", positive=[FACE]))
            await asyncio.sleep(0.1)
            service.process.kill()
            for task in (waiting, watcher):
                with pytest.raises(polywand.Unavailable):
                    await asyncio.wait_for(task, 30)
            # One that may go on elsewhere looks for a server until the time is over.
            number = patient.send("x", positive=[FACE], timeout=1)
            async with asyncio.timeout(30), aclosing(patient.updates()) as updates:
                update = await anext(updates)
            assert update.sequence == number
            assert isinstance(update.result, polywand.Unavailable)
            with pytest.raises(polywand.Unavailable, match="No Polywand server answers"):
                await patient.prompt("x", positive=[FACE], timeout=1)


async def _collect(session: Session) -> list[polywand.aio.Update]:
    return [update async for update in session.updates()]
