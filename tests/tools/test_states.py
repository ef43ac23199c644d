"""The states of models and versions: whether to wait a moment, or for a repair."""

from dataclasses import replace

import pytest

from polywand_server.errors import Reason, UnavailableError
from polywand_server.tools.catalogue import BROKEN_RETRY_SECONDS, State
from polywand_server.triton.client import IndexEntry, ModelConfig
from tests.running import until
from tests.tools.scripted import ScriptedTriton
from tests.tools.test_registry import following

BROKEN = ("UNAVAILABLE", "Internal: the network is torn")
UNLOADED = ("UNAVAILABLE", "unloaded")
READY, LOADING, UNLOADING = ("READY", ""), ("LOADING", ""), ("UNLOADING", "")


class Listed(ScriptedTriton):
    """Lists what it is told to. The model `caller` calls `part`, which is no tool."""

    def __init__(self, *entries: IndexEntry) -> None:
        super().__init__()
        self.entries = list(entries)

    async def repository_index(self) -> list[IndexEntry]:
        return self.entries if self.is_up else await super().repository_index()

    async def model_config(self, name: str, version: int = 0) -> ModelConfig:
        config = await super().model_config(name, version)
        if name == "part":
            return replace(config, parameters={})
        return replace(config, parameters=config.parameters | ({"encoder": "part"} if name == "caller" else {}))


def entry(name: str, version: int, said: tuple[str, str]) -> IndexEntry:
    return IndexEntry(name, version, *said)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (READY, State.READY),
        (LOADING, State.LOADING),
        (UNLOADING, State.UNAVAILABLE),
        (BROKEN, State.FAILED),
    ],
)
async def test_a_version_has_the_state_that_triton_tells_and_its_model_that_of_the_best(said, state) -> None:
    async with following(Listed(entry("m", 1, said), entry("m", 2, BROKEN))) as (registry, _):
        (tool,) = registry.tools
        assert [version.state for version in tool.versions] == [state, State.FAILED]
        assert (tool.state, tool.ready, tool.reason == "") == (state, state is State.READY, state is State.READY)


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        ([(1, READY)], State.READY, ""),
        ([(1, LOADING)], State.LOADING, "its part 'part' is not ready: it is being loaded"),
        ([(1, UNLOADED)], State.UNAVAILABLE, "its part 'part' is not ready: unloaded"),
        ([(1, BROKEN)], State.FAILED, f"its part 'part' is not ready: {BROKEN[1]}"),
        ([(2, READY)], State.FAILED, "its part 'part' is not ready: it has no version 1 in service"),
        ([], State.FAILED, "its part 'part' is not ready: it has no version 1 in service"),
    ],
)
async def test_a_version_shares_the_state_of_a_part_that_is_not_ready(said, state, why) -> None:
    parts = [entry("part", *one) for one in said]
    async with following(Listed(entry("caller", 1, READY), *parts)) as (registry, _):
        tool = next(tool for tool in registry.tools if tool.name == "caller")
        assert (tool.state, tool.reason) == (state, why)
        assert [(version.state, version.reason) for version in tool.versions] == [(state, why)]


@pytest.mark.parametrize(("said", "is_long"), [(LOADING, False), (BROKEN, True)])
async def test_a_client_of_what_has_failed_is_told_to_wait_for_long(said, is_long) -> None:
    async with following(Listed(entry("m", 1, said), entry("n", 1, READY), entry("n", 2, said))) as (registry, _):
        for name, version in (("m", 0), ("n", 2)):
            with pytest.raises(UnavailableError) as caught:
                registry.interactor(name, version)
            assert (caught.value.retry_seconds == BROKEN_RETRY_SECONDS) is is_long


async def test_while_triton_is_away_all_are_unavailable_and_then_as_before() -> None:
    triton = Listed(entry("m", 1, READY), entry("n", 1, BROKEN))
    async with following(triton) as (registry, _):
        triton.is_up = False
        await registry.refresh()
        assert [tool.state for tool in registry.tools] == [State.UNAVAILABLE] * 2
        assert {version.state for tool in registry.tools for version in tool.versions} == {State.UNAVAILABLE}
        for name in ("m", "no such tool"):
            with pytest.raises(UnavailableError, match="Triton is away") as caught:
                registry.interactor(name, 0)
            assert caught.value.reason is Reason.TRITON_UNAVAILABLE
        triton.is_up = True
        await registry.refresh()
        assert [tool.state for tool in registry.tools] == [State.READY, State.FAILED]


async def test_a_model_that_is_loaded_again_is_loading() -> None:
    triton = ScriptedTriton("m", "n")
    async with following(triton, allowed=True) as (registry, _):
        triton.held.add("n")
        triton.restart()
        await registry.refresh()
        await until(lambda: [tool.state for tool in registry.tools] == [State.READY, State.LOADING])
        triton.held.clear()
        await until(lambda: [tool.state for tool in registry.tools] == [State.READY] * 2)


async def test_a_number_that_the_contract_cannot_hold_is_no_version_and_the_log_says_so_once(caplog) -> None:
    triton = Listed(*(entry("m", version, READY) for version in (0, 1, 2**32 - 1, 2**32)))
    async with following(triton) as (registry, _):
        for _ in range(3):
            await registry.refresh()
        (tool,) = registry.tools
        assert [version.version for version in tool.versions] == [1, 2**32 - 1]
        assert registry.interactor("m", 0).version == 2**32 - 1
    assert caplog.text.count("is ignored") == 2
    assert caplog.text.count(f"version {2**32} of model m is ignored") == 1
