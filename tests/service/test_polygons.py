"""What Detect and DetectStream promise when polygons are asked for."""

import queue
import shutil
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pycocotools import mask as coco

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.lanes import PATIENCE_SECONDS
from tests.interactors import Gate
from tests.puppets import BATCH, add_upper_half, journal
from tests.running import WAND_VERSION, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

# Enough for more than one batch of every interactor here.
MANY = {"threshold": 0.05}


def request(pixels, polygons: dict | None, **options) -> pb.DetectRequest:
    wanted = None if polygons is None else pb.PolygonOptions(**polygons)
    return pb.DetectRequest(model="nanodet", image=raw_image(pixels), polygons=wanted, **options)


def detect(stub, pixels, polygons: dict | None, **options) -> pb.DetectResponse:
    return stub.Detect(request(pixels, polygons, **options))


def corners(box: pb.Box) -> tuple[float, ...]:
    return box.x0, box.y0, box.x1, box.y1


def decoded(mask: pb.RleMask) -> np.ndarray:
    return coco.decode({"size": [mask.height, mask.width], "counts": mask.counts}).astype(bool)


BOTH = [pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE]


def vertices(shape: pb.Shape) -> int:
    return sum(len(ring.coordinates) // 2 for part in shape.polygons for ring in (part.exterior, *part.holes))


# On the shipped models


@pytest.mark.parametrize(("model", "version"), [("wand_click", WAND_VERSION), ("grabcut", 1)])
def test_every_detection_gets_the_outline_that_a_prompt_with_its_box_gets(stub, astronaut, model, version):
    asked = {"model": model, "output": pb.OutputOptions(forms=BOTH, threshold=0.6)}
    response = detect(stub, astronaut, asked, threshold=0.1, max_detections=3)
    assert (response.polygons.model, response.polygons.version) == (model, version)
    assert response.polygons.threshold == pytest.approx(0.6)
    assert len(response.detections) == 3
    with InteractStream(stub) as stream:
        stream.ask(raw_image(astronaut))
        for number, found in enumerate(response.detections):
            output = {"mask": True, "threshold": 0.6}
            answer = stream.ask(prompt(model, box=corners(found.box), object_id=str(number), **output))
            alone = answer.segmentation.shape
            ours, theirs = decoded(found.shape.rle), decoded(alone.rle)
            assert (ours & theirs).sum() >= 0.97 * (ours | theirs).sum()
            assert found.shape.tolerance == alone.tolerance


def test_the_person_is_outlined_and_not_just_boxed(stub, astronaut):
    best = detect(stub, astronaut, {}).detections[0]
    box = (best.box.x1 - best.box.x0) * (best.box.y1 - best.box.y0)
    assert best.label == "person"
    assert 0.3 * box < best.shape.area < 0.9 * box
    assert vertices(best.shape) > 20


def test_boxes_and_scores_are_those_of_a_request_without_polygons(stub, astronaut):
    plain = detect(stub, astronaut, None, threshold=0.2)
    assert len(plain.detections) > 1
    assert not plain.HasField("polygons")
    assert not any(found.HasField("shape") for found in plain.detections)
    outlined = detect(stub, astronaut, {}, threshold=0.2)
    assert outlined.HasField("polygons")
    assert all(found.HasField("shape") for found in outlined.detections)
    for found in outlined.detections:
        found.ClearField("shape")
    assert list(outlined.detections) == list(plain.detections)


def test_output_options_apply_to_each_outline(stub, astronaut):
    asked = {"model": "wand_click", "output": pb.OutputOptions(max_points=12)}
    coarse = detect(stub, astronaut, asked, threshold=0.1, max_detections=3).detections
    assert all(3 <= vertices(found.shape) <= 12 for found in coarse if found.shape.polygons)
    assert not any(found.shape.HasField("rle") for found in coarse)
    asked["output"] = pb.OutputOptions(tolerance=0, forms=[pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE])
    exact = detect(stub, astronaut, asked, threshold=0.1, max_detections=3).detections
    assert len(exact) == len(coarse) == 3
    assert vertices(exact[0].shape) > 100
    for found in exact:
        assert (found.shape.rle.width, found.shape.rle.height) == (512, 512)
        assert decoded(found.shape.rle).sum() == pytest.approx(found.shape.area, rel=0.05, abs=30)


def test_an_image_without_objects_has_no_outlines_and_asks_no_interactor(stub):
    response = detect(stub, np.full((300, 400, 3), 127, np.uint8), {})
    assert not response.detections
    assert response.polygons.model
    assert response.timing.inferences == 1


# What the interactors are sent


@pytest.mark.parametrize(("model", "rows"), [("upper_half", 1), ("upper_half_flipped", 2)])
def test_the_boxes_of_a_frame_go_in_batches_of_at_most_the_models_size(
    puppet_stub, puppet_models, astronaut, model, rows
):
    written = journal(puppet_models, "upper_half")  # the model of both tools
    count = rows * len(detect(puppet_stub, astronaut, None, **MANY).detections)
    assert count > BATCH
    # One by one for a while after a prompt, as another may come.
    wait_for(lambda: detect(puppet_stub, astronaut, {"model": model}, **MANY).timing.inferences < 1 + count // 2, 60)
    written.unlink()
    response = detect(puppet_stub, astronaut, {"model": model}, **MANY)
    sizes = [int(line.split()[0]) for line in written.read_text().splitlines()]
    # The model never waits for a batch to become full; but boxes that wait for it go together.
    assert sizes[:2] == [BATCH] * 2
    assert max(sizes) == BATCH
    assert sum(sizes) == count
    assert response.timing.inferences == 1 + len(sizes)
    check_upper_halves(response)


def test_crops_of_different_sizes_share_no_batch(puppet_stub, puppet_models, astronaut):
    written = journal(puppet_models, "upper_half_of_any_size")
    response = detect(puppet_stub, astronaut, {"model": "upper_half_of_any_size"}, **MANY)
    lines = [tuple(map(int, line.split())) for line in written.read_text().splitlines()]
    assert sum(rows for rows, _, _ in lines) == len(response.detections)
    assert len({(height, width) for _, height, width in lines}) > 1
    check_upper_halves(response)


def check_upper_halves(response: pb.DetectResponse) -> None:
    """Every outline is the upper half of its own box, as exactly as the crop shows it."""
    large = [found for found in response.detections if min(box_sides(found.box)) > 20]
    assert len(large) > 3
    for found in large:
        x0, y0, x1, y1 = corners(found.box)
        pixel = max(box_sides(found.box)) * 1.6 / 128
        assert corners(found.shape.box) == pytest.approx((x0, y0, x1, (y0 + y1) / 2), abs=1 + pixel)


def box_sides(box: pb.Box) -> tuple[float, float]:
    return box.x1 - box.x0, box.y1 - box.y0


def test_a_detection_in_which_nothing_is_found_keeps_its_box(puppet_stub, astronaut):
    found = detect(puppet_stub, astronaut, {"model": "nothing"}).detections[0]
    assert found.label == "person"
    assert found.box.x1 > found.box.x0
    assert found.HasField("shape")
    assert not found.shape.polygons
    assert not found.shape.HasField("box")
    assert found.shape.area == 0


# Which interactor


def test_the_servers_choice_is_wand_box_where_it_is_ready_and_else_wand_click(
    puppets, puppet_stub, puppet_models, astronaut
):
    def choice() -> str:
        return detect(puppet_stub, astronaut, {}, max_detections=1).polygons.model

    assert choice() == "wand_click"
    box_tool = puppet_models / "wand_box"
    try:
        add_upper_half(puppet_models, "wand_box", prompt='{"box": "required", "min_positive_points": 0}')
        puppets.wait_ready("wand_box")
        assert choice() == "wand_box"
    finally:
        shutil.rmtree(box_tool)
    wait_for(lambda: "tool wand_box is gone" in puppets.log.read_text(), 30, puppets)
    assert choice() == "wand_click"


@pytest.mark.parametrize(
    ("polygons", "code", "field", "words"),
    [
        ({"model": "no_such"}, "NOT_FOUND", "polygons.model", "there is no model 'no_such'"),
        ({"model": "nanodet"}, "FAILED_PRECONDITION", "polygons.model", "'nanodet' is a detector"),
        ({"model": "no_box"}, "INVALID_ARGUMENT", "polygons.model", "'no_box' reads no box"),
        ({"model": "box_and_point"}, "INVALID_ARGUMENT", "polygons.model", "more than a box: one more positive point"),
        ({"model": "x" * 300}, "INVALID_ARGUMENT", "polygons.model", "256 bytes"),
        ({"model": "nothing", "version": 9}, "NOT_FOUND", "polygons.version", "has no version 9"),
        ({"version": 1}, "INVALID_ARGUMENT", "polygons.version", "name of a model"),
        ({"output": pb.OutputOptions(tolerance=-1)}, "INVALID_ARGUMENT", "polygons.output.tolerance", "1000 pixels"),
        ({"output": pb.OutputOptions(max_points=2)}, "INVALID_ARGUMENT", "polygons.output.max_points", "from 3"),
        ({"output": pb.OutputOptions(threshold=1)}, "INVALID_ARGUMENT", "polygons.output.threshold", "below 1"),
    ],
)
def test_what_cannot_outline_is_told_by_the_field(puppet_stub, astronaut, polygons, code, field, words):
    with pytest.raises(grpc.RpcError) as caught:
        detect(puppet_stub, astronaut, polygons)
    assert caught.value.code() is grpc.StatusCode[code]
    status = rpc_status.from_call(caught.value)
    details = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(details)
    assert details.field_violations[0].field == field
    assert words in details.field_violations[0].description


def test_one_that_is_not_ready_is_told_by_the_field_and_may_be_asked_again(puppet_stub, astronaut):
    with pytest.raises(grpc.RpcError) as caught:
        detect(puppet_stub, astronaut, {"model": "doomed"})
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details().startswith("polygons.model: model 'doomed' is not ready: ")
    status = rpc_status.from_call(caught.value)
    assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)


# What goes wrong on the way


def test_an_interactor_that_fails_or_dies_is_an_error_of_that_frame_only(puppet_stub, astronaut):
    replies: queue.Queue[None] = queue.Queue()
    wanted = [{"model": "upper_half"}, {"model": "short"}, {"model": "mortal"}, None, {"model": "upper_half"}]

    def frames() -> Iterator[pb.DetectStreamRequest]:
        for number, polygons in enumerate(wanted):  # one after another, so that no other is in work when one fails
            yield pb.DetectStreamRequest(frame_id=number, request=request(astronaut, polygons, **MANY))
            replies.get(timeout=60)

    answers = []
    for answer in puppet_stub.DetectStream(frames()):
        answers.append(answer)
        replies.put(None)
    assert [answer.frame_id for answer in answers] == [0, 1, 2, 3, 4]
    assert [answer.WhichOneof("result") for answer in answers] == ["response", "error", "error", "response", "response"]
    assert answers[1].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert "model 'short' answered LOGITS of 1 objects for 2" in answers[1].error.message
    assert answers[2].error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert answers[4].response.detections[0].shape.polygons


def test_a_client_that_goes_away_takes_its_outlines_with_it(puppet_stub, puppet_models, astronaut):
    with Gate(puppet_models, "upper_half") as gate:
        call = puppet_stub.Detect.future(request(astronaut, {"model": "upper_half"}, **MANY))
        gate.wait_until_begun()
        call.cancel()
        gate.wait_until_cancelled()


def test_clicks_go_before_outlines(puppet_stub, puppet_models, astronaut):
    """While a prompt is in work, every stage of an outline waits until its patience is over."""
    with InteractStream(puppet_stub) as stream, Gate(puppet_models, "disk") as gate:
        stream.ask(raw_image(astronaut))
        stream.send(prompt("disk", (100, 100, POSITIVE)))
        gate.wait_until_begun()
        outlined = detect(puppet_stub, astronaut, {"model": "upper_half"}, max_detections=1).timing
    stages = 3 + 3  # of the detector: decoding, preparing, asking; of its outlines: preparing, asking, drawing
    assert outlined.wait_us > 0.8 * stages * PATIENCE_SECONDS * 1e6
