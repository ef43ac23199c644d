"""A client that never reads: what it may hold is bounded, whatever it sends, and nobody else notices."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.clients import Talk, comb, unfinished
from tests.faults.conftest import STREAM_MEMORY_MEBIBYTES
from tests.faults.footprint import IMAGE_MEMORY, INTERACT_STREAMS, MASK_MEMORY, unique_bytes
from tests.running import wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

MEBIBYTE = 2**20
# Two streams' maps, and room for one image on its way in, for replies and prompts that wait, and for what malloc keeps:
# 122 to 161 MiB with large images, in seven runs. All that is sent would be 700.
BOUND_BYTES = (2 * STREAM_MEMORY_MEBIBYTES + 160) * MEBIBYTE
SETTLED_SECONDS = 2.0
MOST_POINTS = 10_000  # of one prompt, before anything looks at the model


def large_answers() -> Iterator[pb.Image | pb.Prompt]:
    """Ask for the outlines of 300 objects, each of 32,000 vertices, with their masks."""
    yield comb(256)
    for number in range(300):
        yield prompt("shade", (1, 1, POSITIVE), object_id=str(number), tolerance=0, include_mask=True)


def large_prompts() -> Iterator[pb.Image | pb.Prompt]:
    """Clog the stream with answers, then send a prompt of 10,000 points for each of 150 objects."""
    yield from itertools.islice(large_answers(), 40)
    points = [(number % 250, number % 240, POSITIVE) for number in range(MOST_POINTS)]
    for number in range(150):
        yield prompt("shade", *points, object_id=f"large {number}")


def large_images() -> Iterator[pb.Image | pb.Prompt]:
    """Send 100 images of 7 MB, and ask for the outline of one object on each."""
    image = comb(1500, tooth=6)
    for _ in range(100):
        yield image
        yield prompt("shade", (1, 1, POSITIVE), tolerance=0, include_mask=True)


@pytest.mark.parametrize("messages", [large_answers, large_prompts, large_images])
def test_a_client_that_never_reads_holds_little_and_stops_nobody(fresh, fresh_stub, astronaut, messages):
    forever = threading.Event()
    before = unique_bytes(fresh)
    peak = 0
    with InteractStream(fresh_stub) as other:
        other.ask(raw_image(astronaut))
        talk = Talk(fresh_stub, unfinished(messages(), forever), before_reading=forever.wait)
        progress, since = None, time.monotonic()
        for click in itertools.count():
            point = (10 + click % 490, 10 + click // 490, POSITIVE)
            assert other.ask(prompt("wand_click", point)).HasField("segmentation")
            peak = max(peak, unique_bytes(fresh) - before)
            now = (talk.sent, fresh.metric('polywand_inferences_total{model="shade",outcome="ok",version="1"}'))
            if now != progress:
                progress, since = now, time.monotonic()
            elif time.monotonic() - since > SETTLED_SECONDS:
                break
        assert fresh.metric(INTERACT_STREAMS) == 2
        talk.call.cancel()
        wait_for(lambda: fresh.metric(INTERACT_STREAMS) == 1, 60, fresh)
        assert other.ask(prompt("wand_click", (256, 256, POSITIVE))).HasField("segmentation")
    forever.set()
    assert peak < BOUND_BYTES, f"{peak / MEBIBYTE:.0f} MiB after {talk.sent} messages"


def test_what_clients_that_never_read_have_held_is_free_when_they_go(sturdy, sturdy_stub):
    forever = threading.Event()
    messages = [[*itertools.islice(large_answers(), 30)] for _ in range(5)]
    talks = [Talk(sturdy_stub, unfinished(some, forever), before_reading=forever.wait) for some in messages]
    wait_for(lambda: all(talk.sent == 30 for talk in talks) and sturdy.metric(MASK_MEMORY) > 0, 60, sturdy)
    assert sturdy.metric(INTERACT_STREAMS) == len(talks)
    assert sturdy.metric(IMAGE_MEMORY) > 0
    for talk in talks:
        talk.call.cancel()
    forever.set()
    wait_for(lambda: sturdy.metric(INTERACT_STREAMS) == 0, 60, sturdy)
    wait_for(lambda: sturdy.metric(IMAGE_MEMORY) == sturdy.metric(MASK_MEMORY) == 0, 60, sturdy)
