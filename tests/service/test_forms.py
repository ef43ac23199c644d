"""Forms of an outline: each has the same pixels, and only what is asked for is made and sent."""

import io
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from PIL import Image

from polywand_contract.raster import decode_rle, encode_rle, fill_rings
from polywand_contract.v1 import annotation_pb2 as pb
from tests.streams import NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

POLYGONS, RLE, PNG, BOX = (
    pb.OUTPUT_FORM_POLYGONS,
    pb.OUTPUT_FORM_RLE,
    pb.OUTPUT_FORM_PNG,
    pb.OUTPUT_FORM_BOX,
)
# Of an image whose rows are no whole bytes of a PNG.
WIDTH, HEIGHT = 203, 150
CLICK = (80, 70, POSITIVE)
GREY = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)


@pytest.fixture
def stream(puppet_stub) -> Iterator[InteractStream]:
    with InteractStream(puppet_stub) as opened:
        opened.ask(raw_image(GREY))
        yield opened


def shape_of(reply: pb.InteractResponse) -> pb.Shape:
    assert reply.HasField("segmentation"), reply
    return reply.segmentation.shape


def pixels_of_png(shape: pb.Shape) -> NDArray[np.bool_]:
    with Image.open(io.BytesIO(shape.png)) as image:
        assert (image.format, image.mode) == ("PNG", "1")  # one bit a pixel
        return np.asarray(image)


def pixels_of_rle(shape: pb.Shape) -> NDArray[np.bool_]:
    return decode_rle(shape.rle.counts, shape.rle.width, shape.rle.height)


def pixels_of_polygons(shape: pb.Shape, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.bool_]:
    rings = [ring for part in shape.polygons for ring in (part.exterior, *part.holes)]
    arrays = [np.array(ring.coordinates, np.float32).reshape(-1, 2) for ring in rings]
    return fill_rings(arrays, width, height).astype(bool)


def bounds(shape: pb.Shape) -> tuple[float, ...]:
    points = np.concatenate([np.reshape(part.exterior.coordinates, (-1, 2)) for part in shape.polygons])
    return *points.min(axis=0), *points.max(axis=0)


def corners(box: pb.Box) -> tuple[float, ...]:
    return box.x0, box.y0, box.x1, box.y1


def given(shape: pb.Shape) -> set[str]:
    """The fields of a shape that are set, without the numbers."""
    return {field.name for field, _ in shape.ListFields()} - {"area", "tolerance", "iou"}


@pytest.mark.parametrize(
    ("forms", "fields"),
    [
        ([], {"polygons", "box"}),
        ([POLYGONS], {"polygons", "box"}),
        ([RLE], {"rle", "box"}),
        ([PNG], {"png", "box"}),
        ([BOX], {"box"}),
        ([BOX, PNG, RLE, POLYGONS], {"polygons", "rle", "png", "box"}),
        ([RLE, BOX] * 50, {"rle", "box"}),
    ],
)
def test_what_is_asked_for_is_sent_and_nothing_else(stream, forms, fields):
    assert given(shape_of(stream.ask(prompt("disk", CLICK, forms=forms)))) == fields


def test_all_forms_have_the_same_pixels(stream):
    shape = shape_of(stream.ask(prompt("disk", CLICK, forms=[POLYGONS, RLE, PNG], tolerance=0)))
    mask = pixels_of_polygons(shape)
    assert mask.any()
    assert mask.shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(pixels_of_rle(shape), mask)
    np.testing.assert_array_equal(pixels_of_png(shape), mask)


@pytest.mark.parametrize("forms", [[RLE], [PNG], [BOX]])
def test_without_polygons_nothing_is_simplified_and_the_box_is_that_of_the_outline_itself(stream, forms):
    exact = shape_of(stream.ask(prompt("disk", CLICK, tolerance=0)))
    assert corners(exact.box) == bounds(exact)
    coarse = shape_of(stream.ask(prompt("disk", CLICK, tolerance=4)))
    assert corners(coarse.box) == bounds(coarse) != bounds(exact)
    shape = shape_of(stream.ask(prompt("disk", CLICK, tolerance=4, max_points=3, forms=forms)))
    assert (shape.tolerance, shape.iou) == (0, 1)
    assert (shape.box, shape.area) == (exact.box, exact.area)


def test_a_mask_beside_simplified_polygons_is_that_before_simplification(stream):
    exact = shape_of(stream.ask(prompt("disk", CLICK, tolerance=0)))
    both = shape_of(stream.ask(prompt("disk", CLICK, tolerance=4, forms=[POLYGONS, PNG])))
    np.testing.assert_array_equal(pixels_of_png(both), pixels_of_polygons(exact))
    assert (pixels_of_polygons(both) != pixels_of_png(both)).any()


def test_a_change_of_forms_infers_nothing(stream):
    assert stream.ask(prompt("disk", CLICK)).timing.inferences == 1
    for form in (RLE, PNG, BOX):
        assert stream.ask(prompt("disk", CLICK, forms=[form])).timing.inferences == 0


def test_where_nothing_is_found_a_png_is_black_and_there_is_no_box(stream):
    shape = shape_of(stream.ask(prompt("nothing", CLICK, forms=[PNG, RLE, BOX])))
    assert given(shape) == {"png", "rle"}
    assert pixels_of_png(shape).shape == (HEIGHT, WIDTH)
    assert not pixels_of_png(shape).any()
    assert shape.area == 0


def seed_of(mask: NDArray[np.bool_]) -> pb.SeedMask:
    return pb.SeedMask(rle=pb.RleMask(width=mask.shape[1], height=mask.shape[0], counts=encode_rle(mask)))


@pytest.mark.parametrize("count", [3, 10_000], ids=["a few pixels", "so many that a child draws them"])
def test_a_seed_alone_comes_back_in_every_form_pixel_for_pixel(stream, count):
    random = np.random.default_rng(7)
    mask = np.zeros(HEIGHT * WIDTH, np.bool_)
    mask[random.choice(mask.size, count, replace=False)] = True
    mask = mask.reshape(HEIGHT, WIDTH)
    message = pb.Prompt(model="keeper", seed=seed_of(mask), output=pb.OutputOptions(forms=[PNG, RLE]))
    shape = shape_of(stream.ask(message))
    np.testing.assert_array_equal(pixels_of_png(shape), mask)
    np.testing.assert_array_equal(pixels_of_rle(shape), mask)
    rows, columns = np.nonzero(mask)
    assert corners(shape.box) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert shape.area == count
    assert given(shape) == {"png", "rle", "box"}


def test_an_outline_so_large_that_a_child_draws_it_comes_in_every_form(puppet_stub):
    mask = np.zeros((256, 256), np.bool_)
    mask[::4] = mask[:, :2] = True  # a comb: about 8000 vertices
    with InteractStream(puppet_stub) as stream:
        stream.ask(raw_image(np.full((256, 256, 3), 127, np.uint8)))
        message = prompt("keeper", (250, 130, NEGATIVE), forms=[POLYGONS, PNG, RLE], tolerance=0)
        message.seed.CopyFrom(seed_of(mask))
        shape = shape_of(stream.ask(message))
    assert sum(len(part.exterior.coordinates) // 2 for part in shape.polygons) > 4096
    np.testing.assert_array_equal(pixels_of_png(shape), pixels_of_polygons(shape, 256, 256))
    np.testing.assert_array_equal(pixels_of_rle(shape), pixels_of_polygons(shape, 256, 256))
    assert corners(shape.box) == bounds(shape)


@pytest.mark.parametrize("form", [RLE, PNG, BOX])
def test_outlines_of_detections_come_in_the_forms_that_are_asked_for(puppet_stub, astronaut, form):
    def outlines(*forms: int) -> list[pb.Shape]:
        polygons = pb.PolygonOptions(model="upper_half", output=pb.OutputOptions(forms=forms, tolerance=0))
        request = pb.DetectRequest(model="nanodet", image=raw_image(astronaut), threshold=0.1, polygons=polygons)
        return [found.shape for found in puppet_stub.Detect(request).detections]

    exact, asked = outlines(POLYGONS), outlines(form)
    assert len(asked) == len(exact) > 1
    for shape, polygons in zip(asked, exact, strict=True):
        assert given(shape) == {"box"} | {name for name, known in (("rle", RLE), ("png", PNG)) if form == known}
        assert (shape.box, shape.area) == (polygons.box, polygons.area)
        if form != BOX:
            mask = pixels_of_png(shape) if form == PNG else pixels_of_rle(shape)
            np.testing.assert_array_equal(mask, pixels_of_polygons(polygons, 512, 512))


@pytest.mark.parametrize("form", [pb.OUTPUT_FORM_UNSPECIFIED, 5, 99, -1])
def test_a_form_that_is_not_known_is_refused_by_its_field_and_the_stream_lives_on(stream, form):
    reply = stream.ask(prompt("disk", CLICK, forms=[RLE, form]))
    assert reply.error.code == code_pb2.INVALID_ARGUMENT
    assert "prompt.output.forms[1]" in reply.error.message
    assert "POLYGONS, RLE, PNG or BOX" in reply.error.message
    assert given(shape_of(stream.ask(prompt("disk", CLICK)))) == {"polygons", "box"}


def test_a_form_that_is_not_known_is_refused_of_detections_too(puppet_stub):
    polygons = pb.PolygonOptions(output=pb.OutputOptions(forms=[PNG, BOX, 6]))
    with pytest.raises(grpc.RpcError) as caught:
        puppet_stub.Detect(pb.DetectRequest(model="nanodet", image=raw_image(GREY), polygons=polygons))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status, details = rpc_status.from_call(caught.value), error_details_pb2.BadRequest()
    assert any(detail.Unpack(details) for detail in status.details)
    assert details.field_violations[0].field == "polygons.output.forms[2]"
