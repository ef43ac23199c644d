"""A session's promises where something goes wrong inside of it: no prompt without an answer, nothing left behind."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polywand_pictures import PixelFormat, RawPixels
from polywand_server.admission.quotas import Accounts
from polywand_server.config import Limits
from polywand_server.errors import InternalError
from polywand_server.geometry.seeds import RleSeed
from polywand_server.images import Picture, RawImage
from polywand_server.images.holders import Holders
from polywand_server.images.lease import Holding, Key, Lease
from polywand_server.interactors.prompt import Incomplete, Label, Point, Prompt
from polywand_server.lanes import RightOfWay
from polywand_server.ops import metrics
from polywand_server.session.answers import ImageReady, Reply
from polywand_server.session.backlog import BACKLOG_BYTES
from polywand_server.session.counts import PromptCounts
from polywand_server.session.outbox import Unread
from polywand_server.session.services import Services
from polywand_server.session.stream import Session
from polywand_server.timing import Stopwatch
from tests.running import run_the_others, until

SOURCE = RawImage(RawPixels(bytes(12), 2, 2, PixelFormat.RGB8), "image.raw")
LACKING = Incomplete(positive=1)


class Tools:
    """The predictors of all images: every prompt lacks something, as soon as the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.farewell = asyncio.Event()
        self.farewell.set()
        self.begun = 0
        self.fails_to_count = 0

    def on(self, picture: Picture) -> "Tools":
        self.picture = picture
        return self

    def close(self) -> None:
        pass

    def check(self, prompt: Prompt) -> None:
        pass

    async def find(self, *_: object) -> Incomplete:
        self.begun += 1
        try:
            await self.gate.wait()
        finally:
            await self.farewell.wait()
        return LACKING

    def knows(self, _name: str) -> bool:
        if self.fails_to_count:
            self.fails_to_count -= 1
            raise RuntimeError("counting went wrong")
        return True


class Store:
    async def lease(self, *_: object, **__: object) -> Lease:
        picture = Picture((np.zeros((2, 2, 3), np.uint8),))
        return Lease(Holding(Key("", bytes(32), None), result=picture), lambda _: None)


class UnsoundRightOfWay(RightOfWay):
    """Fails when the first prompt is over."""

    def __init__(self) -> None:
        super().__init__()
        self._fails = True

    def prompt(self) -> Callable[[], None]:
        release = super().prompt()

        def unsound() -> None:
            if self._fails:
                self._fails = False
                raise RuntimeError("it went wrong")
            release()

        return unsound


def session(tools: Tools, right_of_way: RightOfWay | None = None) -> Session:
    services: Any = Services(
        store=Store(),
        new_predictor=tools.on,
        right_of_way=right_of_way or RightOfWay(),
        holders=Holders(),
        unread=Unread(2**20, 2**20),
        counts=PromptCounts(tools.knows),
        accounts=Accounts(lambda principal: principal.quotas),
        limits=Limits(),
    )
    return Session(services, "a client", overflow=lambda: None)


def click(object_id: str = "", x: float = 1, seed_bytes: int = 0) -> Prompt:
    seed = RleSeed("0" * seed_bytes, 2, 2) if seed_bytes else None
    return Prompt("tool", 1, object_id, (Point(x, 1, Label.NEGATIVE),), seed=seed)


async def replies_of(stream: Session) -> list[Reply]:
    await stream.finish()
    return [reply async for reply in stream.replies()]


@pytest.mark.parametrize("where", ["before the reply", "after the reply"])
async def test_an_unexpected_failure_is_answered_logged_and_counted_and_costs_no_other_prompt(
    where: str, caplog: pytest.LogCaptureFixture
):
    tools = Tools()
    errors = metrics.PROMPTS.labels("tool", "error")._value.get()
    async with session(tools, UnsoundRightOfWay() if where == "before the reply" else None) as stream:
        await stream.set_image(1, SOURCE, Stopwatch())
        tools.gate.clear()
        await stream.submit(2, click(x=1), Stopwatch())
        await until(lambda: tools.begun == 1)
        await stream.submit(3, click(x=2), Stopwatch())  # it is in work when the first one's end goes wrong
        tools.fails_to_count = int(where == "after the reply")
        with caplog.at_level(logging.ERROR):
            tools.gate.set()
            replies = await replies_of(stream)
    assert [reply.sequence for reply in replies] == [1, 2, 3]
    assert isinstance(replies[0].result, ImageReady)
    first, second = (reply.result for reply in replies[1:])
    assert second is LACKING
    if where == "before the reply":
        assert isinstance(first, InternalError)
        assert metrics.PROMPTS.labels("tool", "error")._value.get() == errors + 1
    assert "went wrong" in caplog.text


async def test_the_newest_prompt_of_an_object_replaces_the_one_that_waits_however_much_waits():
    tools = Tools()
    half = BACKLOG_BYTES // 2 - 4096
    async with session(tools) as stream:
        await stream.set_image(1, SOURCE, Stopwatch())
        tools.gate.clear()
        for name in "ab":
            await stream.submit(2, click(name), Stopwatch())
        await until(lambda: tools.begun == 2)
        for name in "ab":  # these wait, and fill all that may wait
            await stream.submit(3, click(name, seed_bytes=half), Stopwatch())
        async with asyncio.timeout(10):
            await stream.submit(4, click("a", seed_bytes=half), Stopwatch())
        another = asyncio.create_task(stream.submit(5, click("c", seed_bytes=half), Stopwatch()))
        await run_the_others()
        assert not another.done()  # it would come on top
        tools.gate.set()
        await another
        replies = await replies_of(stream)
    assert sorted(reply.sequence for reply in replies) == [1, 2, 2, 3, 4, 5]
    assert sum(reply.skipped for reply in replies) == 1


async def test_a_stream_that_is_cancelled_twice_while_it_ends_leaves_nothing_behind():
    tools = Tools()
    skipped = metrics.PROMPTS_SKIPPED.labels("tool")._value.get()
    stream = session(tools)

    async def call() -> None:
        async with stream:
            await stream.set_image(1, SOURCE, Stopwatch())
            await stream.submit(2, click(), Stopwatch())
            await asyncio.Event().wait()

    tools.gate.clear()
    tools.farewell.clear()
    task = asyncio.create_task(call())
    await until(lambda: tools.begun == 1)
    await cancel_twice(task)
    assert stream.image_lease is None
    assert metrics.PROMPTS_SKIPPED.labels("tool")._value.get() == skipped + 1
    assert metrics.REPLY_MEMORY._value.get() == 0
    tools.farewell.set()


async def cancel_twice(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await run_the_others()
    assert not task.done()  # what it has in work is not over yet
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait((task,))
    assert task.cancelled()
