"""A server that is full: what it refuses for now is sent again, later and later, and what is too large is not."""

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import grpc
import pytest
from google.rpc import status_pb2

import polywand
from polywand.backoff import FIRST_IMAGE_DELAY_S
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.scripted import QUOTA, Script, full, full_status, outline, ready, scripted_server, status
from tests.client.scripted import too_large_status as too_large

AWAY = status(grpc.StatusCode.UNAVAILABLE, "Triton is away", 0.01)

Detect = Callable[[str, float], object]


def detect(target: str, timeout: float) -> object:
    with polywand.connect(target, timeout=timeout) as client:
        return client.detect(b"photo")


def detect_under_asyncio(target: str, timeout: float) -> object:
    async def call() -> object:
        async with polywand.aio.connect(target, timeout=timeout) as client:
            return await client.detect(b"photo")

    return asyncio.run(call())


both = pytest.mark.parametrize("detect", [detect, detect_under_asyncio])


def refused_times(times: int, error: status_pb2.Status) -> Script:
    return Script(detect=lambda count: error if count < times else None)


def delays_of(script: Script) -> list[float]:
    times = [arrived for arrived, _ in script.arrivals]
    return [later - earlier for earlier, later in pairwise(times)]


@both
@pytest.mark.parametrize("error", [full_status(0.01), AWAY])
def test_detection_is_asked_for_again_after_delays_that_grow(detect: Detect, error: status_pb2.Status) -> None:
    script = refused_times(2, error)
    with scripted_server(script) as target:
        detect(target, 20.0)
    first_s, second_s = delays_of(script)
    assert first_s >= FIRST_IMAGE_DELAY_S
    assert second_s >= 2 * FIRST_IMAGE_DELAY_S


@both
def test_detection_comes_back_no_earlier_than_the_server_says(detect: Detect) -> None:
    script = refused_times(1, full_status(1.0))
    with scripted_server(script) as target:
        detect(target, 20.0)
    assert delays_of(script)[0] >= 1.0


@both
def test_a_server_that_stays_full_is_told_when_time_is_over(detect: Detect) -> None:
    script = refused_times(1000, full_status(0.01))
    started = time.monotonic()
    with scripted_server(script) as target, pytest.raises(polywand.QuotaExceeded, match="the server is full") as error:
        detect(target, 2.0)
    assert time.monotonic() - started < 20
    assert 2 <= len(script.arrivals) <= 5
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.value.retry_after_s == pytest.approx(0.01)
    assert error.value.quotas == (polywand.QuotaViolation(*QUOTA),)


@both
def test_what_is_too_large_is_not_sent_again(detect: Detect) -> None:
    script = refused_times(1000, too_large())
    with scripted_server(script) as target, pytest.raises(polywand.InvalidRequest, match="too large") as error:
        detect(target, 20.0)
    assert len(script.arrivals) == 1
    assert error.value.violations == (polywand.Violation("image.encoded", "too large"),)


async def test_the_list_of_models_is_asked_for_again_soon() -> None:
    script = refused_times(3, AWAY)
    with scripted_server(script) as target, polywand.connect(target) as client:
        started = time.monotonic()
        assert client.models() == []
        assert time.monotonic() - started < 5
        assert len(script.arrivals) == 4
        script.arrivals.clear()
        async with polywand.aio.connect(target) as other:
            assert await other.models() == []
        assert len(script.arrivals) == 4


async def test_a_server_that_restarts_is_waited_for_by_those_that_it_has_answered() -> None:
    script = Script()
    with scripted_server(script) as target:
        client, other = polywand.connect(target, timeout=60), polywand.aio.connect(target, timeout=60)
        client.detect(b"photo")
        await other.models()
    with polywand.connect(target, timeout=60) as stranger, pytest.raises(polywand.Unavailable, match="Is it running"):
        stranger.models()
    calls = asyncio.gather(asyncio.to_thread(client.detect, b"photo"), other.models(), return_exceptions=True)
    await asyncio.sleep(1.0)
    assert not calls.done()
    script.arrivals.clear()
    with scripted_server(script, address=target):
        found, models = await calls
    assert isinstance(found, polywand.Detections)
    assert models == []
    assert {type(message) for _, message in script.arrivals} == {pb.DetectRequest, pb.ListModelsRequest}
    client.close()
    await other.close()


def test_closing_the_client_wakes_a_call_that_delays() -> None:
    with scripted_server(refused_times(1000, full_status(15.0))) as target:
        client = polywand.connect(target)
        closing = threading.Timer(0.5, client.close)
        closing.start()
        started = time.monotonic()
        with pytest.raises(polywand.QuotaExceeded):
            client.detect(b"photo")
        assert time.monotonic() - started < 10
        closing.join()


async def test_frames_that_a_full_server_refuses_are_answered_with_that() -> None:
    script = Script(detect=lambda count: full_status(0.25) if count % 2 else None)
    with scripted_server(script) as target, polywand.connect(target) as client:
        answers = [*client.detect_stream([b"photo"] * 4)]
        script.arrivals.clear()
        async with polywand.aio.connect(target) as other:
            answers += [answer async for answer in other.detect_stream([b"photo"] * 4)]
    assert [frame for frame, _ in answers] == [0, 1, 2, 3] * 2
    for frame, result in answers:
        assert isinstance(result, polywand.QuotaExceeded if frame % 2 else polywand.Detections)


def hesitant() -> Script:
    """A server that refuses the image twice, and the prompt four times."""
    image_refusals, prompt_refusals = iter([full(retry_s=0.01)] * 2), iter([full(retry_s=0.01)] * 4)

    def answer(request: pb.InteractRequest) -> pb.InteractResponse:
        if request.HasField("prompt"):
            return next(prompt_refusals, outline())
        return next(image_refusals, ready())

    return Script(interact=answer)


def assert_hesitated(script: Script) -> None:
    assert script.kinds == ["image"] * 3 + [""] * 5
    delays = delays_of(script)
    shortest = [0.5, 1.0, 0.0, 0.05, 0.1, 0.2, 0.4]  # the prompt follows the image at once
    assert all(delay_s >= shortest_s for delay_s, shortest_s in zip(delays, shortest, strict=True))


def test_a_session_waits_for_room_and_sends_photos_seldom_and_prompts_soon() -> None:
    script = hesitant()
    with scripted_server(script) as target, polywand.connect(target) as client, client.open(b"photo") as session:
        assert session.prompt("m").model == "m"
    assert_hesitated(script)


async def test_an_asyncio_session_waits_for_room_and_sends_photos_seldom_and_prompts_soon() -> None:
    script = hesitant()
    with scripted_server(script) as target:
        async with polywand.aio.connect(target) as client, client.open(b"photo") as session:
            assert (await session.prompt("m")).model == "m"
    assert_hesitated(script)
