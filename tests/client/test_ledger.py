"""The book of open requests, fed with what a server may answer: what is sent again, when, and under which sequence."""

import time
from itertools import pairwise

import grpc
import pytest

import polywand
from polywand.backoff import FIRST_DELAY_S, FIRST_IMAGE_DELAY_S
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.ledgers import DRAINING, LOST, OneStream, ask, ask_image, sent, unstretched, updated
from tests.client.scripted import QUOTA, full, outline, ready, refusal


def assert_delay(ledger: OneStream, reply: pb.InteractResponse, delay_s: float) -> None:
    started = time.monotonic()
    assert ledger.answer(reply) == []
    pause_s = ledger.pause_s()
    assert pause_s is not None
    assert pause_s <= delay_s <= pause_s + time.monotonic() - started


def test_what_met_an_absent_triton_is_sent_again_and_answered_under_the_sequence_that_was_asked() -> None:
    ledger = OneStream()
    asked, waiter = ask(ledger)
    on_the_wire = [sent(ledger)]
    for _ in range(3):
        assert ledger.answer(refusal(on_the_wire[-1])) == []
        on_the_wire.append(sent(ledger))
    assert all(earlier < later for earlier, later in pairwise(on_the_wire))
    assert not waiter.done()
    update = updated(ledger, outline(on_the_wire[-1]))
    assert (update.sequence, update.skipped) == (asked, 0)
    assert waiter.result(0) is update.result
    assert ledger.pause_s() is None


def test_rests_grow_from_short_ones_for_prompts_and_longer_ones_for_images() -> None:
    for asks, first_s in ((ask, FIRST_DELAY_S), (ask_image, FIRST_IMAGE_DELAY_S)):
        ledger = OneStream(unstretched)
        asks(ledger)
        assert_delay(ledger, refusal(sent(ledger)), first_s)
        assert_delay(ledger, refusal(sent(ledger)), 2 * first_s)


@pytest.mark.parametrize(("told_s", "delay_s"), [(0.3, 0.3), (2.5, 2.5), (0.0, FIRST_DELAY_S)])
def test_what_the_server_says_is_the_shortest_rest(told_s: float, delay_s: float) -> None:
    ledger = OneStream(unstretched)
    ask(ledger)
    assert_delay(ledger, refusal(sent(ledger), retry_s=told_s), delay_s)


def test_clients_refused_together_come_back_apart_and_later_from_time_to_time() -> None:
    told_s, clients = 0.05, [OneStream() for _ in range(20)]
    pauses: list[list[float]] = []
    for ledger in clients:
        ask(ledger)
    for _ in range(3):
        pauses.append([])
        for ledger in clients:
            ledger.answer(full(sent(ledger), told_s))
            pauses[-1].append(ledger.pause_s() or 0.0)
    for delay_s, times in zip((told_s, 2 * told_s, 4 * told_s), pauses, strict=True):
        assert all(0.9 * delay_s < pause_s < 1.5 * delay_s for pause_s in times)  # some of it has passed
        assert max(times) - min(times) > 0.1 * delay_s


def test_a_full_server_is_an_answer_only_when_time_is_over() -> None:
    ledger = OneStream()
    _, patient = ask(ledger)
    assert ledger.answer(full(sent(ledger), 0.01)) == []
    _, hasty = ask(ledger, "other", patience_s=1.0)
    update = updated(ledger, full(sent(ledger), 2.0))
    error = hasty.exception(0)
    assert error is update.result
    assert isinstance(error, polywand.QuotaExceeded)
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 2.0)
    assert error.quotas == (polywand.QuotaViolation(*QUOTA),)
    ledger.answer(outline(sent(ledger)))
    assert isinstance(patient.result(0), polywand.Segmentation)


def test_who_cannot_wait_so_long_gets_the_servers_error_and_its_word() -> None:
    ledger = OneStream()
    asked, waiter = ask(ledger, patience_s=2.0)
    update = updated(ledger, refusal(sent(ledger), retry_s=3.0))
    assert update.sequence == asked
    error = waiter.exception(0)
    assert error is update.result
    assert isinstance(error, polywand.Unavailable)
    assert str(error) == "away"
    assert error.retry_after_s == 3.0
    assert ledger.pause_s() is None


def test_whoever_gives_up_while_it_is_sent_again_is_told_why() -> None:
    ledger = OneStream()
    _, refused = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    _, unheard = ask(ledger, "other")
    assert sent(ledger) < sent(ledger)
    assert str(ledger.refusal(refused)) == "away"
    assert ledger.refusal(unheard) is None


@pytest.mark.parametrize("code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INVALID_ARGUMENT])
def test_other_errors_are_answers(code: grpc.StatusCode) -> None:
    ledger = OneStream()
    _, waiter = ask(ledger)
    update = updated(ledger, refusal(sent(ledger), code))
    assert waiter.exception(0) is update.result
    assert waiter.exception(0).code is code
    assert ledger.pause_s() is None


def test_a_newer_prompt_stands_for_one_that_rests_and_for_one_that_is_refused_late() -> None:
    ledger = OneStream()
    _, resting = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    _, refused_late = ask(ledger)
    second = sent(ledger)
    newest, waiter = ask(ledger)
    third = sent(ledger)
    assert ledger.answer(refusal(second)) == []
    assert ledger.pause_s() is None
    update = updated(ledger, outline(third))
    assert (update.sequence, update.skipped) == (newest, 2)
    assert resting.result(0) is refused_late.result(0) is waiter.result(0) is update.result


def test_what_is_new_leaves_before_what_has_rested_and_sequences_never_decrease() -> None:
    ledger = OneStream(unstretched)
    ask(ledger, "rested")
    first = sent(ledger)
    ledger.answer(refusal(first))
    time.sleep(FIRST_DELAY_S)
    _, fresh = ask(ledger, "fresh")
    on_the_wire = [sent(ledger), sent(ledger)]
    assert first < on_the_wire[0] < on_the_wire[1]
    ledger.answer(outline(on_the_wire[0]))
    assert fresh.done()


def test_an_image_is_sent_again_too() -> None:
    ledger = OneStream()
    _, waiter = ask_image(ledger)
    assert ledger.answer(refusal(sent(ledger))) == []
    assert not waiter.done()
    assert isinstance(ledger.answer(ready(sent(ledger))), pb.ImageInfo)
    assert waiter.result(0).width == 4


def test_what_rests_never_follows_a_newer_image() -> None:
    ledger = OneStream(unstretched)
    _, prompt = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    ask_image(ledger)
    image = sent(ledger)
    time.sleep(FIRST_DELAY_S)
    assert ledger.pop() is None
    ledger.answer(ready(image))
    assert isinstance(prompt.exception(0), polywand.Superseded)
    assert ledger.pause_s() is None


def test_what_rests_goes_on_when_the_newer_image_fails() -> None:
    ledger = OneStream()
    _, prompt = ask(ledger)
    ledger.answer(refusal(sent(ledger)))
    _, image = ask_image(ledger)
    ledger.answer(refusal(sent(ledger), grpc.StatusCode.INVALID_ARGUMENT))
    assert isinstance(image.exception(0), polywand.InvalidRequest)
    ledger.answer(outline(sent(ledger)))
    assert isinstance(prompt.result(0), polywand.Segmentation)


def test_an_image_that_never_left_shares_the_fate_of_the_one_that_replaced_it() -> None:
    ledger = OneStream()
    (_, first), (_, second) = ask_image(ledger), ask_image(ledger)
    ledger.answer(refusal(sent(ledger), grpc.StatusCode.INVALID_ARGUMENT))
    assert first.exception(0) is second.exception(0)
    (_, third), (_, fourth) = ask_image(ledger), ask_image(ledger)
    ledger.answer(ready(sent(ledger)))
    assert isinstance(third.exception(0), polywand.Superseded)
    assert fourth.done()


def test_the_end_of_the_only_stream_ends_what_rests() -> None:
    ledger = OneStream(reconnects=False)
    _, answered = ask(ledger, "answered")
    _, waiter = ask(ledger)
    first = sent(ledger)
    ledger.answer(refusal(sent(ledger)))
    ledger.answer(DRAINING)
    ledger.answer(outline(first))
    assert isinstance(answered.result(0), polywand.Segmentation)
    ledger.lost(ledger.stream, LOST, is_final=False)
    assert isinstance(waiter.exception(0), polywand.Draining)
    assert ledger.pause_s() is None
    assert ledger.pop() is None
    assert ledger.stream_due_s() is None
    with pytest.raises(polywand.Draining):
        ask(ledger)
