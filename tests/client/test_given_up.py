"""Images that the server gave up while a stream was idle: they are sent again, and their prompts after them."""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import grpc
import pytest

import polywand
from polywand.answers import Update
from polywand.backoff import FIRST_IMAGE_DELAY_S
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.ledgers import OneStream, ask, ask_image, sent, unstretched, updated
from tests.client.scripted import Script, full, given_up, outline, ready, refusal, scripted_server

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def opened() -> OneStream:
    """A ledger whose server holds the image b"first"."""
    ledger = OneStream(unstretched)
    ask_image(ledger, b"first")
    ledger.answer(ready(sent(ledger)))
    return ledger


def leaves(ledger: OneStream) -> tuple[str, int]:
    """Take what is to be sent at once: the image's bytes or the prompt's object, and the sequence."""
    request = ledger.pop()
    assert request is not None
    what = request.image.encoded.decode() if request.HasField("image") else request.prompt.object_id
    return what, request.sequence


def test_the_image_is_sent_again_and_then_the_prompt() -> None:
    ledger = opened()
    asked, waiter = ask(ledger, "a")
    refused = sent(ledger)
    assert ledger.answer(given_up(refused)) == []
    what, image = leaves(ledger)
    assert what == "first"
    assert ledger.pause_s() is None
    assert ledger.answer(ready(image)) == []  # and not an image that is news to the session
    what, again = leaves(ledger)
    assert what == "a"
    assert refused < image < again
    update = updated(ledger, outline(again))
    assert (update.sequence, update.skipped) == (asked, 0)
    assert waiter.result(0) is update.result
    assert ledger.pause_s() is None


def test_several_objects_refused_at_once_need_the_image_once_and_of_each_the_newest_prompt() -> None:
    ledger = opened()
    older, newer, other = ask(ledger, "a"), None, ask(ledger, "b")
    sequences = [sent(ledger), sent(ledger)]
    newer = ask(ledger, "a")
    sequences.append(sent(ledger))
    for sequence in sequences:
        ledger.answer(given_up(sequence))
    what, image = leaves(ledger)
    assert what == "first"
    assert ledger.pop() is None
    ledger.answer(ready(image))
    again = dict(leaves(ledger) for _ in range(2))
    update = updated(ledger, outline(again["a"]))
    assert (update.sequence, update.skipped) == (newer[0], 1)
    assert older[1].result(0) is newer[1].result(0)
    ledger.answer(outline(again["b"]))
    assert other[1].done()
    assert ledger.pop() is None


def test_prompts_that_are_asked_meanwhile_wait_for_the_image() -> None:
    ledger = opened()
    ask(ledger, "a")
    ledger.answer(given_up(sent(ledger)))
    ask(ledger, "early")
    _, image = leaves(ledger)
    ask(ledger, "late")
    ask(ledger, "a")
    assert ledger.pause_s() is None
    ledger.answer(ready(image))
    left = [leaves(ledger) for _ in range(3)]
    assert {what for what, _ in left} == {"a", "early", "late"}
    assert all(earlier < later for (_, earlier), (_, later) in pairwise([("first", image), *left]))
    assert ledger.pop() is None


def test_a_refusal_that_was_said_before_the_image_came_again_is_no_news() -> None:
    ledger = opened()
    ask(ledger, "a")
    ask(ledger, "b")
    first, second = sent(ledger), sent(ledger)
    ledger.answer(given_up(first))
    ledger.answer(ready(sent(ledger)))
    assert ledger.answer(given_up(second)) == []
    assert [leaves(ledger)[0], leaves(ledger)[0]] == ["a", "b"]


def test_a_newer_image_takes_the_place_of_the_one_that_was_given_up() -> None:
    ledger = opened()
    _, prompt = ask(ledger, "a")
    ledger.answer(given_up(sent(ledger)))
    ask_image(ledger, b"second")  # before the first has left again
    what, image = leaves(ledger)
    assert what == "second"
    assert ledger.pop() is None
    assert isinstance(ledger.answer(ready(image)), pb.ImageInfo)
    assert isinstance(prompt.exception(0), polywand.Superseded)
    assert ledger.pause_s() is None


def test_a_newer_image_may_cross_the_one_that_is_sent_again() -> None:
    ledger = opened()
    _, prompt = ask(ledger, "a")
    ledger.answer(given_up(sent(ledger)))
    _, image = leaves(ledger)
    _, asked_between = ask(ledger, "b")
    _, waiter = ask_image(ledger, b"second")
    what, newer = leaves(ledger)
    assert what == "second"
    assert ledger.answer(ready(image)) == []
    assert ledger.pop() is None  # the prompts must not follow the newer image
    ledger.answer(ready(newer))
    assert waiter.done()
    for superseded in (prompt, asked_between):
        assert isinstance(superseded.exception(0), polywand.Superseded)
    assert ledger.pause_s() is None


@pytest.mark.parametrize("crosses", [False, True])
def test_when_the_newer_image_fails_the_one_that_was_given_up_is_sent_again(crosses: bool) -> None:
    ledger = opened()
    _, prompt = ask(ledger, "a")
    ledger.answer(given_up(sent(ledger)))
    if crosses:
        leaves(ledger)  # and is skipped by the server, for the newer one
    _, newer = ask_image(ledger, b"broken")
    ledger.answer(refusal(sent(ledger), INVALID))
    assert isinstance(newer.exception(0), polywand.InvalidRequest)
    ledger.answer(ready(sent(ledger)))
    ledger.answer(outline(sent(ledger)))
    assert isinstance(prompt.result(0), polywand.Segmentation)


def test_an_image_that_the_server_will_not_take_again_fails_the_prompts_and_says_so() -> None:
    ledger = opened()
    asked = {name: ask(ledger, name) for name in ("a", "b")}
    for sequence in (sent(ledger), sent(ledger)):
        ledger.answer(given_up(sequence))
    _, image = leaves(ledger)
    asked["c"] = ask(ledger, "c")
    updates = ledger.answer(refusal(image, INVALID))
    assert isinstance(updates, list)
    assert [(update.object_id, update.sequence) for update in updates] == [(name, asked[name][0]) for name in "abc"]
    for update in updates:
        error = asked[update.object_id][1].exception(0)
        assert error is update.result
        assert isinstance(error, polywand.InvalidRequest)
        assert str(error) == "The server does not have the image of this session, and refused it when sent again: away"
    assert ledger.pause_s() is None


def test_a_full_server_is_sent_the_image_again_after_rests_that_grow_while_prompts_have_time() -> None:
    ledger = opened()
    _, patient = ask(ledger, "patient")
    asked, hasty = ask(ledger, "hasty", patience_s=0.3)
    for sequence in (sent(ledger), sent(ledger)):
        ledger.answer(given_up(sequence))
    update = updated(ledger, full(sent(ledger)))
    assert update == Update("hasty", asked, 0, hasty.exception(0))
    assert isinstance(update.result, polywand.QuotaExceeded)
    assert "refused it when sent again: the server is full" in str(update.result)
    assert update.result.quotas
    pause_s = ledger.pause_s()
    assert pause_s is not None
    assert FIRST_IMAGE_DELAY_S - 0.1 < pause_s <= FIRST_IMAGE_DELAY_S
    assert str(ledger.refusal(patient)) == str(update.result)
    image = sent(ledger)
    ledger.answer(ready(image))
    ledger.answer(outline(sent(ledger)))
    assert isinstance(patient.result(0), polywand.Segmentation)


def test_an_image_that_is_given_up_again_at_once_is_not_sent_again_at_once() -> None:
    ledger = opened()
    _, waiter = ask(ledger, "a")
    ledger.answer(given_up(sent(ledger)))
    ledger.answer(ready(sent(ledger)))
    ledger.answer(given_up(sent(ledger)))
    pause_s = ledger.pause_s()
    assert pause_s is not None
    assert FIRST_IMAGE_DELAY_S - 0.1 < pause_s <= FIRST_IMAGE_DELAY_S
    ledger.answer(ready(sent(ledger)))
    ledger.answer(outline(sent(ledger)))
    assert waiter.done()
    ask(ledger, "a")
    ledger.answer(given_up(sent(ledger)))
    assert leaves(ledger)[0] == "first"  # an outline has come in between


def test_a_prompt_whose_time_is_over_does_not_bring_the_image_back() -> None:
    ledger = opened()
    _, waiter = ask(ledger, "a", patience_s=0.0)
    update = updated(ledger, given_up(sent(ledger)))
    assert waiter.exception(0) is update.result
    assert isinstance(update.result, polywand.Unavailable)
    assert update.result.code is grpc.StatusCode.FAILED_PRECONDITION
    assert ledger.pause_s() is None


def forgetful() -> Script:
    """A server that gives up its image after each third prompt."""
    held, answered = False, itertools.count(1)

    def answer(request: pb.InteractRequest) -> pb.InteractResponse:
        nonlocal held
        if request.HasField("image"):
            held = True
            return ready()
        if not held:
            return given_up()
        held = next(answered) % 3 != 0
        return outline()

    return Script(interact=answer)


def test_a_session_never_notices_that_its_image_was_given_up() -> None:
    script = forgetful()
    with scripted_server(script) as target, polywand.connect(target) as client, client.open(b"photo") as session:
        for _ in range(7):
            assert session.prompt("m", positive=[(1, 1)]).model == "m"
        with ThreadPoolExecutor(4) as threads:
            for answer in [threads.submit(session.prompt, "m", object_id=str(n)) for n in range(4)]:
                assert answer.result(20).model == "m"
    assert script.kinds[:5] == ["image", "", "", "", ""]
    assert script.kinds[5:7] == ["image", ""]
    assert all(earlier < later for earlier, later in pairwise(script.sequences))
    images = [message for _, message in script.arrivals if message.HasField("image")]
    assert {message.image.encoded for message in images} == {b"photo"}


async def test_a_drag_never_notices_that_its_image_was_given_up() -> None:
    script = forgetful()
    with scripted_server(script) as target:
        async with (
            polywand.aio.connect(target) as client,
            client.open(b"photo") as session,
            aclosing(session.updates()) as updates,
            asyncio.timeout(30),
        ):
            for x in range(10):
                number = session.send("m", positive=[(x, 1)])
                async for update in updates:
                    assert isinstance(update.result, polywand.Segmentation)
                    if update.sequence == number:
                        break
            outlines = await asyncio.gather(*(session.prompt("m", object_id=str(n)) for n in range(4)))
            assert len(outlines) == 4
    assert script.kinds.count("image") > 3
    assert all(earlier < later for earlier, later in pairwise(script.sequences))


async def test_an_image_that_cannot_be_sent_again_is_told_to_prompts_and_updates() -> None:
    answers = iter([ready(), given_up(), refusal(0, INVALID), given_up(), refusal(0, INVALID)])
    with scripted_server(Script(interact=lambda _: next(answers))) as target:
        async with polywand.aio.connect(target) as client, client.open(b"photo") as session, asyncio.timeout(30):
            with pytest.raises(
                polywand.InvalidRequest, match="does not have the image of this session, and refused it"
            ):
                await session.prompt("m")
            number = session.send("m", object_id="dragged")
            async with aclosing(session.updates()) as updates:
                told = {update.object_id: update async for update in _first(updates, 2)}
    assert told["dragged"].sequence == number
    assert isinstance(told["dragged"].result, polywand.InvalidRequest)


async def _first(updates: Any, count: int) -> Any:
    for _ in range(count):
        yield await anext(updates)
