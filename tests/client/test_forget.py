"""Objects that the clients forget: the server has room for others, and a later prompt starts anew."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import polywand
from tests.interactors import Gate
from tests.running import Service

MODEL = "counter"
IMAGE = np.zeros((256, 256, 3), np.uint8)
CLICK = [(128, 128)]


def test_a_forgotten_object_starts_anew_and_all_may_be_forgotten(puppets: Service) -> None:
    with polywand.connect(puppets.target) as client, client.open(IMAGE) as session:

        def inferences(name: str) -> int:
            return session.prompt(MODEL, points=CLICK, object_id=name).timing.inferences

        assert [inferences(name) for name in "abab"] == [1, 1, 0, 0]
        session.forget("a")
        assert [inferences(name) for name in "ab"] == [1, 0]
        session.forget()
        assert [inferences(name) for name in "ab"] == [1, 1]
        session.forget("never seen")
        with pytest.raises(polywand.InvalidRequest, match="object_id"):
            session.forget("x" * 129)


def test_a_prompt_that_waits_for_a_forgotten_object_is_told(puppets: Service, puppet_models: Path) -> None:
    with (
        polywand.connect(puppets.target) as client,
        client.open(IMAGE) as session,
        ThreadPoolExecutor(1) as threads,
        Gate(puppet_models, MODEL) as gate,
    ):
        waiting = threads.submit(session.prompt, MODEL, points=CLICK, object_id="a")
        gate.wait_until_begun()
        session.forget("a")
        with pytest.raises(polywand.Superseded, match="forgotten"):
            waiting.result(30)
        gate.wait_until_cancelled()
        gate.let_through(9)
        assert session.prompt(MODEL, points=CLICK, object_id="a").skipped == 0


async def test_under_asyncio_too(puppets: Service) -> None:
    async with polywand.aio.connect(puppets.target) as client, client.open(IMAGE) as session, asyncio.timeout(60):
        assert (await session.prompt(MODEL, points=CLICK)).timing.inferences == 1
        await session.forget("")
        assert (await session.prompt(MODEL, points=CLICK)).timing.inferences == 1
        session.send(MODEL, points=CLICK, object_id="sent")
        await session.forget()
        assert (await session.prompt(MODEL, points=CLICK)).timing.inferences == 1
