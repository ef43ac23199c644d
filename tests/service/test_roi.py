"""What a region of interest promises: the answer is that of the cropped image, moved, as if the rest did not exist."""

import cv2
import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from polywand_contract.raster import decode_rle
from polywand_contract.v1 import annotation_pb2 as pb
from tests.streams import NEGATIVE, POSITIVE, prompt, raw_image

FORMS = [pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE, pb.OUTPUT_FORM_PNG]
# Left, top, right, bottom: on whole pixels of all pyramid levels, on odd ones, and to the image's far corner.
PLACES = [(64, 128, 448, 384), (37, 11, 401, 500), (101, 203, 512, 512)]
CLICK = (220, 250, POSITIVE)


def box_of(edges: tuple[float, ...]) -> pb.Box:
    x0, y0, x1, y1 = edges
    return pb.Box(x0=x0, y0=y0, x1=x1, y1=y1)


def moved(asked: pb.Prompt, left: int, top: int) -> pb.Prompt:
    """The same prompt on the cropped image. RLE seeds must have been cropped already."""
    result = pb.Prompt()
    result.CopyFrom(asked)
    for point in result.points:
        point.x, point.y = point.x - left, point.y - top
    if result.HasField("box"):
        x0, y0, x1, y1 = result.box.x0, result.box.y0, result.box.x1, result.box.y1
        result.box.CopyFrom(box_of((x0 - left, y0 - top, x1 - left, y1 - top)))
    for polygon in result.seed.polygons.polygons:
        shift(polygon.exterior, -left, -top)
    return result


def shift(ring: pb.Ring, x: float, y: float) -> None:
    flat = np.array(ring.coordinates, np.float32).reshape(-1, 2) + np.array([x, y], np.float32)
    del ring.coordinates[:]
    ring.coordinates.extend(flat.ravel().tolist())


def check_moved(whole: pb.Shape, alone: pb.Shape, window: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """That the first shape is the second one, moved from the window into the image. size: of the image."""
    left, top, right, bottom = window
    expected = pb.Shape()
    expected.CopyFrom(alone)
    for polygon in expected.polygons:
        for ring in (polygon.exterior, *polygon.holes):
            shift(ring, left, top)
    assert whole.polygons == expected.polygons
    assert whole.HasField("box") == alone.HasField("box")
    if alone.HasField("box"):
        edges = (alone.box.x0 + left, alone.box.y0 + top, alone.box.x1 + left, alone.box.y1 + top)
        assert (whole.box.x0, whole.box.y0, whole.box.x1, whole.box.y1) == pytest.approx(edges, rel=1e-6)
    assert (whole.area, whole.tolerance, whole.iou) == (alone.area, alone.tolerance, alone.iou)
    if alone.HasField("rle"):
        mask = np.zeros(size[::-1], bool)
        mask[top:bottom, left:right] = decode_rle(alone.rle.counts, right - left, bottom - top)
        assert (whole.rle.width, whole.rle.height) == size
        np.testing.assert_array_equal(decode_rle(whole.rle.counts, *size), mask)
        picture = cv2.imdecode(np.frombuffer(whole.png, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(picture > 0, mask)


WAND, GRABCUT = ("wand_box", "wand_click"), ("grabcut", "grabcut")


@pytest.mark.parametrize(("models", "place"), [*((WAND, place) for place in PLACES), (GRABCUT, PLACES[0])])
def test_the_outlines_are_those_of_the_cropped_image(stub, astronaut, place, models):
    left, top, right, bottom = place
    by_box, by_click = models
    inner = (left + 20, top + 30, right - 40, bottom - 10)
    seeded = prompt(by_click, (left + 50, top + 60, NEGATIVE), forms=FORMS)
    ring = seeded.seed.polygons.polygons.add().exterior
    ring.coordinates.extend(
        [left - 10, top + 40, right - 100, top + 40, right - 100, bottom + 9, left - 10, bottom - 9]
    )
    only_seed = pb.Prompt(model=by_click, seed=seeded.seed, output=seeded.output)
    wanted = [
        prompt(by_box, box=inner, forms=FORMS),
        prompt(by_click, CLICK, forms=FORMS),
        prompt(by_click, CLICK, (left + 3, top + 2, NEGATIVE), box=inner, forms=FORMS, tolerance=0),
        seeded,
        only_seed,
    ]
    whole = stub.Segment(pb.SegmentRequest(image=raw_image(astronaut), prompts=wanted, roi=box_of(place)))
    crop = raw_image(np.ascontiguousarray(astronaut[top:bottom, left:right]))
    alone = stub.Segment(pb.SegmentRequest(image=crop, prompts=[moved(asked, left, top) for asked in wanted]))
    assert (whole.image.width, whole.image.height) == (512, 512)
    for number, (ours, theirs) in enumerate(zip(whole.results, alone.results, strict=True)):
        assert ours.WhichOneof("result") == "segmentation", (number, ours)
        check_moved(ours.segmentation.shape, theirs.segmentation.shape, place, (512, 512))
        assert ours.segmentation.score == theirs.segmentation.score
    assert sum(bool(result.segmentation.shape.polygons) for result in whole.results) >= 3


@pytest.mark.parametrize("place", PLACES)
def test_a_seed_of_run_lengths_is_cut_to_the_region(puppet_stub, astronaut, place):
    left, top, right, bottom = place
    first = puppet_stub.Segment(
        pb.SegmentRequest(image=raw_image(astronaut), prompts=[prompt("disk", CLICK, forms=FORMS)])
    )
    mask = first.results[0].segmentation.shape.rle
    asked = pb.Prompt(model="keeper", seed=pb.SeedMask(rle=mask), output=pb.OutputOptions(forms=FORMS))
    reply = puppet_stub.Segment(pb.SegmentRequest(image=raw_image(astronaut), prompts=[asked], roi=box_of(place)))
    inside = np.zeros((512, 512), bool)
    inside[top:bottom, left:right] = True
    found = decode_rle(reply.results[0].segmentation.shape.rle.counts, 512, 512)
    np.testing.assert_array_equal(found, decode_rle(mask.counts, 512, 512) & inside)


@pytest.mark.parametrize("place", [*PLACES, (36.5, 10.25, 400.5, 499.75)])
def test_detections_and_their_outlines_are_those_of_the_cropped_image(stub, astronaut, place):
    polygons = pb.PolygonOptions(model="wand_box", output=pb.OutputOptions(forms=FORMS))
    options = {"threshold": 0.1, "max_detections": 5, "polygons": polygons}
    whole = stub.Detect(pb.DetectRequest(image=raw_image(astronaut), roi=box_of(place), **options))
    left, top, right, bottom = (int(np.floor(place[0])), int(np.floor(place[1])), *np.ceil(place[2:]).astype(int))
    crop = raw_image(np.ascontiguousarray(astronaut[top:bottom, left:right]))
    alone = stub.Detect(pb.DetectRequest(image=crop, **options))
    assert (whole.image.width, whole.image.height) == (512, 512)
    assert len(whole.detections) == len(alone.detections) > 0
    for ours, theirs in zip(whole.detections, alone.detections, strict=True):
        assert (ours.label, ours.score) == (theirs.label, theirs.score)
        edges = (theirs.box.x0 + left, theirs.box.y0 + top, theirs.box.x1 + left, theirs.box.y1 + top)
        assert (ours.box.x0, ours.box.y0, ours.box.x1, ours.box.y1) == pytest.approx(edges, rel=1e-6)
        check_moved(ours.shape, theirs.shape, (left, top, right, bottom), (512, 512))


def test_frames_of_a_stream_may_have_regions_of_their_own(puppet_stub, astronaut):
    regions = [(0, 0, 100, 100), None, (0, 0, 600, 9), (100, 200, 512, 512)]

    def frames():
        for number, region in enumerate(regions):
            request = pb.DetectRequest(model="finder", image=raw_image(astronaut), roi=region and box_of(region))
            yield pb.DetectStreamRequest(frame_id=number, request=request)

    replies = list(puppet_stub.DetectStream(frames()))
    assert [reply.WhichOneof("result") for reply in replies] == ["response", "response", "error", "response"]
    for region, reply in zip(regions, replies, strict=True):
        x0, y0, x1, y1 = region or (0, 0, 512, 512)
        for found in reply.response.detections:
            assert x0 <= found.box.x0 < found.box.x1 <= x1
            assert y0 <= found.box.y0 < found.box.y1 <= y1


BAD_REGIONS = {
    "outside on the right": ((100, 100, 513, 200), "reaches outside: the image spans 0..512 by 0..512"),
    "far outside": ((1e9, 1e9, 2e9, 2e9), "reaches outside"),
    "left of the image": ((-1, 0, 10, 10), "the image begins at (0, 0)"),
    "empty": ((10, 10, 10, 20), "x0 < x1"),
    "inverted": ((20, 10, 10, 20), "x0 < x1"),
    "not a number": ((float("nan"), 0, 10, 10), "finite"),
    "infinite": ((0, 0, float("inf"), 10), "finite"),
}


@pytest.mark.parametrize("case", BAD_REGIONS)
def test_a_region_that_is_no_part_of_the_image_is_refused(puppet_stub, astronaut, case):
    edges, words = BAD_REGIONS[case]
    image, asked = raw_image(astronaut), prompt("disk", (5, 5, POSITIVE))
    for call, request in (
        (puppet_stub.Segment, pb.SegmentRequest(image=image, prompts=[asked], roi=box_of(edges))),
        (puppet_stub.Segment, pb.SegmentRequest(image=image, prompts=[asked, asked], roi=box_of(edges))),
        (puppet_stub.Detect, pb.DetectRequest(image=image, model="finder", roi=box_of(edges))),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        violation = error_details_pb2.BadRequest()
        details = rpc_status.from_call(caught.value).details
        assert any(detail.Unpack(violation) for detail in details)
        assert violation.field_violations[0].field == "roi"
        assert words in violation.field_violations[0].description


def test_a_point_or_a_box_outside_the_region_is_refused_by_its_path(puppet_stub, astronaut):
    wanted = [
        prompt("disk", (100.25, 90, POSITIVE)),
        prompt("disk", (150, 150, POSITIVE), (99, 150, POSITIVE)),
        prompt("upper_half", box=(120, 120, 201.5, 140)),
        prompt("disk", (201, 180, POSITIVE)),
    ]
    region = box_of((100.5, 89.5, 200.5, 180))
    response = puppet_stub.Segment(pb.SegmentRequest(image=raw_image(astronaut), prompts=wanted, roi=region))
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["segmentation", "error", "error", "segmentation"]
    for number, field in ((1, "prompts[1].points[1]"), (2, "prompts[2].box")):
        error = response.results[number].error
        assert error.code == code_pb2.INVALID_ARGUMENT
        assert error.message.startswith(f"{field}: ")
        assert "outside: the region of interest spans 100..201 by 89..180" in error.message
