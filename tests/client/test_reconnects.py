"""The book of open requests over several streams: what is sent on the next one, and what the last one still answers."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

import polywand
from polywand import images
from polywand.answers import Update
from polywand.backoff import FIRST_DELAY_S
from polywand.ledger import Ledger
from polywand.streams import LONGEST_DELAY_S
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.helpers import polywand_threads
from tests.client.ledgers import DRAINING, LOST, PATIENCE_S, OneStream, ask, ask_image, sent, unstretched, updated
from tests.client.scripted import (
    Script,
    full,
    full_status,
    given_up,
    not_held,
    outline,
    ready,
    refusal,
    scripted_server,
    status,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DIGEST = b"d" * 32


def opened() -> OneStream:
    """A ledger whose stream has the image b"first"."""
    ledger = OneStream(unstretched)
    ask_image(ledger, b"first")
    ledger.answer(accepted(sent(ledger)))
    return ledger


def accepted(sequence: int) -> pb.InteractResponse:
    reply = ready(sequence)
    reply.image.digest = DIGEST
    return reply


def lose(ledger: OneStream) -> None:
    """End the ledger's stream, and begin the next one when it is due."""
    assert ledger.lost(ledger.stream, LOST, is_final=False) == []
    begin(ledger)


def begin(ledger: OneStream) -> None:
    due_s = ledger.stream_due_s()
    assert due_s is not None
    time.sleep(due_s)
    ledger.stream = ledger.begin()


def what(ledger: OneStream) -> tuple[str | bytes, int]:
    """Take what is to be sent at once: the image's bytes or digest, or the prompt's object; and the sequence."""
    request = ledger.pop()
    assert request is not None
    if request.HasField("image"):
        return request.image.encoded or request.image.digest, request.sequence
    return request.prompt.object_id, request.sequence


def forget(ledger: Ledger, object_id: str | None = None) -> Future[Any]:
    waiter: Future[Any] = Future()
    target = pb.Forget(all=True) if object_id is None else pb.Forget(object_id=object_id)
    ledger.add(pb.InteractRequest(forget=target), waiter, PATIENCE_S)
    return waiter


def forgotten(sequence: int) -> pb.InteractResponse:
    return pb.InteractResponse(sequence=sequence, forgotten=pb.Forgotten(objects=1))


def test_a_new_stream_gets_the_digest_and_then_the_newest_prompt_of_each_object() -> None:
    ledger = opened()
    (_, older), (asked, newer), (_, other) = ask(ledger, "a"), ask(ledger, "a"), ask(ledger, "b")
    before = [sent(ledger), sent(ledger)]
    _, unsent = ask(ledger, "c")
    lose(ledger)
    digest, image = what(ledger)
    assert digest == DIGEST
    assert ledger.pop() is None
    assert ledger.answer(accepted(image)) == []  # and not an image that is news to the session
    again = dict(what(ledger) for _ in range(3))
    assert ledger.pop() is None
    assert set(again) == {"a", "b", "c"}
    assert max(before) < image < min(again.values())
    update = updated(ledger, outline(again["a"]))
    assert (update.sequence, update.skipped) == (asked, 1)
    assert older.result(0) is newer.result(0) is update.result
    for name in "bc":
        ledger.answer(outline(again[name]))
    assert other.done()
    assert unsent.done()
    assert ledger.stream_due_s() is None


@pytest.mark.parametrize("answer", [not_held, lambda sequence: refusal(sequence, INVALID)], ids=["moved", "older"])
def test_a_server_that_does_not_hold_the_image_or_knows_no_digests_gets_the_image_itself(
    answer: Callable[[int], pb.InteractResponse],
) -> None:
    ledger = opened()
    _, waiter = ask(ledger)
    sent(ledger)
    lose(ledger)
    _, image = what(ledger)
    assert ledger.answer(answer(image)) == []
    encoded, again = what(ledger)
    assert encoded == b"first"
    assert image < again
    ledger.answer(accepted(again))
    ledger.answer(outline(sent(ledger)))
    assert isinstance(waiter.result(0), polywand.Segmentation)


def test_a_photo_is_sent_once_by_a_client_and_its_digest_from_then_on() -> None:
    held: set[bytes] = set()

    def answer(request: pb.InteractRequest) -> pb.InteractResponse:
        digest = request.image.digest or images.digest(request.image)
        if request.image.digest and digest not in held:
            return not_held()
        held.add(digest)
        reply = ready()
        reply.image.digest = digest
        return reply

    script, photo = Script(interact=answer), bytes(100_000)
    with scripted_server(script) as target, polywand.connect(target) as client:
        client.open(photo).close()
        with client.open(photo) as session:
            session.set_image(photo[1:])
            session.set_image(photo)
            held.clear()  # as if another replica had taken the stream
            session.set_image(photo)
            session.set_image(photo, value_range=(0, 1023))  # which is another picture
    sent_images = [message.image for _, message in script.arrivals]
    assert [image.WhichOneof("source") for image in sent_images] == [
        *("encoded", "digest", "encoded", "digest"),
        *("digest", "encoded", "encoded"),
    ]
    assert all(image.ByteSize() < 100 for image in sent_images if image.digest)


@dataclass
class Cuts(Script):
    """A server whose first two streams end at their first prompt. end: how."""

    end: Callable[[grpc.ServicerContext], None] = lambda context: None
    streams: int = 0

    def Interact(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.InteractRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.InteractResponse]:
        self.streams += 1
        is_cut = self.streams <= 2
        for request in requests:
            self.arrivals.append((time.monotonic(), request))
            if request.HasField("image"):
                yield accepted(request.sequence)
            elif is_cut:
                self.end(context)
                return
            else:
                reply = outline(request.sequence)
                reply.object_id = request.prompt.object_id
                yield reply


CUTS: dict[str, Callable[[grpc.ServicerContext], None]] = {
    "ended": lambda context: None,
    "lost": lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream"),
    "reset by a proxy": lambda context: context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM"),
    "cancelled by a proxy": lambda context: context.abort(grpc.StatusCode.CANCELLED, "idle for too long"),
    "limited by a proxy": lambda context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams"),
    "said by the server": lambda context: context.abort_with_status(rpc_status.to_status(full_status(0.01))),
}


@pytest.mark.parametrize("cut", CUTS)
async def test_a_cut_stream_is_a_later_answer(cut: str) -> None:
    for is_async in (False, True):
        script = Cuts(end=CUTS[cut])
        with scripted_server(script) as target:
            if is_async:
                async with polywand.aio.connect(target) as async_client, async_client.open(b"photo") as async_session:
                    answer = await async_session.prompt("m", points=[(1, 1)])
            else:
                with polywand.connect(target) as client, client.open(b"photo") as session:
                    answer = await asyncio.to_thread(session.prompt, "m", points=[(1, 1)])
        assert (answer.model, answer.skipped) == ("m", 0)
        assert script.streams == 3
        messages = [message for _, message in script.arrivals]
        assert [message.WhichOneof("payload") for message in messages] == ["image", "prompt"] * 3
        assert [message.image.WhichOneof("source") for message in messages[::2]] == ["encoded", "digest", "digest"]
    assert not polywand_threads()


FINAL: dict[str, tuple[Callable[[grpc.ServicerContext], None], type[polywand.PolywandError]]] = {
    "too large": (
        lambda context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max (9 vs. 4)"),
        polywand.InvalidRequest,
    ),
    "no token": (
        lambda context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token"),
        polywand.Unauthenticated,
    ),
    "the server failed": (
        lambda context: context.abort_with_status(rpc_status.to_status(status(grpc.StatusCode.INTERNAL, "its log"))),
        polywand.ServerError,
    ),
}


@pytest.mark.parametrize("case", FINAL)
def test_what_every_stream_would_meet_ends_the_session(case: str) -> None:
    end, error = FINAL[case]
    script = Cuts(end=end)
    with scripted_server(script) as target, polywand.connect(target) as client, client.open(b"photo") as session:
        for _ in range(2):
            with pytest.raises(error):
                session.prompt("m", points=[(1, 1)])
    assert script.streams == 1


def test_an_idle_session_needs_no_stream_until_it_is_asked() -> None:
    ledger = opened()
    assert ledger.lost(ledger.stream, LOST, is_final=False) == []
    assert ledger.stream_due_s() is None
    ask(ledger)
    begin(ledger)
    assert what(ledger)[0] == DIGEST


def test_a_stream_that_drains_still_answers_what_it_got_and_the_next_one_gets_what_comes_next() -> None:
    ledger = opened()
    _, slow = ask(ledger, "slow")
    asked, dragged = ask(ledger, "dragged")
    first = dict((what(ledger), what(ledger)))
    old = ledger.stream
    assert ledger.answer(DRAINING) == []
    assert not ledger.is_current(old)  # its sender half-closes it
    assert ledger.stream_due_s() is None  # nothing to send
    newest, newer = ask(ledger, "dragged")
    begin(ledger)
    _, image = what(ledger)
    ledger.answer(accepted(image))
    name, sequence = what(ledger)
    assert name == "dragged"
    assert ledger.pop() is None  # the slow one waits for its answer
    update = ledger.answer(outline(first["dragged"]), old)
    assert isinstance(update, list)
    assert (update[0].sequence, update[0].skipped) == (asked, 0)
    assert dragged.done()
    assert not newer.done()
    update = updated(ledger, outline(sequence))
    assert (update.sequence, update.skipped) == (newest, 0)
    ledger.answer(outline(first["slow"]), old)
    assert slow.done()
    assert ledger.lost(old, LOST, is_final=False) == []
    assert ledger.is_current(ledger.stream)
    assert ledger.pop() is None


def test_what_a_draining_stream_left_unanswered_is_sent_on_the_next_one() -> None:
    ledger = opened()
    _, left = ask(ledger, "left")
    _, overtaken = ask(ledger, "dragged")
    sequences = dict((what(ledger), what(ledger)))
    old = ledger.stream
    ledger.answer(DRAINING)
    ask(ledger, "dragged")
    begin(ledger)
    ledger.answer(accepted(what(ledger)[1]))
    sequences["newest"] = what(ledger)[1]
    ledger.answer(outline(sequences["newest"]))
    assert overtaken.done()  # the newer answer stands for it
    assert ledger.answer(outline(sequences["dragged"]), old) == []
    ledger.lost(old, LOST, is_final=False)
    name, sequence = what(ledger)
    assert name == "left"
    ledger.answer(outline(sequence))
    assert left.done()
    assert ledger.pop() is None


def test_an_image_that_was_on_its_way_goes_first_and_supersedes_the_prompts() -> None:
    ledger = opened()
    _, prompt = ask(ledger)
    sent(ledger)
    _, image = ask_image(ledger, b"second")
    sent(ledger)
    lose(ledger)
    encoded, sequence = what(ledger)
    assert encoded == b"second"
    assert ledger.pop() is None
    assert isinstance(ledger.answer(accepted(sequence)), pb.ImageInfo)
    assert image.done()
    assert isinstance(prompt.exception(0), polywand.Superseded)


def test_when_that_image_is_refused_the_one_before_is_sent_again_with_its_prompts() -> None:
    ledger = opened()
    _, prompt = ask(ledger)
    sent(ledger)
    _, image = ask_image(ledger, b"second")
    lose(ledger)
    _, sequence = what(ledger)
    ledger.answer(refusal(sequence, INVALID))
    assert isinstance(image.exception(0), polywand.InvalidRequest)
    digest, sequence = what(ledger)
    assert digest == DIGEST
    ledger.answer(accepted(sequence))
    ledger.answer(outline(sent(ledger)))
    assert isinstance(prompt.result(0), polywand.Segmentation)


def test_an_image_that_a_draining_stream_accepts_is_sent_on_the_next_one_before_its_prompts() -> None:
    ledger = opened()
    ask_image(ledger, b"second")
    image, old = sent(ledger), ledger.stream
    ledger.answer(DRAINING)
    _, prompt = ask(ledger)
    begin(ledger)
    assert ledger.pop() is None  # the prompt is about the image that is still on its way
    assert isinstance(ledger.answer(accepted(image), old), pb.ImageInfo)
    digest, sequence = what(ledger)
    assert digest == DIGEST
    ledger.answer(accepted(sequence))
    ledger.answer(outline(sent(ledger)))
    assert prompt.done()


def test_attempts_come_after_growing_delays_of_a_second_at_most_until_time_is_over() -> None:
    ledger = opened()
    _, patient = ask(ledger, "patient")
    asked, hasty = ask(ledger, "hasty", patience_s=0.3)
    sent(ledger)
    sent(ledger)
    delays: list[float] = []
    updates: list[Update] = []
    while len(delays) < 8:
        updates += ledger.lost(ledger.stream, LOST, is_final=False)
        due_s = ledger.stream_due_s()
        assert due_s is not None
        delays.append(due_s)
        time.sleep(due_s if len(delays) < 5 else 0)
        ledger.stream = ledger.begin()
    for earlier, later in pairwise([*delays[:5], LONGEST_DELAY_S]):
        assert earlier < later
    assert FIRST_DELAY_S / 2 < delays[0] <= FIRST_DELAY_S
    assert max(delays) <= LONGEST_DELAY_S
    assert updates == [Update("hasty", asked, 0, LOST)]
    assert hasty.exception(0) is LOST
    assert not patient.done()
    assert ledger.refusal(patient) is LOST


def test_clients_that_lost_one_server_come_back_apart() -> None:
    dues: list[float] = []
    for _ in range(20):
        ledger = OneStream()
        ask(ledger)
        ledger.lost(ledger.stream, LOST, is_final=False)
        dues.append(ledger.stream_due_s() or 0.0)
    assert max(dues) - min(dues) > 0.1 * FIRST_DELAY_S


def test_a_server_that_is_starting_gets_the_first_image_when_it_is_there() -> None:
    ledger = OneStream(unstretched)
    _, waiter = ask_image(ledger, b"first")
    for _ in range(3):
        assert sent(ledger)
        lose(ledger)
    encoded, sequence = what(ledger)
    assert encoded == b"first"
    ledger.answer(accepted(sequence))
    assert waiter.done()


def test_an_error_that_a_new_stream_would_meet_too_ends_the_session() -> None:
    ledger = opened()
    _, waiter = ask(ledger)
    sent(ledger)
    error = polywand.InvalidRequest("too large", grpc.StatusCode.RESOURCE_EXHAUSTED)
    ledger.lost(ledger.stream, error, is_final=True)
    assert waiter.exception(0) is error
    assert ledger.ended is error
    assert ledger.stream_due_s() is None


def test_each_new_stream_is_logged_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    ledger = opened()
    ask(ledger)
    sent(ledger)
    with caplog.at_level(logging.INFO, "polywand"):
        lose(ledger)
        lose(ledger)  # an attempt in vain
        ledger.answer(accepted(sent(ledger)))
        ledger.answer(outline(sent(ledger)))
    assert len(caplog.records) == 1
    assert "the connection was lost" in caplog.text


def test_forgotten_objects_fail_their_prompts_and_are_told_to_the_server() -> None:
    ledger = opened()
    _, gone = ask(ledger, "a")
    late = sent(ledger)
    _, unsent = ask(ledger, "a")
    _, other = ask(ledger, "b")
    done = forget(ledger, "a")
    for waiter in (gone, unsent):
        error = waiter.exception(0)
        assert isinstance(error, polywand.Superseded)
        assert "forgotten" in str(error)
    asked, anew = ask(ledger, "a")
    requests = [ledger.pop() for _ in range(3)]
    assert [request and request.WhichOneof("payload") for request in requests] == ["prompt", "forget", "prompt"]
    sequences = [request.sequence for request in requests if request is not None]
    assert ledger.answer(outline(late)) == []  # it was under way
    assert not anew.done()
    ledger.answer(outline(sequences[0]))
    assert other.done()
    assert not done.done()
    ledger.answer(forgotten(sequences[1]))
    assert done.result(0) is None
    update = updated(ledger, outline(sequences[2]))
    assert (update.sequence, update.skipped) == (asked, 0)
    assert anew.result(0) is update.result


def test_with_the_stream_all_objects_are_forgotten() -> None:
    ledger = opened()
    _, kept = ask(ledger, "kept")
    sent(ledger)
    under_way = forget(ledger, "a")
    sent(ledger)
    never_left = forget(ledger, "b")
    ledger.lost(ledger.stream, LOST, is_final=False)
    assert under_way.result(0) is never_left.result(0) is None
    assert forget(ledger, "c").done()  # there is no stream now
    begin(ledger)
    assert forget(ledger, "c").done()  # and now no image on it
    ledger.answer(accepted(what(ledger)[1]))
    name, sequence = what(ledger)
    assert name == "kept"
    ledger.answer(outline(sequence))
    assert kept.done()
    everything = forget(ledger)
    assert not everything.done()
    ledger.answer(refusal(sent(ledger), INVALID))
    assert isinstance(everything.exception(0), polywand.InvalidRequest)


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Replica:
    """One stream and its server, which is full, loses its Triton, gives up images and refuses some, by chance.

    held: the digests of the images that its server has decoded.
    """

    def __init__(self, chance: random.Random, faults: float, held: set[bytes]) -> None:
        self.chance, self.faults, self.held = chance, faults, held
        self.inbox: list[pb.InteractRequest] = []
        self.replies: list[pb.InteractResponse] = []
        self.image: int | None = None
        self.had_image = False
        self.sequences = [0]

    def take(self, request: pb.InteractRequest) -> None:
        copy = pb.InteractRequest()
        copy.CopyFrom(request)
        self.sequences.append(request.sequence)
        self.inbox.append(copy)

    def serve(self) -> None:
        """Answer one message; older ones of the same kind that wait are skipped, by chance."""
        if not self.inbox:
            return
        request = self.inbox.pop(0)
        if self.inbox and self._is_replaced_by(self.inbox[0], request) and self.chance.random() < 0.5:
            return
        self.replies.append(self._answer(request))

    def _is_replaced_by(self, newer: pb.InteractRequest, request: pb.InteractRequest) -> bool:
        kind = request.WhichOneof("payload")
        is_same = newer.WhichOneof("payload") == kind and newer.prompt.object_id == request.prompt.object_id
        return is_same and kind != "forget"

    def _answer(self, request: pb.InteractRequest) -> pb.InteractResponse:
        if not request.HasField("image") and not self.had_image:
            return refusal(request.sequence, grpc.StatusCode.FAILED_PRECONDITION)
        if request.HasField("forget"):
            return forgotten(request.sequence)
        if self.chance.random() < self.faults:
            if request.HasField("image") and self.chance.random() < 0.3:
                return refusal(request.sequence, INVALID)
            return self.chance.choice((full, refusal))(request.sequence)
        return self._decode(request) if request.HasField("image") else self._segment(request.sequence)

    def _decode(self, request: pb.InteractRequest) -> pb.InteractResponse:
        shown = request.image.encoded or request.image.digest.rstrip()
        if not request.image.encoded and shown not in self.held:
            return not_held(request.sequence)
        self.image, self.had_image = int(shown), True
        self.held.add(shown)
        reply = ready(request.sequence)
        reply.image.digest = shown.ljust(32)
        return reply

    def _segment(self, sequence: int) -> pb.InteractResponse:
        if self.image is None:
            return given_up(sequence)
        reply = outline(sequence)
        reply.segmentation.version = self.image
        return reply

    def rest(self) -> None:
        """Give the image up, by chance, when the stream is idle."""
        if not self.inbox and self.chance.random() < self.faults:
            self.image = None


class Annotator:
    """Asks for images and outlines, and forgets objects."""

    def __init__(self, chance: random.Random, ledger: Ledger) -> None:
        self.chance, self.ledger = chance, ledger
        self.images: dict[int, Future[Any]] = {}  # by sequence, which is also what the image shows
        self.prompts: list[tuple[int, Future[Any]]] = []
        self.forgets: list[Future[Any]] = []

    def act(self) -> None:
        what = self.chance.random()
        if what < 0.15 or not self.images:
            sequence, waiter = ask_image(self.ledger, b"%d" % (self.ledger._open._sequence + 1))
            self.images[sequence] = waiter
        elif what < 0.25 and any(image.done() and image.exception() is None for image in self.images.values()):
            self.forgets.append(forget(self.ledger, self.chance.choice(("a", "b", "c", None))))
        else:
            patience_s = self.chance.choice((0.5, 1e6, 1e6))
            self.prompts.append(ask(self.ledger, self.chance.choice("abc"), patience_s))

    def check(self) -> None:
        """Every request has its answer, and every outline is about the image that its caller saw."""
        assert all(waiter.done() for waiter in self.images.values())
        taken = [sequence for sequence, waiter in self.images.items() if waiter.exception() is None]
        for waiter in self.forgets:
            assert waiter.result(0) is None
        for sequence, waiter in self.prompts:
            assert waiter.done()
            error = waiter.exception()
            if error is None:
                assert waiter.result().version == max(image for image in taken if image < sequence)
            elif taken and min(taken) < sequence:
                is_known = isinstance(error, polywand.Unavailable | polywand.Superseded)
                assert is_known or "refused it when sent again" in str(error), error


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_to_its_streams_all_is_answered_about_the_right_image(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, clock = random.Random(seed), Clock()
    for module in ("ledger", "backoff", "streams"):
        monkeypatch.setattr(f"polywand.{module}.time", clock)
    ledger, faults, losses = Ledger(chance.uniform), 0.2, 0.15
    annotator = Annotator(chance, ledger)
    stores: list[set[bytes]] = [set(), set()]
    streams: dict[int, Replica] = {}
    ended: list[Replica] = []

    def connect() -> None:
        if ledger.stream_due_s() == 0:
            streams[ledger.begin()] = Replica(chance, faults, chance.choice(stores))

    def send() -> None:
        for number, replica in streams.items():
            if (request := ledger.pop(number)) is not None:
                replica.take(request)

    def some() -> tuple[int, Replica] | None:
        return chance.choice(list(streams.items())) if streams else None

    def serve() -> None:
        if (found := some()) is not None:
            found[1].serve()

    def hear() -> None:
        if (found := some()) is not None and found[1].replies:
            ledger.answer(found[1].replies.pop(0), found[0])

    def end(number: int) -> None:
        ended.append(streams.pop(number))
        ledger.lost(number, LOST, is_final=False)

    def disturb() -> None:
        if (found := some()) is None or chance.random() > losses:
            return
        if chance.random() < 0.5:
            ledger.answer(DRAINING, found[0])
        else:
            end(found[0])
        stores[chance.randrange(2)].clear()

    def finish() -> None:
        """End a stream that is half-closed and has answered everything."""
        for number, replica in list(streams.items()):
            if not ledger.is_current(number) and not replica.inbox and not replica.replies:
                end(number)

    def wait() -> None:
        clock.now += chance.choice((0.01, 0.3))
        for replica in streams.values():
            replica.rest()

    steps: list[Callable[[], None]] = [annotator.act, connect, send, send, serve, serve, hear, hear, wait]
    for _ in range(600):
        chance.choice([*steps, disturb, finish])()
    faults = losses = 0.0
    for replica in streams.values():
        replica.faults = 0.0
    for _ in range(800):
        clock.now += 0.1
        for step in (connect, send, serve, hear, finish):
            step()
    annotator.check()
    for replica in [*ended, *streams.values()]:
        assert all(earlier < later for earlier, later in pairwise(replica.sequences))
    assert ledger.pause_s() is None
    assert ledger.stream_due_s() is None
