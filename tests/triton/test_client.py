"""The client against a real tritonserver: what it returns, and what its errors are."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from polywand_server.errors import DeadlineError, ModelFailedError, UnavailableError
from polywand_server.ops.triton_metrics import TritonMetrics
from polywand_server.triton.client import DeadProcess, TensorConfig, TritonClient
from polywand_server.triton.embedded.server import EmbeddedTriton
from polywand_server.triton.failures import ModelDiedError
from tests.triton.models import ANSWERS_NOTHING, DIES, RAISES
from tests.triton.servers import running_triton

pytestmark = pytest.mark.asyncio(loop_scope="session")

IDLE = 0


async def order(client: TritonClient, what: int, *, timeout_s: float = 25.0, rows: int = 1) -> np.ndarray:
    """Tell the puppet what to do."""
    x = np.full((rows, 2, 3), what, np.float32)
    return (await client.infer("puppet", 0, {"X": x}, ["Y"], timeout_s=timeout_s))["Y"]


@pytest_asyncio.fixture(loop_scope="session")
async def puppet(client: TritonClient) -> TritonClient:
    await client.load("puppet")
    return client


async def test_a_started_server_is_live_and_ready(client: TritonClient) -> None:
    assert await client.server_live(5.0)
    assert await client.server_ready(5.0)


async def test_the_index_lists_models_that_were_never_loaded(client: TritonClient) -> None:
    entry = next(entry for entry in await client.repository_index() if entry.name == "never_loaded")
    assert (entry.version, entry.state) == (None, "")


async def test_a_loaded_model_is_ready_and_tells_its_configuration(puppet: TritonClient) -> None:
    entry = next(entry for entry in await puppet.repository_index() if entry.name == "puppet")
    assert (entry.version, entry.state) == (1, "READY")
    config = await puppet.model_config("puppet", 1)
    assert config.inputs == {"X": TensorConfig("FP32", (-1, 3))}
    assert config.outputs == {"Y": TensorConfig("FP32", (-1, 3))}
    assert config.max_batch_size == 4
    assert config.parameters == {"polywand": '{"kind": "puppet"}'}


async def test_tensors_come_back_as_they_went(puppet: TritonClient) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 3), np.float32)
    x[:, 0, 0] = 0
    result = await puppet.infer("puppet", 1, {"X": x}, ["Y"], timeout_s=5.0, request_id="r1")
    np.testing.assert_array_equal(result["Y"], x)


async def test_a_strided_view_is_sent_as_it_reads(puppet: TritonClient) -> None:
    x = np.zeros((1, 3, 4), np.float32).transpose(0, 2, 1)
    x[0, :, 1] = np.arange(4)
    result = await puppet.infer("puppet", 0, {"X": x}, ["Y"], timeout_s=5.0)
    np.testing.assert_array_equal(result["Y"], x)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ({"X": np.zeros((1, 2, 4), np.float32)}, ["Y"], "Expected [-1,-1,3], got [1,2,4]"),
        ({"X": np.zeros((1, 2, 3), np.float64)}, ["Y"], "FP64"),
        ({"X": np.zeros((5, 2, 3), np.float32)}, ["Y"], "batch-size must be <= 4"),
        ({"Z": np.zeros((1, 2, 3), np.float32)}, ["Y"], "unexpected inference input 'Z'"),
        ({"X": np.zeros((1, 2, 3), np.float32)}, ["Z"], "unexpected inference output 'Z'"),
    ],
)
async def test_what_the_model_refuses_is_a_model_failure_in_tritons_words(
    puppet: TritonClient, inputs: dict[str, np.ndarray], outputs: list[str], says: str
) -> None:
    with pytest.raises(ModelFailedError) as caught:
        await puppet.infer("puppet", 0, inputs, outputs, timeout_s=5.0)
    assert says in str(caught.value)


async def test_an_exception_in_a_model_is_a_model_failure_without_a_trace(puppet: TritonClient) -> None:
    with pytest.raises(ModelFailedError, match="strings cut") as caught:
        await order(puppet, RAISES)
    assert "model.py" not in str(caught.value)


async def test_a_missing_output_is_a_model_failure(puppet: TritonClient) -> None:
    with pytest.raises(ModelFailedError, match="without output Y"):
        await order(puppet, ANSWERS_NOTHING)


@pytest.mark.parametrize(("model", "version"), [("unknown", 0), ("never_loaded", 0), ("puppet", 7)])
async def test_a_model_that_is_not_loaded_is_unavailable(puppet: TritonClient, model: str, version: int) -> None:
    with pytest.raises(UnavailableError, match=f"{model}.* is not loaded"):
        await puppet.infer(model, version, {"X": np.zeros((1, 2, 3), np.float32)}, ["Y"], timeout_s=5.0)
    with pytest.raises(UnavailableError, match=f"{model}.* is not loaded"):
        await puppet.model_config(model, version)


async def test_a_model_that_cannot_be_loaded_says_why(client: TritonClient) -> None:
    with pytest.raises(ModelFailedError, match="No module named 'nothing_of_that_name'"):
        await client.load("doomed")
    entry = next(entry for entry in await client.repository_index() if entry.name == "doomed")
    assert entry.state == "UNAVAILABLE"
    assert "nothing_of_that_name" in entry.reason


async def test_an_unloaded_model_is_gone(puppet: TritonClient) -> None:
    await puppet.unload("puppet")
    with pytest.raises(UnavailableError):
        await order(puppet, IDLE)


async def test_too_slow_an_answer_is_a_missed_deadline(puppet: TritonClient) -> None:
    with pytest.raises(DeadlineError):
        await order(puppet, 2000, timeout_s=0.2)


async def test_a_cancelled_call_frees_the_model(puppet: TritonClient) -> None:
    slow = asyncio.create_task(order(puppet, 30_000, timeout_s=60))
    await asyncio.sleep(0.2)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    started = time.monotonic()
    await order(puppet, IDLE)
    assert time.monotonic() - started < 20  # of the thirty seconds that it had to go


async def test_an_urgent_request_overtakes_those_that_wait(repository: Path) -> None:
    async with running_triton(repository) as own:
        page = TritonMetrics(own.metrics_url)
        client = TritonClient(own.url)
        await client.load("queue")
        finished: list[str] = []

        async def ask(name: str, priority: int, milliseconds: int = 20) -> None:
            x = np.full((1, 2, 3), milliseconds, np.float32)
            await client.infer("queue", 0, {"X": x}, ["Y"], timeout_s=60, priority=priority)
            finished.append(name)

        holder = asyncio.create_task(ask("holder", 0, 60_000))  # until all the others wait
        waiting = [asyncio.create_task(ask(f"ordinary {number}", 0)) for number in range(6)]
        await until_pending(page, "queue", 6)
        waiting.append(asyncio.create_task(ask("urgent", 1)))
        await until_pending(page, "queue", 7)
        holder.cancel()
        await asyncio.gather(*waiting)
        await client.close()
    # One that Triton has handed on already cannot be overtaken.
    assert finished.index("urgent") <= 1


async def until_pending(page: TritonMetrics, model: str, requests: int) -> None:
    """Wait until so many requests to a model wait in Triton, by its metrics."""
    name = f'nv_inference_pending_request_count{{model="{model}"'
    async with asyncio.timeout(60):
        while True:
            lines = (await page.get()).decode().splitlines()
            if sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith(name)) >= requests:
                return
            await asyncio.sleep(0.02)


async def test_a_request_that_finds_the_process_of_a_model_dead_says_so(triton: EmbeddedTriton) -> None:
    told: list[DeadProcess] = []
    client = TritonClient(triton.url, on_dead_process=told.append)
    await client.load("puppet")
    with pytest.raises(ModelDiedError):
        await order(client, DIES)
    await client.unload("puppet")
    await client.close()
    assert [death.model for death in told] == ["puppet"]


async def test_a_model_tells_whether_requests_failed_since_it_was_loaded(puppet: TritonClient) -> None:
    await puppet.unload("puppet")
    with pytest.raises(ModelFailedError):
        await puppet.has_failed_requests("puppet")
    await puppet.load("puppet")
    await order(puppet, IDLE)
    assert not await puppet.has_failed_requests("puppet")
    with pytest.raises(ModelFailedError):
        await order(puppet, RAISES)
    for _ in range(500):
        if await puppet.has_failed_requests("puppet"):
            return
        await asyncio.sleep(0.02)  # Triton answers first, and counts then
    pytest.fail("the failure was not counted")


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    client = TritonClient(f"unix:{tmp_path}/nothing")
    assert not await client.server_live(1.0)
    assert not await client.server_ready(1.0)
    with pytest.raises(UnavailableError, match="is away"):
        await client.repository_index()
    with pytest.raises(UnavailableError, match="is away"):
        await order(client, IDLE)
    await client.close()


async def test_a_type_that_no_tensor_has_is_refused_before_it_is_sent(puppet: TritonClient) -> None:
    with pytest.raises(TypeError, match="complex64"):
        await puppet.infer("puppet", 0, {"X": np.zeros((1, 2, 3), np.complex64)}, ["Y"], timeout_s=5.0)
