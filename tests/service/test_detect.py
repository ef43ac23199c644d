"""What Detect and DetectStream promise."""

import time
from bisect import bisect

import cv2
import grpc
import numpy as np
import pytest
import skimage.data

from polywand_contract.v1 import annotation_pb2 as pb
from tests.streams import departure, raw_image, receipt


def detect(stub, pixels, **options) -> pb.DetectResponse:
    return stub.Detect(pb.DetectRequest(**{"model": "nanodet", "image": raw_image(pixels)} | options))


@pytest.mark.parametrize(
    ("photo", "label", "score", "box"),
    [
        ("astronaut", "person", 0.73, (15, 14, 364, 508)),
        ("coffee", "dining table", 0.52, (8, 3, 597, 399)),
        ("chelsea", "cat", 0.57, (2, 0, 440, 296)),
    ],
)
def test_photos_give_what_the_published_network_gives(stub, photo, label, score, box):
    response = detect(stub, getattr(skimage.data, photo)())
    best = response.detections[0]
    assert best.label == best.model_label == label
    assert best.score == pytest.approx(score, abs=0.02)
    assert (best.box.x0, best.box.y0, best.box.x1, best.box.y1) == pytest.approx(box, abs=3)
    assert (response.model, response.version) == ("nanodet", 1)


def test_nothing_is_found_on_an_empty_image(stub):
    assert not detect(stub, np.full((300, 400, 3), 127, np.uint8)).detections


def test_scores_descend_and_the_threshold_and_the_limit_hold(stub, astronaut):
    many = detect(stub, astronaut, threshold=0.05).detections
    scores = [found.score for found in many]
    assert len(many) > 3
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.05
    few = detect(stub, astronaut, threshold=0.05, max_detections=2).detections
    assert list(few) == list(many[:2])
    assert 10 < len(detect(stub, astronaut, threshold=0.0).detections) <= 100  # the default limit
    assert not detect(stub, astronaut, threshold=1.0).detections


def test_boxes_lie_inside_the_image(stub, astronaut):
    for found in detect(stub, astronaut, threshold=0.05).detections:
        assert 0 <= found.box.x0 < found.box.x1 <= 512
        assert 0 <= found.box.y0 < found.box.y1 <= 512


def test_labels_are_mapped_and_unmapped_ones_dropped(stub, astronaut):
    everything = detect(stub, astronaut, threshold=0.05).detections
    assert {"person", "tie"} & {found.label for found in everything} == {"person", "tie"}
    mapped = detect(
        stub, astronaut, threshold=0.05, labels=[pb.LabelMapping(model_label="person", label="human")]
    ).detections
    assert {(found.label, found.model_label) for found in mapped} == {("human", "person")}


def test_a_wide_and_a_large_photo_give_boxes_in_their_own_pixels(stub, astronaut):
    small = detect(stub, astronaut).detections[0]
    large = detect(stub, cv2.resize(astronaut, (4096, 4096), interpolation=cv2.INTER_CUBIC)).detections[0]
    assert large.label == small.label
    assert large.score == pytest.approx(small.score, abs=0.05)
    assert large.box.x1 == pytest.approx(small.box.x1 * 8, abs=40)
    wide = np.zeros((512, 1024, 3), np.uint8)
    wide[:, 512:] = astronaut
    right = max(detect(stub, wide, threshold=0.2).detections, key=lambda found: found.score)
    assert right.label == "person"
    assert right.box.x0 > 500


def test_a_stream_answers_every_frame_in_order_and_a_bad_one_with_an_error(stub, astronaut, coffee):
    good = pb.DetectRequest(model="nanodet", image=raw_image(coffee))
    bad = pb.DetectRequest(model="nanodet", image=pb.Image(encoded=b"no image"))
    requests = [pb.DetectStreamRequest(frame_id=100 + n, request=bad if n == 3 else good) for n in range(12)]
    replies = list(stub.DetectStream(iter(requests)))
    assert [reply.frame_id for reply in replies] == [100 + n for n in range(12)]
    for number, reply in enumerate(replies):
        if number == 3:
            assert reply.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        else:
            assert reply.response.detections[0].label == "dining table"


def test_a_stream_is_read_no_faster_than_its_frames_are_answered(stub, coffee):
    """The sender feels flow control: with frames of 2 MB, it never runs more than a dozen ahead."""
    sent: list[int] = []  # when, Unix time, microseconds: the clock of the service's answers

    def frames():
        for number in range(60):
            sent.append(time.time_ns() // 1000)
            pixels = cv2.resize(coffee, (1000, 700))
            yield pb.DetectStreamRequest(
                frame_id=number, request=pb.DetectRequest(model="nanodet", image=raw_image(pixels))
            )

    answered = sorted(departure(reply.response.timing) for reply in stub.DetectStream(frames()))
    assert len(answered) == len(sent) == 60
    ahead = [number - bisect(answered, when) for number, when in enumerate(sent, 1)]
    assert max(ahead) <= 12  # what the service works on, what it reads ahead, and the sender's own buffers


def test_timing_adds_up(stub, astronaut):
    timing = detect(stub, astronaut).timing
    stages = timing.wait_us + timing.decode_us + timing.prepare_us + timing.triton_us + timing.geometry_us
    assert timing.inferences == 1
    assert timing.triton_us > 0
    assert stages <= timing.total_us
    assert receipt(timing) > 1.7e15
