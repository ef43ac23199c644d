"""Tensors through shared memory: the same answers, no slot used twice at a time, nothing left behind."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from polywand_server.errors import DeadlineError, ModelFailedError, UnavailableError
from polywand_server.triton import shared_memory
from polywand_server.triton.client import TritonClient
from polywand_server.triton.exchange import exchange
from polywand_server.triton.shared_memory import FOLDER, SharedMemory, is_on_this_host
from polywand_server.triton.tensors import TensorSpec
from tests.triton.models import RAISES, WEIGHTS
from tests.triton.servers import running_triton

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1024 * 1024
IMAGE = {"IMAGE": TensorSpec("UINT8", (1, 8, 8, 3))}
LOGITS = {"LOGITS": TensorSpec("FP32", (1, 1, 8, 8))}
X, Y = {"X": TensorSpec("FP32", (1, 2, 3))}, {"Y": TensorSpec("FP32", (1, 2, 3))}
PREFIX = "polywand-test-"


@pytest_asyncio.fixture(loop_scope="session")
async def models(client: TritonClient) -> TritonClient:
    for name in ("puppet", "mix", "pick"):
        await client.load(name)
    return client


@pytest_asyncio.fixture(loop_scope="session")
async def memory(models: TritonClient) -> AsyncIterator[SharedMemory]:
    opened = SharedMemory(models, PREFIX, 4 * MIB)
    yield opened
    await opened.close()
    assert not list(FOLDER.glob(f"{PREFIX}*"))


async def mix(client: TritonClient, memory: SharedMemory | None, image: np.ndarray) -> np.ndarray:
    async with exchange(client, memory, "mix", 0, IMAGE, LOGITS) as tensors:
        tensors.inputs["IMAGE"][0] = image
        return (await tensors.run(timeout_s=10))["LOGITS"].copy()


async def order(client: TritonClient, memory: SharedMemory, what: float, timeout_s: float = 30) -> np.ndarray:
    """Tell the puppet what to do (see `models`)."""
    async with exchange(client, memory, "puppet", 0, X, Y) as tensors:
        tensors.inputs["X"][:] = what
        return (await tensors.run(timeout_s=timeout_s))["Y"].copy()


async def cancel_an_order(client: TritonClient, memory: SharedMemory) -> None:
    """Cancel a request when Triton is at it, with a new slot."""
    before = await regions(client)
    slow = asyncio.create_task(order(client, memory, 1000))
    await until(lambda: _is(client, before + 1))
    await asyncio.sleep(0.2)
    slow.cancel()
    with suppress(asyncio.CancelledError):
        await slow


async def regions(client: TritonClient) -> int:
    """How many regions Triton has mapped."""
    from tritonclient.grpc import service_pb2  # noqa: PLC0415

    status = await client._stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
    return len(status.regions)


async def until(condition, seconds: float = 30) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


async def test_answers_are_those_of_tensors_that_are_sent(models: TritonClient, memory: SharedMemory) -> None:
    generator = np.random.default_rng(0)
    for _ in range(3):
        image = generator.integers(0, 255, (8, 8, 3), np.uint8)
        shared = await mix(models, memory, image)
        np.testing.assert_array_equal(shared, await mix(models, None, image))
        np.testing.assert_allclose(shared[0, 0], image.astype(np.float32) @ WEIGHTS.astype(np.float32), rtol=1e-5)
    assert await regions(models) == 1  # one after another, they used one slot


async def test_no_name_is_left_in_shared_memory_while_it_is_in_use(models: TritonClient, memory: SharedMemory) -> None:
    await mix(models, memory, np.zeros((8, 8, 3), np.uint8))
    assert await regions(models) == 1
    assert not list(FOLDER.glob(f"{PREFIX}*"))


async def test_inferences_at_the_same_time_keep_their_tensors_apart(models: TritonClient, memory: SharedMemory) -> None:
    images = [np.full((8, 8, 3), value, np.uint8) for value in range(40)]  # more than there are slots
    answers = await asyncio.gather(*(mix(models, memory, image) for image in images))
    for image, answer in zip(images, answers, strict=True):
        np.testing.assert_allclose(answer[0, 0], image.astype(np.float32) @ WEIGHTS.astype(np.float32), rtol=1e-5)


async def test_an_output_whose_size_only_the_model_knows_is_sent(models: TritonClient, memory: SharedMemory) -> None:
    async with exchange(models, memory, "pick", 0, {"INDEX": TensorSpec("INT64", (1, 2))}, {"Y": None}) as tensors:
        tensors.inputs["INDEX"][:] = [2, 0]
        picked = await tensors.run(timeout_s=10)
    np.testing.assert_array_equal(picked["Y"], [[-1.0, 0.5]])


async def test_a_slot_whose_request_was_cancelled_is_not_used_until_triton_has_let_go(
    models: TritonClient, memory: SharedMemory
) -> None:
    """What Triton writes late reaches no other answer, and the memory comes back when it is done."""
    before = await regions(models)
    await cancel_an_order(models, memory)
    image = np.full((8, 8, 3), 9, np.uint8)
    for _ in range(20):  # each in another slot than the cancelled one's
        answer = await mix(models, memory, image)
        np.testing.assert_allclose(answer[0, 0], image.astype(np.float32) @ WEIGHTS.astype(np.float32), rtol=1e-5)
    await until(lambda: _is(models, before + 1))  # the cancelled one's is gone, the other's is free


async def test_a_missed_deadline_and_a_failing_model_give_their_memory_back(
    models: TritonClient, memory: SharedMemory
) -> None:
    with pytest.raises(DeadlineError):
        await order(models, memory, 2000, timeout_s=0.2)
    with pytest.raises(ModelFailedError, match="strings cut"):
        await order(models, memory, RAISES)
    await until(lambda: _is(models, 0))
    np.testing.assert_array_equal(await order(models, memory, 0), np.zeros((1, 2, 3)))


async def test_the_end_waits_until_triton_has_let_go(models: TritonClient) -> None:
    memory = SharedMemory(models, PREFIX, 4 * MIB)
    await cancel_an_order(models, memory)
    await memory.close()
    assert await regions(models) == 0


async def test_without_room_tensors_are_sent(models: TritonClient) -> None:
    small = SharedMemory(models, PREFIX, 100_000)
    answer = await mix(models, small, np.ones((8, 8, 3), np.uint8))
    np.testing.assert_allclose(answer, WEIGHTS.astype(np.float32).sum(), rtol=1e-5)
    assert await regions(models) == 0
    await small.close()


async def test_a_triton_that_does_not_see_our_memory_is_sent_its_tensors(
    models: TritonClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container of its own: what we put into our /dev/shm, it does not find in its own."""
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    memory = SharedMemory(models, PREFIX, 4 * MIB)
    for _ in range(2):
        answer = await mix(models, memory, np.ones((8, 8, 3), np.uint8))
        np.testing.assert_allclose(answer, WEIGHTS.astype(np.float32).sum(), rtol=1e-5)
    assert not os.listdir(tmp_path)
    await memory.close()


async def test_a_full_file_system_is_no_more_than_slower(models: TritonClient) -> None:
    memory = SharedMemory(models, PREFIX, 4 * MIB)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        answer = await mix(models, memory, np.ones((8, 8, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_allclose(answer, WEIGHTS.astype(np.float32).sum(), rtol=1e-5)
    assert not list(FOLDER.glob(f"{PREFIX}*"))
    await memory.close()


async def test_memory_that_could_not_be_shared_for_a_while_is_shared_again(
    models: TritonClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it was: full, not to be mapped, or Triton refused for want of descriptors."""
    monkeypatch.setattr(shared_memory, "FIRST_PAUSE_S", 0.05)
    image = np.ones((8, 8, 3), np.uint8)
    memory = SharedMemory(models, PREFIX, 4 * MIB)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(shared_memory, "FOLDER", tmp_path)
        await mix(models, memory, image)
        assert await regions(models) == 0

    async def is_shared() -> bool:
        await mix(models, memory, image)
        return await regions(models) == 1

    await until(is_shared)
    await memory.close()


class SlowToShare(TritonClient):
    """A client of a Triton that maps memory late, or never says that it has."""

    answers = True
    mapped = 0

    async def register_region(self, name: str, nbytes: int) -> None:
        await asyncio.sleep(0.5)
        await super().register_region(name, nbytes)
        self.mapped += 1
        if not self.answers:
            raise DeadlineError("Triton did not answer in time")


@pytest_asyncio.fixture(loop_scope="session")
async def slow(models: TritonClient) -> AsyncIterator[SlowToShare]:
    client = SlowToShare(models.url)
    yield client
    await client.close()


async def test_an_inference_does_not_wait_for_memory_and_the_next_one_has_it(slow: SlowToShare) -> None:
    memory = SharedMemory(slow, PREFIX, 4 * MIB)
    for _ in range(2):
        answer = await mix(slow, memory, np.ones((8, 8, 3), np.uint8))
        np.testing.assert_allclose(answer, WEIGHTS.astype(np.float32).sum(), rtol=1e-5)
        await until(lambda: _is(slow, 1))
    assert slow.mapped == 1
    await memory.close()


async def test_memory_that_triton_mapped_without_saying_so_is_given_up(slow: SlowToShare) -> None:
    slow.answers = False
    memory = SharedMemory(slow, PREFIX, 4 * MIB)
    await mix(slow, memory, np.ones((8, 8, 3), np.uint8))

    async def is_given_up() -> bool:
        return slow.mapped == 1 and await regions(slow) == 0

    await until(is_given_up)
    await memory.close()


async def test_memory_whose_first_user_has_left_serves_the_next(slow: SlowToShare) -> None:
    memory = SharedMemory(slow, PREFIX, 4 * MIB)
    leaving = asyncio.create_task(mix(slow, memory, np.ones((8, 8, 3), np.uint8)))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait((leaving,))
    await until(lambda: _is(slow, 1))
    await asyncio.sleep(0.1)
    assert await memory.acquire(IMAGE.values()) is not None
    assert slow.mapped == 1
    await memory.close()


async def test_another_size_finds_room_that_the_last_one_no_longer_needs(
    models: TritonClient, memory: SharedMemory
) -> None:
    image = np.ones((8, 8, 3), np.uint8)
    slots = [await memory.acquire([TensorSpec("UINT8", (MIB,))]) for _ in range(4)]
    assert None not in slots
    assert await memory.acquire(IMAGE.values()) is None
    for slot in slots:
        assert slot is not None
        memory.release(slot)

    async def fits() -> bool:
        await mix(models, memory, image)
        slot = await memory.acquire(IMAGE.values())
        if slot is not None:
            memory.release(slot)
        return slot is not None

    await until(fits)


async def test_after_a_restart_of_triton_tensors_are_shared_again(repository: Path) -> None:
    async with running_triton(repository) as server:
        client = TritonClient(server.url)
        memory = SharedMemory(client, server.region_prefix, 4 * MIB)
        image = np.ones((8, 8, 3), np.uint8)
        await client.load("mix")
        await mix(client, memory, image)
        for child in psutil.Process().children(recursive=True):
            if _is_tritonserver(child, server.url):
                child.kill()
        with pytest.raises(UnavailableError):
            await mix(client, memory, image)
        await until(lambda: _loads(client), 60)
        for _ in range(2):
            answer = await mix(client, memory, image)
            np.testing.assert_allclose(answer, WEIGHTS.astype(np.float32).sum(), rtol=1e-5)
        assert await regions(client) == 1
        await memory.close()
        await client.close()


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("unix:/run/triton/grpc:0", True),
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("[::1]:8001", True),
        ("triton.cluster.local:8001", False),
        ("10.1.2.3:8001", False),
        ("dns:///triton:8001", False),
    ],
)
async def test_memory_is_offered_only_to_a_triton_on_this_host(url: str, near: bool) -> None:
    assert is_on_this_host(url) is near


def _is_tritonserver(process: psutil.Process, url: str) -> bool:
    try:
        listens = any(url.removeprefix("unix:").removesuffix(":0") in word for word in process.cmdline())
        return listens and process.name() == "tritonserver"
    except psutil.NoSuchProcess:  # an earlier test's, which is just about to end
        return False


async def _is(client: TritonClient, count: int) -> bool:
    return await regions(client) == count


async def _loads(client: TritonClient) -> bool:
    try:
        await client.load("mix")
    except UnavailableError:
        return False
    return True
