"""Nobody's work keeps a hand waiting: not frames, and not another stream with a thousand objects."""

import itertools
import threading
from contextlib import suppress

import grpc
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.config import Limits
from polywand_server.lanes import PATIENCE_SECONDS
from tests.running import wait_for
from tests.streams import POSITIVE, InteractStream, departure, prompt, raw_image, receipt

LIMITS = Limits()
FACE, SUIT = (220, 130, POSITIVE), (150, 400, POSITIVE)


class FrameFlood:
    """Sends frames as fast as flow control takes them, and notes when the service had answered each, by its clock."""

    def __init__(self, stub, image: pb.Image) -> None:
        self.departures: list[int] = []
        self._refused: list[pb.DetectStreamResponse] = []
        self._over = threading.Event()
        request = pb.DetectRequest(model="nanodet", image=image)
        self._call = stub.DetectStream(
            pb.DetectStreamRequest(frame_id=number, request=request)
            for number in itertools.takewhile(lambda _: not self._over.is_set(), itertools.count())
        )
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "FrameFlood":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._call.cancel()
        self._reader.join(10)
        assert not self._refused, self._refused
        assert self._call.code() is grpc.StatusCode.CANCELLED  # by us, and not ended before

    def _read(self) -> None:
        with suppress(grpc.RpcError):
            for reply in self._call:
                if not reply.HasField("response"):
                    self._refused.append(reply)
                self.departures.append(departure(reply.response.timing))

    @property
    def answered(self) -> int:
        return len(self.departures)


def test_frames_give_way_to_prompts_and_get_on_all_the_same(stub, astronaut):
    """While a click is in work, only those frames are answered that were past their last stage, or out of patience."""
    image = raw_image(astronaut)
    with FrameFlood(stub, image) as first, FrameFlood(stub, image) as second, InteractStream(stub) as stream:

        def answered() -> int:
            return first.answered + second.answered

        stream.ask(image)
        while answered() < 5:  # the flood is up
            stream.ask(prompt("wand_click", FACE))
        clicks: list[pb.Timing] = []
        for number in range(20):
            reply = stream.ask(prompt("wand_click", FACE, object_id=str(number)))
            assert reply.segmentation.shape.polygons
            clicks.append(reply.timing)
        before = answered()
        wait_for(lambda: answered() >= before + 10, 60)  # no prompt in work; the frames of all clicks have come by now
        for click in clicks:
            begin, end = receipt(click) + click.wait_us, departure(click)
            meanwhile = sum(begin <= frame < end for frame in first.departures + second.departures)
            turns = 1 + int((end - begin) / 1e6 / PATIENCE_SECONDS)
            assert meanwhile <= turns + LIMITS.frames_in_work


def test_frames_get_on_under_clicks_without_a_pause(stub, astronaut):
    image = raw_image(astronaut)
    with InteractStream(stub) as stream, FrameFlood(stub, image) as flood:
        stream.ask(image)
        names = ("a", "b")  # one of two objects is always in work
        for name in names:
            stream.send(prompt("wand_click", FACE, object_id=name))
        for number in range(2000):
            reply = stream.receive()
            if flood.answered >= 4:
                return
            stream.send(prompt("wand_click", (200 + number % 40, 130, POSITIVE), object_id=reply.object_id))
    pytest.fail("frames starved")


def test_a_stream_with_a_thousand_objects_does_not_starve_another(stub, astronaut):
    """The other's click is answered before more of the greedy one's than may be at Triton, and as many again."""
    image = raw_image(astronaut)
    with InteractStream(stub) as greedy, InteractStream(stub) as modest:
        greedy.ask(image)
        modest.ask(image)
        objects = LIMITS.objects - 1
        for number in range(objects):
            greedy.send(prompt("wand_click", (220, 130, POSITIVE), object_id=str(number)))
        departures = [departure(greedy.receive().timing)]  # it is at work
        for clicks in ((FACE,), (FACE, SUIT)):
            timing = modest.ask(prompt("wand_click", *clicks)).timing
            while departures[-1] < departure(timing):
                departures.append(departure(greedy.receive().timing))
            overtaken = sum(receipt(timing) <= other < departure(timing) for other in departures)
            # Each of its objects needs three inferences, as the modest one's first click does.
            assert overtaken <= 3 * LIMITS.stream_inflight, overtaken
