"""Clients that send far more than can be worked on: all of it is accounted for, and no other client waits for it."""

import statistics
import time
from bisect import bisect
from collections import Counter

import grpc
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.clients import BRIGHT, END_SECONDS, Talk, status
from tests.faults.models import count, journal_of
from tests.running import wait_for
from tests.streams import POSITIVE, InteractStream, departure, prompt, receipt

PROMPTS = 3_000
MAX_OBJECTS = 1000  # the server's default
ANSWERED = 'polywand_prompts_total{model="shade",outcome="segmentation"}'
SKIPPED = 'polywand_prompts_skipped_total{model="shade"}'
# How many of the flooder's replies may come between another client's click and its answer, of half the clicks. A few of
# its prompts are in work at a time, and some replies wait to be sent: 2 to 4 were seen. If the flood came first it
# would be all objects that wait, a thousand. With one object it is a few in either case: newer prompts replace older.
REPLIES_BETWEEN = 50


@pytest.fixture(params=[1, MAX_OBJECTS + 10], ids=["one object", "more objects than fit"])
def objects(request) -> int:
    return request.param


def flood(objects: int) -> list[pb.Prompt]:
    """Click on each object in turn. One object is dragged about, so that each prompt is new."""
    return [
        prompt("shade", (1 + (number % 50 if objects == 1 else 0), 1, POSITIVE), object_id=str(number % objects))
        for number in range(PROMPTS)
    ]


def test_thousands_of_prompts_at_once_are_all_accounted_for_and_no_other_client_waits_for_them(
    sturdy, sturdy_stub, objects
):
    skipped_before = sturdy.metric(SKIPPED)
    clicks: list[pb.Timing] = []
    with InteractStream(sturdy_stub) as other:
        other.ask(BRIGHT)
        talk = Talk(sturdy_stub, [BRIGHT, *flood(objects)])
        wait_for(lambda: len(talk.replies) > 1, 60, sturdy)
        deadline = time.monotonic() + END_SECONDS
        while not clicks or (not talk.ended and time.monotonic() < deadline):
            reply = other.ask(prompt("shade", (2 + len(clicks) / 100, 2, POSITIVE)))
            assert reply.segmentation.shape.polygons, reply
            clicks.append(reply.timing)
    assert talk.end() == grpc.StatusCode.OK
    departures = sorted(departure(reply.timing) for reply in talk.replies)
    between = [bisect(departures, departure(click)) - bisect(departures, receipt(click)) for click in clicks]
    assert statistics.median(between) <= REPLIES_BETWEEN

    image, *replies = talk.replies
    assert image.image.width == 64
    sent = Counter(str(number % objects) for number in range(PROMPTS))
    accounted = Counter()
    for reply in replies:
        accounted[reply.object_id] += 1 + reply.skipped
        fits = int(reply.object_id) < MAX_OBJECTS
        assert status(reply) == (grpc.StatusCode.OK if fits else grpc.StatusCode.RESOURCE_EXHAUSTED), reply
    assert accounted == sent
    last = {reply.object_id: reply.sequence for reply in replies}
    assert len(set(last.values()) & set(range(PROMPTS + 2 - objects, PROMPTS + 2))) == objects  # the newest of each
    assert sturdy.metric(SKIPPED) - skipped_before == sum(reply.skipped for reply in replies)


def test_a_new_image_in_the_middle_of_a_flood_accounts_for_what_it_made_superfluous(sturdy, sturdy_stub):
    """To the client, and in the metrics: every prompt is answered, or skipped."""
    prompts = flood(1)[:500]
    answered, skipped = sturdy.metric(ANSWERED), sturdy.metric(SKIPPED)
    talk = Talk(sturdy_stub, [BRIGHT, *prompts, BRIGHT, *prompts])
    assert talk.end() == grpc.StatusCode.OK
    images = [reply for reply in talk.replies if reply.HasField("image")]
    assert len(images) == 2
    accounted = {True: images[1].skipped, False: 0}  # by whether it was sent before the second image
    for reply in talk.replies:
        if not reply.HasField("image"):
            accounted[reply.sequence < images[1].sequence] += 1 + reply.skipped
    assert accounted == {True: len(prompts), False: len(prompts)}
    assert sturdy.metric(ANSWERED) - answered == len(talk.replies) - 2
    assert sturdy.metric(SKIPPED) - skipped == sum(reply.skipped for reply in talk.replies)


def test_what_a_vanished_client_had_asked_counts_as_skipped(sturdy, sturdy_stub, repository):
    journal = journal_of(repository, "shade")
    began = count(journal, "began")
    answered, skipped = sturdy.metric(ANSWERED), sturdy.metric(SKIPPED)
    with InteractStream(sturdy_stub) as stream:
        stream.ask(BRIGHT)
        stream.ask(prompt("shade", (3, 3, POSITIVE)))
        stream.send(prompt("shade", (1, 1, POSITIVE), (2, 2, POSITIVE)))  # takes a minute
        wait_for(lambda: count(journal, "began") == began + 1, 60, sturdy)
    wait_for(lambda: sturdy.metric(SKIPPED) == skipped + 1, 60, sturdy)
    assert sturdy.metric(ANSWERED) == answered + 1
