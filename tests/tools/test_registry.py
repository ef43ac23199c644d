"""What the registry promises to its callers, and to those that wait for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from polywand_server.errors import NotFoundError, UnavailableError
from polywand_server.rpc.status import to_status
from polywand_server.tools.catalogue import join_names
from polywand_server.tools.folders import ModelFolders
from polywand_server.tools.loader import ModelLoader
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool
from tests.running import until
from tests.tools.scripted import ScriptedTriton

HEADERS_BYTES = 8 * 1024


@asynccontextmanager
async def following(triton: ScriptedTriton, *, allowed: bool = False) -> AsyncIterator[tuple[Registry, list[bool]]]:
    """A registry that polls when it is told to, and whether it was ready at each change that it told."""
    wake, published = asyncio.Event(), list[bool]()
    loader = ModelLoader(triton, ModelFolders(None, 0.0), allowed=allowed, on_change=wake.set)
    registry = Registry(
        triton,
        loader,
        ready_models=(),
        poll_seconds=60.0,
        wake=wake,
        on_change=lambda: published.append(registry.ready),
    )
    running = asyncio.create_task(registry.run())
    try:
        await registry.refresh()
        yield registry, published
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize("steps", range(12))
async def test_a_prompt_that_is_cancelled_while_it_waits_for_a_poll_takes_no_change_along(steps: int) -> None:
    triton = ScriptedTriton()
    async with following(triton) as (registry, published):
        assert published[-1] is True
        triton.is_up = False
        asking = asyncio.create_task(registry.refresh())
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        await registry.refresh()
        assert published[-1] is registry.ready is False
        triton.is_up = True
        await registry.refresh()
        assert published[-1] is registry.ready is True


async def test_after_an_unnoticed_restart_all_models_are_waited_for_again() -> None:
    triton = ScriptedTriton("m", "n")
    async with following(triton, allowed=True) as (registry, _):
        assert registry.ready
        triton.held.add("n")
        triton.restart()
        await registry.refresh()
        await until(lambda: [tool.ready for tool in registry.tools] == [True, False])
        assert registry.not_ready_reason == "still loading 1 of 2 models: n"
        triton.held.clear()
        await until(lambda: registry.ready)
        assert [tool.ready for tool in registry.tools] == [True, True]


async def test_callers_at_once_share_a_poll_that_began_after_they_called() -> None:
    triton = ScriptedTriton()
    async with following(triton) as (registry, _):
        before = triton.indices
        await asyncio.gather(*(registry.refresh() for _ in range(100)))
        assert before < triton.indices <= before + 2


async def test_a_refresh_after_the_end_does_not_wait_for_ever() -> None:
    async with following(ScriptedTriton()) as (registry, _):
        pass
    await asyncio.wait_for(registry.refresh(), 10)


async def test_a_tool_is_chosen_again_when_the_first_choice_has_just_gone() -> None:
    triton, used = ScriptedTriton(), []

    async def use(chosen: int) -> int:
        used.append(chosen)
        if chosen == 1:
            raise UnavailableError("it has just gone")
        return chosen

    async with following(triton) as (registry, _):
        choices = iter((1, 2))
        assert await use_tool(registry, lambda: next(choices), use) == 2
    assert used == [1, 2]


async def test_an_error_that_lists_names_fits_into_a_clients_headers() -> None:
    async with following(ScriptedTriton()) as (registry, _):
        await until(lambda: registry.ready)
        tool = registry.tools[0]
        registry._tools = {f"{number} {'ü' * 100}": tool for number in range(150)} | {"wand_click": tool}
        with pytest.raises(NotFoundError) as caught:
            registry.interactor("wand_clik", 0)
    status = to_status(caught.value)
    percent_encoded, base64 = 3 * len(status.message.encode()), 4 / 3 * status.ByteSize()
    assert percent_encoded + base64 < HEADERS_BYTES
    assert "there is no model 'wand_clik'; there are: wand_click, " in status.message
    assert status.message.endswith("more")


def test_few_names_are_all_listed_and_of_many_it_is_told_how_many_there_are_beside() -> None:
    assert join_names([]) == "none"
    assert join_names(["a", "b"]) == "a, b"
    assert join_names(f"{number:04}" for number in range(150)).endswith(" and 50 more")
