"""What an annotator's stream promises."""

import cv2
import grpc
import numpy as np
import pytest
from pycocotools import mask as coco

from polywand_contract.v1 import annotation_pb2 as pb
from tests.interactors import Gate
from tests.running import DETECTION, WAND_VERSION, images_in_use, wait_for
from tests.streams import NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

FACE = (220, 130, POSITIVE)
SUIT = (150, 400, POSITIVE)
SLEEVE = (100, 470, POSITIVE)
BACKGROUND = (480, 60, NEGATIVE)


@pytest.fixture
def stream(stub, astronaut):
    """A fresh stream on the portrait."""
    with InteractStream(stub) as opened:
        info = opened.ask(raw_image(astronaut)).image
        assert (info.width, info.height) == (512, 512)
        yield opened


def rings(shape: pb.Shape) -> list[np.ndarray]:
    found = []
    for polygon in shape.polygons:
        for ring in (polygon.exterior, *polygon.holes):
            found.append(np.array(ring.coordinates).reshape(-1, 2))
    return found


def decoded(mask: pb.RleMask) -> np.ndarray:
    return coco.decode({"size": [mask.height, mask.width], "counts": mask.counts}).astype(bool)


def brute_force_raster(shape: pb.Shape, width: int, height: int) -> np.ndarray:
    """Even-odd test of every pixel centre against every edge, column by column: the contract's rule, word by word."""
    inside = np.zeros((height, width), bool)
    centres = np.arange(height) + 0.5
    for ring in rings(shape):
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            for column in range(width):
                x = column + 0.5
                if min(x0, x1) <= x < max(x0, x1):
                    inside[:, column] ^= centres >= y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    return inside


def mask_of(reply: pb.InteractResponse) -> np.ndarray:
    return decoded(reply.segmentation.shape.rle)


@pytest.mark.parametrize(("model", "version"), [("wand_click", WAND_VERSION), ("grabcut", 1)])
def test_a_click_gives_an_outline_that_holds_it(stream, model, version):
    reply = stream.ask(prompt(model, SUIT, mask=True))
    shape = reply.segmentation.shape
    assert (reply.segmentation.model, reply.segmentation.version) == (model, version)
    assert mask_of(reply)[400, 150]
    assert shape.box.x0 < 150 < shape.box.x1
    assert shape.area == pytest.approx(mask_of(reply).sum(), rel=0.02)


@pytest.mark.parametrize("model", ["wand_click", "grabcut"])
def test_a_box_alone_is_enough_where_it_is_optional(stream, model):
    reply = stream.ask(prompt(model, box=(10, 10, 370, 510), mask=True))
    assert mask_of(reply).sum() > 30_000


def test_the_wand_outlines_the_astronaut_by_her_box(stream):
    """A person would keep it: head and suit are inside; the flag, the shuttle and the helmet are not."""
    mask = mask_of(stream.ask(prompt("wand_click", box=(15, 14, 364, 508), mask=True)))
    assert all(mask[y, x] for x, y in ((220, 130), (220, 40), (150, 400), (100, 300)))
    assert not any(mask[y, x] for x, y in ((30, 60), (330, 100), (345, 450), (60, 200)))
    assert 95_000 < mask.sum() < 115_000


def test_the_wand_outlines_the_astronauts_suit_in_three_clicks(stream):
    first = mask_of(stream.ask(prompt("wand_click", (200, 330, POSITIVE), mask=True)))
    clicks = [(200, 330, POSITIVE), (100, 400, POSITIVE), (400, 440, NEGATIVE)]
    stream.ask(prompt("wand_click", *clicks[:2]))
    mask = mask_of(stream.ask(prompt("wand_click", *clicks, mask=True)))
    assert first.any()
    assert all(mask[y, x] for x, y in ((200, 330), (100, 400), (150, 300)))
    assert not any(mask[y, x] for x, y in ((400, 440), (30, 60), (450, 100)))
    assert 45_000 < mask.sum() < 115_000


@pytest.mark.parametrize("model", ["wand_click", "grabcut"])
def test_rasterising_the_polygons_gives_the_mask_back(stream, model):
    reply = stream.ask(prompt(model, FACE, SUIT, mask=True, tolerance=0))
    mask = mask_of(reply)
    assert mask.any()
    np.testing.assert_array_equal(brute_force_raster(reply.segmentation.shape, 512, 512), mask)


def test_exteriors_run_clockwise_and_holes_the_other_way(stream):
    shape = stream.ask(prompt("grabcut", box=(10, 10, 370, 510), tolerance=0)).segmentation.shape

    def signed_area(ring: pb.Ring) -> float:
        x, y = np.array(ring.coordinates).reshape(-1, 2).T
        return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2

    for polygon in shape.polygons:
        assert signed_area(polygon.exterior) > 0  # y points down
        assert all(signed_area(hole) < 0 for hole in polygon.holes)
    areas = [signed_area(polygon.exterior) + sum(map(signed_area, polygon.holes)) for polygon in shape.polygons]
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == pytest.approx(shape.area, rel=1e-4)


def test_fewer_points_on_request(stream):
    def vertices(**output) -> int:
        shape = stream.ask(prompt("wand_click", FACE, SUIT, **output)).segmentation.shape
        return sum(len(ring) for ring in rings(shape))

    exact, default, coarse = vertices(tolerance=0), vertices(), vertices(tolerance=5)
    assert exact > default > coarse >= 3
    for limit in (3, 4, 10, 40):
        assert 3 <= vertices(max_points=limit) <= limit


def test_the_reply_says_how_much_of_the_mask_the_simplification_kept(stream):
    def kept(**output) -> float:
        reply = stream.ask(prompt("wand_click", FACE, SUIT, mask=True, **output))
        drawn = brute_force_raster(reply.segmentation.shape, 512, 512)
        mask = mask_of(reply)
        assert reply.segmentation.shape.iou == pytest.approx((drawn & mask).sum() / (drawn | mask).sum(), abs=0.005)
        return reply.segmentation.shape.iou

    assert kept(tolerance=0) == 1
    assert 1 > kept() > 0.97
    assert kept() > kept(tolerance=10) > kept(max_points=4) > 0.2


def test_changing_only_output_options_never_infers(stream):
    first = stream.ask(prompt("wand_click", FACE, mask=True))
    assert first.timing.inferences > 0
    stricter = stream.ask(prompt("wand_click", FACE, mask=True, threshold=0.9))
    assert stricter.timing.inferences == 0
    assert stricter.segmentation.threshold == pytest.approx(0.9)
    assert mask_of(stricter).sum() < mask_of(first).sum()
    assert not (mask_of(stricter) & ~mask_of(first)).any()


def test_undo_returns_to_the_very_same_outline(stream):
    first = stream.ask(prompt("wand_click", FACE))
    second = stream.ask(prompt("wand_click", FACE, SUIT))
    undone = stream.ask(prompt("wand_click", FACE))
    assert undone.timing.inferences == 0
    assert undone.segmentation == first.segmentation
    assert stream.ask(prompt("wand_click", FACE, SUIT)).segmentation == second.segmentation


def test_a_further_click_refines_what_was_there_and_two_at_once_are_worked_through(stream):
    first = stream.ask(prompt("wand_click", FACE, object_id="one by one"))
    step_by_step = stream.ask(prompt("wand_click", FACE, SLEEVE, object_id="one by one"))
    at_once = stream.ask(prompt("wand_click", FACE, SLEEVE, object_id="at once"))
    one_by_one = first.timing.inferences - DETECTION + step_by_step.timing.inferences
    assert at_once.timing.inferences == one_by_one > step_by_step.timing.inferences > 0
    assert at_once.segmentation == step_by_step.segmentation


def test_too_few_points_is_an_answer(stream):
    reply = stream.ask(prompt("wand_click", BACKGROUND))
    assert reply.WhichOneof("result") == "incomplete"
    assert reply.incomplete.missing_positive_points == 1
    assert reply.incomplete.message == "one more positive point"


def test_an_image_covers_every_prompt_that_it_leaves_without_an_answer(puppet_stub, puppet_models, astronaut, coffee):
    with InteractStream(puppet_stub) as stream, Gate(puppet_models, "disk") as gate:
        stream.ask(raw_image(astronaut))
        objects = [(100 + step, 400, POSITIVE) for step in range(10)]
        for number, point in enumerate(objects):
            stream.send(prompt("disk", point, object_id=str(number)))
        gate.wait_until_begun()
        image = stream.send(raw_image(coffee))
        reply = stream.receive()
    assert (reply.sequence, reply.image.width, reply.skipped) == (image, 600, len(objects))


def test_objects_do_not_wait_for_each_other_and_keep_their_own_memory(stream):
    wanted = {}
    for name, point in (("face", FACE), ("suit", SUIT)):
        wanted[stream.send(prompt("wand_click", point, object_id=name))] = name
    got = {}
    for _ in wanted:
        reply = stream.receive()
        assert reply.object_id == wanted[reply.sequence]
        got[reply.object_id] = reply.segmentation
    assert got["face"] != got["suit"]
    assert stream.ask(prompt("wand_click", FACE, object_id="face")).segmentation == got["face"]


def test_the_next_image_starts_clean(stream, coffee):
    stream.ask(prompt("wand_click", FACE))
    assert stream.ask(raw_image(coffee)).image.width == 600
    reply = stream.ask(prompt("wand_click", FACE))
    assert reply.timing.inferences > 0
    outside = stream.ask(prompt("wand_click", (100, 450, POSITIVE)))  # inside the first image only
    assert outside.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_24_megapixel_photo_gives_the_outline_of_the_small_one(stub, astronaut):
    large = cv2.resize(astronaut, (4900, 4900), interpolation=cv2.INTER_CUBIC)
    scale = 4900 / 512
    with InteractStream(stub) as small_stream, InteractStream(stub) as large_stream:
        small_stream.ask(raw_image(astronaut))
        assert large_stream.ask(raw_image(large)).image.width == 4900
        small = small_stream.ask(prompt("wand_click", FACE, SUIT, BACKGROUND, mask=True))
        points = [(x * scale, y * scale, label) for x, y, label in (FACE, SUIT, BACKGROUND)]
        big = large_stream.ask(prompt("wand_click", *points, mask=True))
    shrunk = cv2.resize(mask_of(big).astype(np.uint8), (512, 512), interpolation=cv2.INTER_AREA) > 0.5
    union = (shrunk | mask_of(small)).sum()
    assert (shrunk & mask_of(small)).sum() / union > 0.95


def test_a_client_that_stops_sending_gets_its_answers_and_an_orderly_end(stream):
    sequence = stream.send(prompt("wand_click", FACE))
    stream.finish()
    replies = list(stream.replies())
    assert [reply.sequence for reply in replies] == [sequence]
    assert stream.call.code() == grpc.StatusCode.OK


def test_a_client_that_vanishes_leaves_nothing_behind(puppets, puppet_stub, puppet_models, astronaut):
    streams = 'polywand_grpc_active_streams{method="polywand.v1.AnnotationService/Interact"}'
    masks = "polywand_mask_memory_bytes"

    def nothing_is_left() -> bool:
        return puppets.metric(streams) == puppets.metric(masks) == images_in_use(puppets) == 0

    wait_for(nothing_is_left, 60, puppets)  # of the tests before
    with Gate(puppet_models, "disk") as gate:
        with InteractStream(puppet_stub) as stream:
            gate.let_through()
            stream.ask(raw_image(astronaut))
            stream.ask(prompt("disk", FACE))
            assert puppets.metric(streams) == 1
            assert puppets.metric(masks) > 0
            assert images_in_use(puppets) > 0
            stream.send(prompt("disk", SUIT))
            gate.wait_until_begun(2)
        gate.wait_until_cancelled()
    wait_for(nothing_is_left, 60, puppets)


def test_timing_comes_with_every_reply(stream):
    timing = stream.ask(prompt("wand_click", FACE, object_id="timed")).timing
    stages = timing.wait_us + timing.decode_us + timing.prepare_us + timing.triton_us + timing.geometry_us
    assert timing.triton_us > 0
    assert timing.geometry_us > 0
    assert 0 < stages <= timing.total_us
