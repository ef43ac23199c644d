"""The Python-based backend that stands in for NVIDIA's `onnxruntime`."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from polywand_server.errors import ModelFailedError
from polywand_server.triton.client import TritonClient
from polywand_server.triton.embedded.server import EmbeddedTriton
from tests.triton.models import WEIGHTS

pytestmark = pytest.mark.asyncio(loop_scope="session")

IMAGES = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
MIXED = (IMAGES.astype(np.float32) @ WEIGHTS.astype(np.float32))[:, None]

Pick = Callable[..., Awaitable[np.ndarray]]


@pytest_asyncio.fixture(loop_scope="session")
async def pick(client: TritonClient) -> Pick:
    await client.load("pick")

    async def run(*index: int) -> np.ndarray:
        inputs = {"INDEX": np.array([index], np.int64)}
        return (await client.infer("pick", 0, inputs, ["Y"], timeout_s=10.0))["Y"][0]

    return run


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("model", "tolerance"), [("mix", 0.0), ("mix_openvino_f32", 1e-3), ("mix_openvino_bf16", 4.0)])
async def test_a_network_answers_on_either_runtime(
    client: TritonClient, model: str, tolerance: float, rows: int
) -> None:
    await client.load(model)
    result = await client.infer(model, 0, {"IMAGE": IMAGES[:rows]}, ["LOGITS"], timeout_s=10.0)
    np.testing.assert_allclose(result["LOGITS"], MIXED[:rows], rtol=0, atol=tolerance)


async def test_rows_of_a_batch_are_answered_as_each_alone_before_and_after_they_run_side_by_side(
    client: TritonClient,
) -> None:
    """The network for rows side by side is compiled in the background, from the first batch on."""
    await client.load("mix_openvino_bf16")

    async def run(images: np.ndarray) -> np.ndarray:
        return (await client.infer("mix_openvino_bf16", 0, {"IMAGE": images}, ["LOGITS"], timeout_s=10.0))["LOGITS"]

    alone = np.concatenate([await run(IMAGES[row : row + 1]) for row in range(3)])
    for _ in range(100):
        for rows in (2, 3):
            np.testing.assert_array_equal(await run(IMAGES[:rows]), alone[:rows])
        await asyncio.sleep(0.01)


async def test_precision_auto_loads_on_every_processor(client: TritonClient) -> None:
    await client.load("mix_openvino_auto")
    result = await client.infer("mix_openvino_auto", 0, {"IMAGE": IMAGES}, ["LOGITS"], timeout_s=10.0)
    np.testing.assert_allclose(result["LOGITS"], MIXED, rtol=0, atol=4.0)


async def test_a_network_that_refuses_bfloat16_is_computed_in_single_precision(client: TritonClient) -> None:
    await client.load("mix_openvino_refusing")
    result = await client.infer("mix_openvino_refusing", 0, {"IMAGE": IMAGES}, ["LOGITS"], timeout_s=10.0)
    np.testing.assert_allclose(result["LOGITS"], MIXED, rtol=0, atol=1e-3)


async def test_an_unknown_precision_is_refused_at_load_with_the_known_ones(client: TritonClient) -> None:
    with pytest.raises(ModelFailedError, match="'f64'; it may be f32, bf16 or auto"):
        await client.load("mix_openvino_f64")


async def test_requests_of_one_batch_get_their_own_answers(pick: Pick) -> None:
    answers = await asyncio.gather(pick(0, 1), pick(2, 2), pick(1, 0), pick(1, 2))
    np.testing.assert_array_equal(answers, WEIGHTS[[[0, 1], [2, 2], [1, 0], [1, 2]]])


async def test_requests_of_different_shapes_are_answered_side_by_side(pick: Pick) -> None:
    answers = await asyncio.gather(pick(0), pick(0, 1, 2), pick(2), pick(1, 1, 1))
    for answer, index in zip(answers, ([0], [0, 1, 2], [2], [1, 1, 1]), strict=True):
        np.testing.assert_array_equal(answer, WEIGHTS[index])


async def test_a_request_that_fails_fails_alone(pick: Pick) -> None:
    answers = await asyncio.gather(pick(0, 1), pick(0, 99), pick(1, 0), pick(2, 2), return_exceptions=True)
    assert isinstance(answers[1], ModelFailedError)
    assert "indices" in str(answers[1])
    for place, index in ((0, [0, 1]), (2, [1, 0]), (3, [2, 2])):
        np.testing.assert_array_equal(answers[place], WEIGHTS[index])


async def test_cancelled_requests_harm_no_other(pick: Pick) -> None:
    calls = [asyncio.create_task(pick(number % 3)) for number in range(30)]
    await asyncio.sleep(0.01)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for number in range(1, 30, 2):
        np.testing.assert_array_equal(answers[number], WEIGHTS[[number % 3]])
    np.testing.assert_array_equal(await pick(1), WEIGHTS[[1]])


async def test_a_nice_model_steps_back_with_all_its_threads(client: TritonClient) -> None:
    def nice_processes() -> list[psutil.Process]:
        children = psutil.Process().children(recursive=True)
        return [child for child in children if child.name() == "triton_python_backend_stub" and child.nice() == 7]

    assert not nice_processes()
    await client.load("mix_nice")
    result = await client.infer("mix_nice", 0, {"IMAGE": IMAGES}, ["LOGITS"], timeout_s=10.0)
    np.testing.assert_array_equal(result["LOGITS"], MIXED)
    assert nice_processes()


async def test_onnx_runtime_keeps_no_telemetry(repository: Path, tmp_path: Path, monkeypatch) -> None:
    """It makes its files when it is imported."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    async with EmbeddedTriton(repository) as triton:
        client = TritonClient(triton.url)
        await client.load("mix")
        await client.infer("mix", 0, {"IMAGE": IMAGES[:1]}, ["LOGITS"], timeout_s=10.0)
        await client.close()
    assert os.listdir(tmp_path) == []
