"""A first click is looked for where a detector sees something; whatever becomes of the detector, it is answered."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.interactors import DAZZLED, PREAMBLE, add_interactor
from tests.running import DETECTION, Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image, stream_to
from tests.triton.models import add_model

SIDE = 1024
CENTRE, CORNER, LONELY = (512, 512, POSITIVE), (100, 100, POSITIVE), (950, 100, POSITIVE)

# One of the detector's pixels is four of the image's. By score: a box in the corner, then three around the centre, each
# in the one before; the last one, in another corner, is not sure enough to count.
FINDER = (
    PREAMBLE
    + """
    def answer(self, request):
        boxes = [[0, 0, 60, 60], [64, 64, 192, 192], [96, 96, 160, 160], [112, 112, 144, 144], [226, 0, 256, 60]]
        scores = [[0.95], [0.9], [0.8], [0.7], [0.4]]
        tensors = {"BOXES": boxes, "SCORES": scores}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.array([values], np.float32)) for name, values in tensors.items()]
        )
"""
)
WAITS = "def answer(self, request):\n        import time\n        time.sleep(0 if request.is_cancelled() else 6)\n"
FAILS = "def answer(self, request):\n        raise ValueError('strings cut')\n"
DETECTOR_CONFIG = """
backend: "python"
max_batch_size: 2
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 256, 256, 3 ] } ]
output [
  { name: "BOXES" data_type: TYPE_FP32 dims: [ 5, 4 ] },
  { name: "SCORES" data_type: TYPE_FP32 dims: [ 5, 1 ] }
]
parameters { key: "polywand" value: { string_value:
  '{"kind": "detector", "display_name": "finder", "labels": ["thing"]}'
} }
"""
DETECTORS = {
    "finder": FINDER,
    "stalls": FINDER.replace("def answer(self, request):\n", WAITS),
    "fails": FINDER.replace("def answer(self, request):\n", FAILS),
}
NOBODY = "nobody"
ASKS_AGAIN = "asks_again"
NEEDS_TWO = "needs_two"
LATE = "late"


def tool(detector: str) -> str:
    """The name of the interactor that looks where this detector sees something."""
    return f"with_{detector}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Interactors that find a disk of a share of the crop, the brighter that, the surer; and the detectors they ask."""
    folder: Path = tmp_path_factory.mktemp("proposals")
    models = folder / "models"
    for name, code in DETECTORS.items():
        add_model(models, name, DETECTOR_CONFIG, code)
    for name in (*DETECTORS, NOBODY, LATE):
        proposals = f'{{"model": "{name}", "score": 0.5, "at_most": 2}}'
        crop = f'{{"policy": "zoom_in", "box_margin": 0, "proposals": {proposals}}}'
        add_interactor(models, tool(name), DAZZLED, crop=crop)
    proposals = '{"model": "finder", "score": 0.5, "at_most": 2, "agree_from": 0.3}'
    crop = f'{{"policy": "zoom_in", "box_margin": 0, "proposals": {proposals}}}'
    add_interactor(models, ASKS_AGAIN, DAZZLED, crop=crop)
    add_interactor(models, NEEDS_TWO, DAZZLED, crop=crop, prompt='{"box": "optional", "min_positive_points": 2}')
    with running_service(folder / "log", f"--model-repository={models}") as started:
        started.wait_ready(*DETECTORS, *map(tool, (*DETECTORS, NOBODY, LATE)), ASKS_AGAIN, NEEDS_TWO)
        yield started


@pytest.fixture
def stream(service: Service) -> Iterator[InteractStream]:
    with stream_to(service.target) as opened:
        opened.ask(bright_within(384, 640))
        yield opened


def bright_within(start: int, end: int) -> pb.Image:
    pixels = np.full((SIDE, SIDE, 3), 30, np.uint8)
    pixels[start:end, start:end] = 250
    return raw_image(pixels)


def seen(reply: pb.InteractResponse) -> float:
    """The side, in image pixels, of the crop that the answer was found in."""
    assert reply.HasField("segmentation"), reply
    return float(np.sqrt(reply.segmentation.shape.area / np.pi)) / 40 * 256


def test_the_best_boxes_that_hold_the_click_are_looked_at_and_the_surest_answer_stands(stream):
    reply = stream.ask(prompt(tool("finder"), CENTRE))
    assert reply.timing.inferences == 1 + DETECTION + 2  # the whole image, and the two best boxes
    assert seen(reply) == pytest.approx(256, rel=0.05)
    stream.ask(bright_within(448, 576))  # as the third box is, which is one too many
    assert seen(stream.ask(prompt(tool("finder"), CENTRE))) == pytest.approx(256, rel=0.05)
    corner = stream.ask(prompt(tool("finder"), CORNER))
    assert corner.timing.inferences == 1 + 1


def test_the_box_that_an_answer_agrees_with_is_asked_for_as_well(stream):
    """The disk that is found is 80 pixels wide, and among the boxes around it the third agrees with that the most."""
    agreed = stream.ask(prompt(ASKS_AGAIN, CENTRE))
    assert agreed.timing.inferences == 1 + DETECTION + 2 + 1
    assert seen(agreed) == pytest.approx(128, rel=0.05)
    drawn = stream.ask(prompt(ASKS_AGAIN, box=(448, 448, 576, 576), object_id="drawn"))
    assert drawn.timing.inferences == 1
    assert agreed.segmentation == drawn.segmentation  # the click is in its middle
    off_centre = (620, 512, POSITIVE)  # the disk is a part of two boxes, and like neither
    assert stream.ask(prompt(ASKS_AGAIN, off_centre, object_id="off")).timing.inferences == 1 + 2
    assert stream.ask(prompt(ASKS_AGAIN, CENTRE, (520, 520, POSITIVE))).timing.inferences == 1


def test_a_box_that_holds_only_some_of_the_clicks_or_is_not_sure_enough_tells_nothing(stream):
    assert stream.ask(prompt(tool("finder"), LONELY)).timing.inferences == 1 + DETECTION
    both = stream.ask(prompt(NEEDS_TWO, CENTRE, CORNER, object_id="both"))
    assert both.timing.inferences == 1


def test_the_detector_is_asked_once_for_each_image(stream):
    counts = []
    for image in (bright_within(384, 640), bright_within(256, 768)):
        stream.ask(image)
        counts += [stream.ask(prompt(tool("finder"), CENTRE, object_id=name)).timing.inferences for name in "ab"]
    assert counts == [4, 3, 4, 3]


def test_whoever_says_more_than_a_click_needs_no_proposals(stream):
    assert stream.ask(prompt(tool("finder"), box=(300, 300, 700, 700))).timing.inferences == 1
    assert stream.ask(prompt(tool("finder"), CENTRE, box=(300, 300, 700, 700))).timing.inferences == 1
    stream.ask(prompt(tool("finder"), CENTRE, object_id="another"))
    assert stream.ask(prompt(tool("finder"), CENTRE, (520, 520, POSITIVE), object_id="another")).timing.inferences == 1


def test_a_drag_does_not_wait_for_the_detector(stream):
    stream.ask(prompt(tool(NOBODY), CENTRE))
    sent = [stream.send(prompt(tool("finder"), (500 + step, 512, POSITIVE))) for step in range(30)]
    replies = [stream.receive()]
    while replies[-1].sequence != sent[-1]:
        replies.append(stream.receive())
    assert len(replies) > 1
    assert all(reply.timing.inferences == 1 for reply in replies[:-1])
    assert replies[-1].timing.inferences == 1 + DETECTION + 2


@pytest.mark.parametrize("detector", ["stalls", "fails", NOBODY])
def test_a_detector_that_does_not_answer_costs_no_click_its_answer(service, stream, detector):
    """What it costs is a moment, once an image; and the log tells, and so do the answers, unless it was never there."""

    def told() -> int:
        return service.log.read_text().count(f"without the proposals of '{detector}'")

    before = told()
    for name in "ab":
        reply = stream.ask(prompt(tool(detector), CENTRE, object_id=name))
        assert reply.timing.inferences == 1
        assert seen(reply) == pytest.approx(SIDE, rel=0.05)
        more = stream.ask(prompt(tool(detector), CENTRE, (520, 520, POSITIVE), object_id=name))
        assert more.timing.inferences == 1  # what the first one led to is remembered all the same
        assert reply.segmentation.provisional == more.segmentation.provisional == (detector != NOBODY)
    assert told() - before == (0 if detector == NOBODY else 1)


def test_a_detector_that_comes_later_is_heeded_by_all_objects_once_it_has_told_what_it_sees(service, stream):
    more = (CENTRE, (520, 520, POSITIVE))
    first = stream.ask(prompt(tool(LATE), CENTRE, object_id="early"))
    assert not first.segmentation.provisional  # there is no such detector, and perhaps there never will be
    add_model(service.log.parent / "models", LATE, DETECTOR_CONFIG, FINDER)
    service.wait_ready(LATE)
    again = stream.ask(prompt(tool(LATE), CENTRE, object_id="early"))
    assert again.segmentation.provisional
    assert again.timing.inferences == 0
    later = stream.ask(prompt(tool(LATE), *more, object_id="late"))
    assert not later.segmentation.provisional
    assert stream.ask(prompt(tool(LATE), *more, object_id="early")).segmentation == later.segmentation
    assert not stream.ask(prompt(tool(LATE), CENTRE, object_id="early")).segmentation.provisional


def test_a_click_that_waits_for_the_detection_of_another_object_says_so_and_gives_way_to_a_newer_one(service, stream):
    def looked() -> float:
        return service.metric(f'polywand_inferences_total{{model="{tool("stalls")}",outcome="ok",version="1"}}')

    begun = looked()
    first = stream.send(prompt(tool("stalls"), CENTRE, object_id="a"))
    second = stream.send(prompt(tool("stalls"), CENTRE, object_id="b"))
    wait_for(lambda: looked() == begun + 2, 30)
    third = stream.send(prompt(tool("stalls"), CORNER, object_id="b"))
    hurried = stream.receive()
    assert hurried.sequence == second
    assert hurried.segmentation.provisional
    replies = {reply.sequence: reply.timing for reply in (stream.receive(), stream.receive())}
    assert replies.keys() == {first, third}
    waited = replies[third]
    in_stages = waited.wait_us + waited.prepare_us + waited.triton_us + waited.geometry_us
    assert waited.wait_us > waited.total_us / 2
    assert in_stages > 0.9 * waited.total_us
