"""The book of open requests, fed with what a server may answer: what is sent again, when, and under which sequence."""

import time
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import polywand
from polywand.ledger import FIRST_REST_S, LONGEST_REST_S, Ledger, Update
from polywand.v1 import annotation_pb2 as pb

PATIENCE_S = 60.0


def ask(ledger: Ledger, object_id: str = "", patience_s: float = PATIENCE_S) -> tuple[int, Future[Any]]:
    waiter: Future[Any] = Future()
    message = pb.InteractRequest(prompt=pb.Prompt(model="m", object_id=object_id))
    return ledger.ask(message, waiter, patience_s), waiter


def ask_image(ledger: Ledger) -> tuple[int, Future[Any]]:
    waiter: Future[Any] = Future()
    return ledger.ask(pb.InteractRequest(image=pb.Image(encoded=b"x")), waiter, PATIENCE_S), waiter


def sent(ledger: Ledger) -> int:
    """Wait until something is to be sent, and return its sequence."""
    pause_s = ledger.pause_s()
    assert pause_s is not None
    time.sleep(pause_s)
    request = ledger.take()
    assert request is not None
    return request.sequence


def assert_rests(ledger: Ledger, reply: pb.InteractResponse, rest_s: float) -> None:
    started = time.monotonic()
    assert ledger.answer(reply) is None
    pause_s = ledger.pause_s()
    assert pause_s is not None
    assert pause_s <= rest_s <= pause_s + time.monotonic() - started


def refusal(
    sequence: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, retry_s: float | None = None
) -> pb.InteractResponse:
    status = status_pb2.Status(code=code.value[0], message="away")
    if retry_s is not None:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromMicroseconds(round(retry_s * 1e6))
        status.details.add().Pack(delay)
    return pb.InteractResponse(sequence=sequence, error=status)


def outline(sequence: int) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, segmentation=pb.Segmentation(model="m"))


def ready(sequence: int) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, image=pb.ImageInfo(width=4, height=3))


def test_what_met_an_absent_triton_is_sent_again_and_answered_under_the_sequence_that_was_asked() -> None:
    ledger = Ledger()
    asked, waiter = ask(ledger)
    on_the_wire = [sent(ledger)]
    for _ in range(3):
        assert ledger.answer(refusal(on_the_wire[-1])) is None
        on_the_wire.append(sent(ledger))
    assert all(earlier < later for earlier, later in pairwise(on_the_wire))
    assert not waiter.done()
    update = ledger.answer(outline(on_the_wire[-1]))
    assert isinstance(update, Update)
    assert (update.sequence, update.skipped) == (asked, 0)
    assert waiter.result(0) is update.result
    assert ledger.pause_s() is None


def test_rests_grow_up_to_the_longest() -> None:
    ledger = Ledger()
    ask(ledger)
    for rest_s in (FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S, 8 * FIRST_REST_S, LONGEST_REST_S):
        assert_rests(ledger, refusal(sent(ledger)), rest_s)


@pytest.mark.parametrize(("told_s", "rest_s"), [(0.3, 0.3), (2.5, 2.5), (0.0, FIRST_REST_S)])
def test_the_server_says_when_to_send_again(told_s: float, rest_s: float) -> None:
    ledger = Ledger()
    ask(ledger)
    assert_rests(ledger, refusal(sent(ledger), retry_s=told_s), rest_s)


def test_who_cannot_wait_so_long_gets_the_servers_error_and_its_word() -> None:
    ledger = Ledger()
    asked, waiter = ask(ledger, patience_s=2.0)
    update = ledger.answer(refusal(sent(ledger), retry_s=3.0))
    assert isinstance(update, Update)
    assert update.sequence == asked
    error = waiter.exception(0)
    assert error is update.result
    assert isinstance(error, polywand.Unavailable)
    assert str(error) == "away"
    assert error.retry_after_s == 3.0
    assert ledger.pause_s() is None


def test_whoever_gives_up_while_it_is_sent_again_is_told_why() -> None:
    ledger = Ledger()
    _, refused = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    _, unheard = ask(ledger, "other")
    assert sent(ledger) < sent(ledger)
    assert str(ledger.refusal(refused)) == "away"
    assert ledger.refusal(unheard) is None


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_other_errors_are_answers(code: grpc.StatusCode) -> None:
    ledger = Ledger()
    _, waiter = ask(ledger)
    assert isinstance(ledger.answer(refusal(sent(ledger), code, retry_s=0.1)), Update)
    assert waiter.exception(0).code is code
    assert ledger.pause_s() is None


def test_a_newer_prompt_stands_for_one_that_rests_and_for_one_that_is_refused_late() -> None:
    ledger = Ledger()
    _, resting = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    _, refused_late = ask(ledger)
    second = sent(ledger)
    newest, waiter = ask(ledger)
    third = sent(ledger)
    assert ledger.answer(refusal(second)) is None
    assert ledger.pause_s() is None
    update = ledger.answer(outline(third))
    assert isinstance(update, Update)
    assert (update.sequence, update.skipped) == (newest, 2)
    assert resting.result(0) is refused_late.result(0) is waiter.result(0) is update.result


def test_what_is_new_leaves_before_what_has_rested_and_sequences_never_decrease() -> None:
    ledger = Ledger()
    ask(ledger, "rested")
    first = sent(ledger)
    ledger.answer(refusal(first))
    time.sleep(FIRST_REST_S)
    _, fresh = ask(ledger, "fresh")
    on_the_wire = [sent(ledger), sent(ledger)]
    assert first < on_the_wire[0] < on_the_wire[1]
    ledger.answer(outline(on_the_wire[0]))
    assert fresh.done()


def test_an_image_is_sent_again_too() -> None:
    ledger = Ledger()
    _, waiter = ask_image(ledger)
    assert ledger.answer(refusal(sent(ledger))) is None
    assert not waiter.done()
    assert isinstance(ledger.answer(ready(sent(ledger))), pb.ImageInfo)
    assert waiter.result(0).width == 4


def test_what_rests_never_follows_a_newer_image() -> None:
    ledger = Ledger()
    _, prompt = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    ask_image(ledger)
    image = sent(ledger)
    time.sleep(FIRST_REST_S)
    assert ledger.take() is None
    ledger.answer(ready(image))
    assert isinstance(prompt.exception(0), polywand.Superseded)
    assert ledger.pause_s() is None


def test_what_rests_goes_on_when_the_newer_image_fails() -> None:
    ledger = Ledger()
    _, prompt = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    _, image = ask_image(ledger)
    ledger.answer(refusal(sent(ledger), grpc.StatusCode.INVALID_ARGUMENT))
    assert isinstance(image.exception(0), polywand.InvalidRequest)
    ledger.answer(outline(sent(ledger)))
    assert isinstance(prompt.result(0), polywand.Segmentation)


def test_an_image_that_never_left_shares_the_fate_of_the_one_that_replaced_it() -> None:
    ledger = Ledger()
    (_, first), (_, second) = ask_image(ledger), ask_image(ledger)
    ledger.answer(refusal(sent(ledger), grpc.StatusCode.INVALID_ARGUMENT))
    assert first.exception(0) is second.exception(0)
    (_, third), (_, fourth) = ask_image(ledger), ask_image(ledger)
    ledger.answer(ready(sent(ledger)))
    assert isinstance(third.exception(0), polywand.Superseded)
    assert fourth.done()


def test_the_end_of_the_stream_ends_what_rests() -> None:
    ledger = Ledger()
    _, waiter = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    ledger.answer(pb.InteractResponse(draining=pb.Draining(message="draining")))
    assert isinstance(waiter.exception(0), polywand.Draining)
    assert ledger.pause_s() is None
    assert ledger.take() is None
