"""Turns and precedence, as the service's tasks use them: their order, without a service around it."""

import asyncio
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from polywand_server.admission import turns as turns_module
from polywand_server.admission.permits import FramePermits
from polywand_server.admission.turns import MOST_IN_A_ROW, REST_SECONDS, TURNS_AFTER_REST, Turns
from polywand_server.caller import begin, identify
from polywand_server.errors import QuotaError
from polywand_server.lanes import PATIENCE_SECONDS, RightOfWay
from polywand_server.principal import Principal, Role
from polywand_server.timing import Stopwatch
from tests.running import run_the_others, until


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the turns, in seconds: it stands still until a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(turns_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def stream(
    turns: Turns, client: str, names: list[str], order: list[str], principal: str = ""
) -> list[asyncio.Task[None]]:
    """Tasks of one stream that all want a turn."""
    begin(client)
    if principal:
        identify(Principal(principal, frozenset(Role)))
    started = []

    async def one(name: str) -> None:
        async with turns.turn():
            order.append(name)
            await asyncio.sleep(0)

    for name in names:
        started.append(asyncio.create_task(one(name)))
        await asyncio.sleep(0)
    return started


async def without_a_rest(turns: Turns, *clients: str) -> None:
    """Let clients have turns one after another, until they are no new ones any more."""

    async def one(client: str) -> None:
        begin(client)
        for _ in range(TURNS_AFTER_REST):
            async with turns.turn():
                pass

    for client in clients:
        await asyncio.create_task(one(client))


async def gather(*streams: "asyncio.Task[list[asyncio.Task[None]]]") -> None:
    for started in await asyncio.gather(*streams):
        await asyncio.gather(*started)


async def test_clients_take_turns_and_so_do_the_streams_of_each():
    """One client has two streams of three, another one of two: four turns for one, then the other is next."""
    turns, order = Turns(1), list[str]()
    await without_a_rest(turns, "a", "b")
    async with turns.turn():  # so that all stand in line
        streams = []
        for client, names in (("a", ["a1", "a2", "a3"]), ("a", ["A1", "A2", "A3"]), ("b", ["b1", "b2"])):
            streams.append(asyncio.create_task(stream(turns, client, names, order)))
            await run_the_others()
    await gather(*streams)
    assert order == ["a1", "A1", "a2", "A2", "b1", "b2", "a3", "A3"]


async def test_principals_take_turns_however_many_connections_they_have_and_if_they_share_one():
    """As above: a has two connections, and b shares one of them, as behind a proxy."""
    turns, order = Turns(1), list[str]()
    await without_a_rest(turns, "a", "b")  # by these names, whatever the connection
    async with turns.turn():
        streams = []
        for client, principal, names in (("1", "a", "a1 a2 a3"), ("2", "a", "A1 A2 A3"), ("2", "b", "b1 b2")):
            streams.append(asyncio.create_task(stream(turns, client, names.split(), order, principal)))
            await run_the_others()
    await gather(*streams)
    assert order == ["a1", "A1", "a2", "A2", "b1", "b2", "a3", "A3"]


async def test_a_client_alone_has_all_turns_and_with_another_its_share():
    turns, order = Turns(4), list[str]()
    await without_a_rest(turns, "a")
    gate = asyncio.Event()

    async def hold(client: str, name: str) -> None:
        begin(client)
        async with turns.turn():
            order.append(name)
            await gate.wait()

    first = [asyncio.create_task(hold("a", f"a{number}")) for number in range(6)]
    await run_the_others()
    assert order == ["a0", "a1", "a2", "a3"]
    second = [asyncio.create_task(hold("b", f"b{number}")) for number in range(3)]
    await run_the_others()
    first[0].cancel()
    first[1].cancel()
    await run_the_others()
    assert order[4:] == ["b0", "b1"]  # half of the turns each
    gate.set()
    await asyncio.gather(*first, *second, return_exceptions=True)
    assert (turns.in_use, turns.waiting) == (0, 0)


async def test_interactive_turns_go_first_and_one_of_the_others_after_some_of_them(clock):
    """Six clients have rested and click; one wants many things without a rest, and stands in line before them."""
    turns, order = Turns(1), list[str]()
    annotators = [f"annotator {number}" for number in range(6)]
    await without_a_rest(turns, "bulk", *annotators)
    clock.now += 1.5 * REST_SECONDS
    await without_a_rest(turns, "bulk")
    begin("bulk")
    async with turns.turn():
        streams = [asyncio.create_task(stream(turns, "bulk", ["b1", "b2", "b3"], order))]
        await run_the_others()
        streams += [asyncio.create_task(stream(turns, annotator, [annotator], order)) for annotator in annotators]
        await run_the_others()
    await gather(*streams)
    first, rest = annotators[:MOST_IN_A_ROW], annotators[MOST_IN_A_ROW:]
    assert order == [*first, "b1", *rest, "b2", "b3"]


async def test_where_a_hand_is_expected_others_leave_it_turns(clock):
    turns, order = Turns(16), list[str]()
    gate = asyncio.Event()
    await without_a_rest(turns, "bulk", "annotator")
    clock.now += 1.5 * REST_SECONDS
    await without_a_rest(turns, "bulk")
    await asyncio.gather(*await asyncio.create_task(stream(turns, "annotator", ["a click"], [])))

    async def hold(client: str, name: str) -> None:
        begin(client)
        async with turns.turn():
            order.append(name)
            await gate.wait()

    bulk = [asyncio.create_task(hold("bulk", f"b{number}")) for number in range(6)]
    await run_the_others()
    assert order == ["b0", "b1"]  # an eighth of the turns
    annotator = asyncio.create_task(hold("annotator", "annotator"))
    await run_the_others()
    assert order == ["b0", "b1", "annotator"]
    gate.set()
    await asyncio.gather(*bulk, annotator)


async def test_a_task_that_leaves_the_line_takes_no_turn():
    turns, order = Turns(1), list[str]()
    async with turns.turn():
        (leaves, stays) = await asyncio.create_task(stream(turns, "a", ["leaves", "stays"], order))
        leaves.cancel()
    await asyncio.gather(leaves, stays, return_exceptions=True)
    assert order == ["stays"]
    assert (turns.in_use, turns.waiting) == (0, 0)


async def test_a_line_has_an_end_and_each_client_its_share_of_it():
    turns, order = Turns(1, most_waiting=4, what="calls"), list[str]()
    async with turns.turn():
        first = await asyncio.create_task(stream(turns, "a", ["a1", "a2", "a3", "a4", "a5"], order))
        second = await asyncio.create_task(stream(turns, "b", ["b1", "b2", "b3"], order))
    results = await asyncio.gather(*first, *second, return_exceptions=True)
    refused = [isinstance(result, QuotaError) for result in results]
    assert refused == [False, False, False, False, True, False, False, True]
    with pytest.raises(QuotaError, match="wait for calls already, of at most 4"):
        raise results[-1]


async def test_a_frame_of_many_outlines_lets_others_go_between_two_batches():
    """Where nothing waits, it goes on; and where too much is held already, it goes on."""
    permits, order, gate = FramePermits(Turns(1), paused_bytes=100), list[str](), asyncio.Event()

    async def frame(client: str, batches: int, nbytes: int) -> None:
        begin(client)
        async with permits.permit(AsyncExitStack()) as permit:
            for number in range(batches):
                if number:
                    await permit.yield_to_others(nbytes, Stopwatch())
                order.append(client)
                await gate.wait()

    async def play(nbytes: int) -> list[str]:
        order.clear()
        gate.clear()
        tasks = [asyncio.create_task(frame("many", 4, nbytes))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(frame(client, 1, nbytes)) for client in ("one", "two")]
        await until(lambda: permits.turns.waiting == 2)
        gate.set()
        await asyncio.gather(*tasks)
        assert (permits.turns.in_use, permits.turns.waiting) == (0, 0)
        return list(order)

    assert (await play(nbytes=100))[-1] == "many"
    assert await play(nbytes=101) == ["many", "many", "many", "many", "one", "two"]
    assert (await play(nbytes=100))[-1] == "many"


async def test_a_frame_that_is_cancelled_while_others_go_leaves_no_permit_taken():
    permits = FramePermits(Turns(1), paused_bytes=100)
    gate = asyncio.Event()

    calls = Turns(1)

    async def many() -> None:
        async with AsyncExitStack() as until_paused:
            await until_paused.enter_async_context(calls.turn())
            await hold(until_paused)

    async def hold(until_paused: AsyncExitStack) -> None:
        async with permits.permit(until_paused) as permit:
            await asyncio.sleep(0)
            await permit.yield_to_others(100, Stopwatch())

    async def one() -> None:
        async with permits.permit(AsyncExitStack()):
            await gate.wait()

    first = asyncio.create_task(many())
    await asyncio.sleep(0)
    second = asyncio.create_task(one())
    await until(lambda: calls.in_use == 0)  # nor does it keep others from being read
    first.cancel()
    gate.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert (permits.turns.in_use, permits.turns.waiting) == (0, 0)
    assert permits.try_to_pause(100)


async def test_a_drag_leaves_frames_one_stage_in_a_quarter_of_a_second():
    """A drag's prompts follow one another without a pause; between two of them no frame slips through."""
    precedence, stages = RightOfWay(), 0

    async def frames() -> None:
        nonlocal stages
        while True:
            await precedence.frame()
            stages += 1
            await asyncio.sleep(0.001)

    release = precedence.prompt()
    waiting = [asyncio.create_task(frames()) for _ in range(2)]
    began = time.monotonic()
    for _ in range(25):
        await asyncio.sleep(0.02)
        following = precedence.prompt()  # the next is taken while the outline of the last is drawn
        release()
        release = following
    elapsed, during = time.monotonic() - began, stages
    release()
    assert during <= elapsed / PATIENCE_SECONDS
    await until(lambda: stages > during)  # there is a pause now
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
