"""What a stream remembers: states of the models' own, masks to start from, and how much of all that."""

from collections.abc import Iterator

import cv2
import grpc
import numpy as np
import pytest
from pycocotools import mask as coco

import polywand
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.puppets import IMAGES_MEBIBYTES, MEMORY_MEBIBYTES, STREAM_MEMORY_MEBIBYTES
from tests.running import wait_for
from tests.streams import NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

MEMORY = "polywand_mask_memory_bytes"
INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.fixture
def stream(idle_stub: annotation_pb2_grpc.AnnotationServiceStub) -> Iterator[InteractStream]:
    with InteractStream(idle_stub) as opened:
        opened.ask(blank())
        yield opened


def blank(size: int = 256, shade: int = 0) -> pb.Image:
    return raw_image(np.full((size, size, 3), shade, np.uint8))


def jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def clicks(count: int, **options) -> pb.Prompt:
    return prompt("counter", *[(128 + 3 * number, 128, POSITIVE) for number in range(count)], **options)


def inferences(stream: InteractStream, message: pb.Prompt) -> tuple[int, int]:
    """How many inferences led to the answer, by the disk's radius; and how many it took now."""
    reply = stream.ask(message)
    return round((reply.segmentation.shape.area / np.pi) ** 0.5 / 8), reply.timing.inferences


def blob(width: int = 256, height: int = 256) -> np.ndarray:
    """Two parts, one with a hole."""
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 3, height // 2), (width // 5, height // 4), 30, 0, 360, 1, -1)
    cv2.circle(mask, (width // 3, height // 2), min(width, height) // 12, 0, -1)
    cv2.circle(mask, (width * 4 // 5, height // 4), min(width, height) // 10, 1, -1)
    return mask


def rle_seed(mask: np.ndarray) -> pb.SeedMask:
    counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
    return pb.SeedMask(rle=pb.RleMask(width=mask.shape[1], height=mask.shape[0], counts=counts))


def seeded(message: pb.Prompt, seed: pb.SeedMask) -> pb.Prompt:
    message.seed.CopyFrom(seed)
    return message


def mask_of(reply: pb.InteractResponse) -> np.ndarray:
    mask = reply.segmentation.shape.rle
    return coco.decode({"size": [mask.height, mask.width], "counts": mask.counts}).astype(bool)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.astype(bool), second.astype(bool)
    return float((first & second).sum() / (first | second).sum())


def test_a_models_state_comes_back_with_the_next_prompt_and_with_undo_that_of_before(stream):
    assert inferences(stream, clicks(1)) == (1, 1)
    assert inferences(stream, clicks(2)) == (2, 1)
    assert inferences(stream, clicks(3)) == (3, 1)
    assert inferences(stream, clicks(2)) == (2, 0)  # undone
    other = clicks(2)
    other.points.add(x=200, y=200, label=NEGATIVE)
    assert inferences(stream, other) == (3, 1)  # from the state that belonged to two clicks
    assert inferences(stream, clicks(1, object_id="another")) == (1, 1)
    stream.ask(blank())
    assert inferences(stream, clicks(1)) == (1, 1)


@pytest.mark.parametrize("model", ["keeper", "keeper_of_any_size"])
@pytest.mark.parametrize("size", [(256, 256), (640, 400), (3000, 2000)])
def test_a_seed_alone_is_answered_by_its_own_outline_without_an_inference(idle_stub, model, size):
    width, height = size
    mask = blob(width, height)
    with InteractStream(idle_stub) as stream:
        stream.ask(raw_image(np.zeros((height, width, 3), np.uint8)))
        reply = stream.ask(seeded(prompt(model, mask=True), rle_seed(mask)))
        assert reply.timing.inferences == 0
        np.testing.assert_array_equal(mask_of(reply), mask)
        assert reply.segmentation.shape.area == mask.sum()
        assert len(reply.segmentation.shape.polygons) == 2
        # What it answered is a seed just as well.
        again = pb.SeedMask(polygons=pb.PolygonSet(polygons=reply.segmentation.shape.polygons))
        second = stream.ask(seeded(prompt(model, mask=True, object_id="again"), again))
        assert iou(mask_of(second), mask) > 0.995
        assert second.segmentation.shape.polygons == reply.segmentation.shape.polygons


def lines(thickness: int, width: int = 3000, height: int = 2000) -> np.ndarray:
    """A cord across the image, a mast and a sloping cable; they meet nowhere."""
    mask = np.zeros((height, width), np.uint8)
    cv2.line(mask, (20, 50), (width - 20, 50), 1, thickness)
    cv2.line(mask, (60, 200), (60, height - 20), 1, thickness)
    cv2.line(mask, (200, height - 60), (width - 60, 200), 1, thickness)
    return mask


def quadrangle(*points: tuple[float, float]) -> pb.SeedMask:
    ring = pb.Ring(coordinates=[value for point in points for value in point])
    return pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=ring)]))


@pytest.mark.parametrize("thickness", [1, 2])
def test_thin_parts_of_a_large_seed_are_kept(idle_stub, thickness):
    mask = lines(thickness)
    with InteractStream(idle_stub) as stream:
        stream.ask(raw_image(np.zeros((*mask.shape, 3), np.uint8)))
        reply = stream.ask(seeded(prompt("keeper", mask=True, tolerance=0), rle_seed(mask)))
        found = mask_of(reply)
        assert len(reply.segmentation.shape.polygons) == 3
        np.testing.assert_array_equal(found, mask)
        again = pb.SeedMask(polygons=pb.PolygonSet(polygons=reply.segmentation.shape.polygons))
        second = stream.ask(seeded(prompt("keeper", mask=True, object_id="again", tolerance=0), again))
        np.testing.assert_array_equal(mask_of(second), mask)


def test_a_seed_with_thousands_of_corners_is_drawn_in_a_child_just_as_exactly(idle_stub):
    noise = np.random.default_rng(3).normal(size=(600, 800)).astype(np.float32)
    mask = cv2.GaussianBlur(noise, (0, 0), 3) > 0.02
    seed = rle_seed(mask.astype(np.uint8))
    assert len(seed.rle.counts) > 2**14
    with InteractStream(idle_stub) as stream:
        stream.ask(raw_image(np.zeros((600, 800, 3), np.uint8)))
        reply = stream.ask(seeded(prompt("keeper", mask=True, tolerance=0), seed))
        np.testing.assert_array_equal(mask_of(reply), mask)
        parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        assert len(reply.segmentation.shape.polygons) == parts


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_a_long_thin_seed_is_held_as_it_is(idle_stub, thickness):
    mask = np.zeros((100, 4000), np.uint8)
    mask[50 : 50 + thickness, 10:3990] = 1
    with InteractStream(idle_stub) as stream:
        stream.ask(raw_image(np.zeros((*mask.shape, 3), np.uint8)))
        found = mask_of(stream.ask(seeded(prompt("keeper", mask=True, tolerance=0), rle_seed(mask))))
        np.testing.assert_array_equal(found, mask)
        drawn = quadrangle((10, 50), (3990, 50), (3990, 50 + thickness), (10, 50 + thickness))
        found = mask_of(stream.ask(seeded(prompt("keeper", mask=True, object_id="b", tolerance=0), drawn)))
        np.testing.assert_array_equal(found, mask)


def test_a_polygon_between_the_pixels_holds_none_of_them(idle_stub):
    with InteractStream(idle_stub) as stream:
        stream.ask(raw_image(np.zeros((2000, 3000, 3), np.uint8)))
        between = quadrangle((10, 49.7), (2990, 49.7), (2990, 50.3), (10, 50.3))
        reply = stream.ask(seeded(prompt("keeper"), between))
        assert reply.error.code == INVALID
        assert "prompt.seed.polygons: they hold no pixel of the image" in reply.error.message
        corners = [(10, 40), (2990, 1900), (2990, 1900.7), (10, 40.7)]  # of seven columns in ten it holds a pixel
        sloping = quadrangle(*corners)
        found = mask_of(stream.ask(seeded(prompt("keeper", mask=True, tolerance=0), sloping)))
        by_the_rule = polywand.rasterise([polywand.Polygon(np.array(corners, np.float32))], 3000, 2000)
        np.testing.assert_array_equal(found, by_the_rule)


def test_a_bridge_of_no_width_between_the_parts_of_a_seed_is_nothing(idle_stub):
    """Two squares in one ring, joined by an edge there and back, as tools without multipolygons write them."""
    for width, step in ((200, 10), (2000, 100)):
        ring = [(1, 1), (4, 1), (4, 2), (8, 2), (8, 1), (11, 1), (11, 4), (8, 4), (8, 2), (4, 2), (4, 4), (1, 4)]
        bridged = quadrangle(*[(x * step, y * step + 0.5) for x, y in ring])
        mask = np.zeros((width, width), np.uint8)
        mask[step : 4 * step, step : 4 * step] = mask[step : 4 * step, 8 * step : 11 * step] = 1
        with InteractStream(idle_stub) as stream:
            stream.ask(raw_image(np.zeros((width, width, 3), np.uint8)))
            reply = stream.ask(seeded(prompt("keeper", mask=True), bridged))
            assert len(reply.segmentation.shape.polygons) == 2
            assert iou(mask_of(reply), mask) > 0.98


def test_a_seed_that_runs_to_and_fro_across_a_large_image_takes_no_longer_than_another(idle_stub):
    """Twenty thousand edges, each as long as the image is wide: 80 million places where they cross a column."""
    x = np.tile([0.0, 4000.0], 10_000)
    y = np.repeat(np.linspace(10, 90, 10_000), 2)
    ring = pb.Ring(coordinates=np.stack([x, y], axis=1).ravel())
    seed = pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=ring)]))
    with InteractStream(idle_stub) as stream:
        stream.ask(raw_image(np.zeros((100, 4000, 3), np.uint8)))
        reply = stream.ask(seeded(prompt("keeper"), seed), seconds=10)
        assert reply.WhichOneof("result") == "segmentation", reply


def test_an_object_starts_from_its_seed_and_undo_leads_back_to_it(stream):
    mask, seed = blob(), rle_seed(blob())
    start = stream.ask(seeded(prompt("keeper", mask=True), seed))
    grown = stream.ask(seeded(prompt("keeper", (30, 30, POSITIVE), mask=True), seed))
    assert grown.timing.inferences == 1
    assert mask_of(grown)[30, 30]
    assert iou(mask_of(grown) & mask.astype(bool), mask) > 0.95
    # A seed stands in for positive points: the first click may take something away.
    cut = stream.ask(seeded(prompt("keeper", (205, 64, NEGATIVE), mask=True), seed))
    assert mask[64, 205]
    assert not mask_of(cut)[64, 205]
    undone = stream.ask(seeded(prompt("keeper", mask=True), seed))
    assert undone.segmentation == start.segmentation
    assert undone.timing.inferences == 0
    # Another seed of the same object is another start.
    other = np.roll(mask, 20, axis=0)
    moved = stream.ask(seeded(prompt("keeper", (30, 30, POSITIVE), mask=True), rle_seed(other)))
    assert iou(mask_of(moved) & other.astype(bool), other) > 0.95


def test_a_shipped_tool_refines_a_seed(idle_stub, server, astronaut):
    """The annotation that one tool made is what another one starts from."""
    with grpc.insecure_channel(server.target) as channel:
        shipped = annotation_pb2_grpc.AnnotationServiceStub(channel)
        with InteractStream(shipped) as stream:
            stream.ask(raw_image(astronaut))
            rough = stream.ask(prompt("grabcut", box=(15, 14, 364, 508))).segmentation.shape
            seed = pb.SeedMask(polygons=pb.PolygonSet(polygons=rough.polygons))
            click = prompt("wand_click", (150, 400, POSITIVE), mask=True)
            reply = stream.ask(seeded(click, seed))
            assert reply.timing.inferences == 1
            assert mask_of(reply)[400, 150]


@pytest.mark.parametrize(
    ("seed", "field", "says"),
    [
        (pb.SeedMask(), "prompt.seed", "run lengths or polygons"),
        (rle_seed(blob(100, 100)), "prompt.seed.rle", "100 x 100 pixels, and the image of 256 x 256"),
        (pb.SeedMask(rle=pb.RleMask(width=256, height=256, counts="garbage")), "prompt.seed.rle.counts", "256 x 256"),
        (pb.SeedMask(rle=pb.RleMask(width=256, height=256, counts="é")), "prompt.seed.rle.counts", "ASCII"),
        (pb.SeedMask(rle=pb.RleMask(width=256, height=256, counts="o" * 500_000)), "prompt.seed.rle.counts", "256 x"),
        (pb.SeedMask(rle=pb.RleMask(width=256, height=256, counts="0" * 2**21)), "prompt.seed.rle.counts", "1048576"),
        (rle_seed(np.zeros((256, 256), np.uint8)), "prompt.seed.rle.counts", "empty"),
        (pb.SeedMask(polygons=pb.PolygonSet()), "prompt.seed.polygons", "at least one polygon"),
        (
            pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=pb.Ring(coordinates=[0, 0, 9, 9]))])),
            *("prompt.seed.polygons", "three vertices"),
        ),
        (
            pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=pb.Ring(coordinates=[0, 0] * 20_001))])),
            *("prompt.seed.polygons", "20001 vertices; at most 20000"),
        ),
        (
            pb.SeedMask(
                polygons=pb.PolygonSet(
                    polygons=[pb.Polygon(exterior=pb.Ring(coordinates=[0, 0, float("nan"), 9, 9, 0]))]
                )
            ),
            *("prompt.seed.polygons", "finite"),
        ),
        (
            pb.SeedMask(
                polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=pb.Ring(coordinates=[300, 0, 310, 0, 300, 10]))])
            ),
            *("prompt.seed.polygons", "0..256 by 0..256"),
        ),
    ],
)
def test_a_bad_seed_names_its_field_and_the_stream_lives_on(stream, seed, field, says):
    reply = stream.ask(seeded(prompt("keeper", (30, 30, POSITIVE)), seed))
    assert reply.error.code == INVALID, reply
    assert field in reply.error.message
    assert says in reply.error.message
    assert stream.ask(prompt("keeper", (30, 30, POSITIVE))).segmentation.shape.polygons


def test_a_tool_that_reads_no_seed_says_so(idle_stub, stream):
    reads = {model.name: model.interactor.reads_seed for model in idle_stub.ListModels(pb.ListModelsRequest()).models}
    assert reads["keeper"]
    assert not reads["counter"]
    reply = stream.ask(seeded(clicks(1), rle_seed(blob())))
    assert reply.error.code == INVALID
    assert "model 'counter' reads no seed mask" in reply.error.message


@pytest.mark.parametrize("tool", ["counter", "keeper", "keeper_of_any_size", "leaning", "leaning_flipped"])
@pytest.mark.parametrize("start", ["a click", "a box", "a seed", "a seed and a box"])
def test_clicks_at_once_are_answered_as_one_by_one(stream, tool, start):
    """Forwards, backwards, and with other objects in between, which have the beginning forgotten."""
    if "seed" in start and not tool.startswith("keeper"):
        return
    points = [(150, 100, POSITIVE), (100, 150, POSITIVE), (160, 160, NEGATIVE), (60, 60, POSITIVE)]

    def asked(count: int, object_id: str) -> pb.Prompt:
        box = (40, 30, 200, 220) if "box" in start else None
        message = prompt(tool, *points[:count], box=box, object_id=object_id, tolerance=0)
        return seeded(message, rle_seed(blob())) if "seed" in start else message

    counts = range(1 if start == "a click" else 0, len(points) + 1)
    warm = {count: stream.ask(asked(count, "one by one")).segmentation for count in counts}
    assert len({found.SerializeToString() for found in warm.values()}) > 1
    for count in reversed(counts):
        assert stream.ask(asked(count, f"{count} at once")).segmentation == warm[count]
    for number in range(10):
        stream.ask(clicks(1, object_id=str(number)))
    last = stream.ask(asked(len(points), "one by one"))
    assert last.segmentation == warm[len(points)]
    assert last.timing.inferences == len(counts) - (start == "a seed")  # nothing was remembered


def test_what_is_remembered_of_a_prompt_is_not_worked_through_again(stream):
    assert inferences(stream, clicks(3)) == (3, 3)
    assert inferences(stream, clicks(5)) == (5, 2)
    assert inferences(stream, clicks(4)) == (4, 0)
    assert inferences(stream, clicks(6, box=(0, 0, 256, 256))) == (7, 7)  # the box counts as drawn before


def test_clicks_that_a_tool_does_not_answer_yet_are_no_beginning(stream):
    first = prompt("counter", (30, 30, NEGATIVE), (128, 128, POSITIVE), (131, 128, POSITIVE))
    assert inferences(stream, first) == (2, 2)


def test_a_streams_memory_is_bounded_in_bytes(puppets, stream):
    """At 257 kB and more a map, two mebibytes hold seven; the newest stay."""
    for number in range(12):
        stream.ask(clicks(1, object_id=str(number)))
        assert puppets.metric(MEMORY) <= STREAM_MEMORY_MEBIBYTES * 1024 * 1024
    assert inferences(stream, clicks(1, object_id="11")) == (1, 0)
    assert inferences(stream, clicks(1, object_id="0")) == (1, 1)


def test_the_memory_of_all_streams_is_shared_fairly(puppets, idle_stub):
    streams = [InteractStream(idle_stub) for _ in range(4)]
    try:
        for stream in streams:
            stream.ask(blank())
        for number in range(10):
            for stream in streams:
                stream.ask(clicks(1, object_id=str(number)))
        assert puppets.metric(MEMORY) <= MEMORY_MEBIBYTES * 1024 * 1024
        for stream in streams:  # each still has its newest
            assert inferences(stream, clicks(1, object_id="9")) == (1, 0)
    finally:
        for stream in streams:
            stream.__exit__()


def test_streams_that_rest_make_room_for_new_ones(puppets, idle_stub):
    streams = []
    try:
        for _ in range(6):  # each fills what it may, and rests
            streams.append(InteractStream(idle_stub))
            streams[-1].ask(blank())
            for number in range(10):
                streams[-1].ask(clicks(1, object_id=str(number)))
            assert puppets.metric(MEMORY) <= MEMORY_MEBIBYTES * 1024 * 1024
    finally:
        for stream in streams:
            stream.__exit__()


def test_who_has_an_image_may_go_on_to_the_next_however_full_it_is(idle_stub):
    with InteractStream(idle_stub) as stream:
        for shade in range(3):
            assert stream.ask(blank(2400, shade)).image.width == 2400


def test_images_that_find_no_room_are_refused_until_others_go(puppets, idle_stub):
    """Thirty-two mebibytes hold one image of 2400 x 2400 pixels with its pyramid, and not two."""
    large = blank(2400)
    with InteractStream(idle_stub) as first:
        assert first.ask(large).image.width == 2400
        with InteractStream(idle_stub) as second:
            second.ask(blank())
            reply = second.ask(blank(2400, shade=1))
            assert reply.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], reply
            assert f"at most {IMAGES_MEBIBYTES} MiB of images" in reply.error.message
            assert inferences(second, clicks(1)) == (1, 1)  # the last image stays
    with InteractStream(idle_stub) as third:
        wait_for(lambda: third.ask(large).image.width == 2400, 60, puppets)


def test_all_who_have_an_image_may_go_on_at_once_however_full_it_is(idle_stub):
    """Two images of 14 MiB are all that fits in 32; for a moment, there are four."""
    with InteractStream(idle_stub) as first, InteractStream(idle_stub) as second:
        for number in range(20):
            for shade, stream in enumerate((first, second), 2 * number):
                stream.send(pb.Image(encoded=jpeg(np.full((1900, 1900, 3), shade, np.uint8))))
            for stream in (first, second):
                reply = stream.receive()
                assert reply.WhichOneof("result") == "image", reply
        with InteractStream(idle_stub) as third:
            other = pb.Image(encoded=jpeg(np.full((1900, 1900, 3), 255, np.uint8)))
            assert third.ask(other).error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def test_an_image_that_would_never_find_room_is_too_large(stream):
    reply = stream.ask(blank(3400))
    assert reply.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], reply
    assert "image.raw" in reply.error.message
    assert f"{IMAGES_MEBIBYTES} MiB" in reply.error.message


def test_a_model_that_answers_no_numbers_fails_alone(stream):
    reply = stream.ask(prompt("broken", (128, 128, POSITIVE)))
    assert reply.error.code == grpc.StatusCode.INTERNAL.value[0], reply
    assert "model 'broken' answered LOGITS that are no 256 x 256 numbers" in reply.error.message
    assert inferences(stream, clicks(1)) == (1, 1)


def test_flip_averaging_asks_about_the_mirror_image_too_and_each_half_keeps_its_state(stream):
    """The model says 10 right of the point and -6 left of it; what is bright in the image belongs to nobody."""
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, 200:] = 255
    stream.ask(raw_image(pixels))
    one_sided, averaged = (
        mask_of(stream.ask(prompt(name, (64.5, 128, POSITIVE), mask=True))) for name in ("leaning", "leaning_flipped")
    )
    assert one_sided[:, 65:200].all()
    assert not one_sided[:, :64].any()
    assert averaged[:, :64].all()  # 2 on average
    assert averaged[:, 65:200].all()
    assert not averaged[:, 64].any()  # the point itself is on no side
    assert not averaged[:, 200:].any()
    # One inference more costs each half 3, so that nothing is left on average.
    again = stream.ask(prompt("leaning_flipped", (64.5, 128, POSITIVE), (64.5, 130, POSITIVE)))
    assert not again.segmentation.shape.polygons
    assert again.timing.inferences == 1
