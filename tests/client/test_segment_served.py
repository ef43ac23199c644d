"""`segment` and `server_info` on the real service: the same outlines as on a stream, each prompt's own error."""

import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Client, Prompt
from tests.client.helpers import FACE
from tests.running import Service

SUIT = (225, 400)
BOXES = np.array([[150, 20, 320, 250], [40, 180, 420, 511], [20, 10, 140, 400]])


def test_outlines_are_those_of_a_session(client: Client, astronaut: NDArray[np.uint8]) -> None:
    click = Prompt(points=[(*FACE, "positive"), (30, 30, 0)], model="wand_click", object_id="face")
    boxed = Prompt(box=BOXES[0], model="wand_box", object_id="boxed")
    found = client.segment(astronaut, [click, boxed], tolerance=0, mask=True)
    assert [result.object_id for result in found] == ["face", "boxed"]
    with client.open(astronaut) as session:
        alone = [
            session.prompt("wand_click", points=click.points, tolerance=0, mask=True),
            session.prompt("wand_box", object_id="boxed", box=BOXES[0], tolerance=0, mask=True),
        ]
    for result, same in zip(found, alone, strict=True):
        outline = result.unwrap()
        assert (outline.model, outline.width, outline.height) == (same.model, 512, 512)
        np.testing.assert_array_equal(outline.mask, same.mask)
        np.testing.assert_array_equal(outline.to_mask(), same.mask)
        np.testing.assert_array_equal(polywand.rasterise(outline.polygons, 512, 512), same.mask)


def test_an_outline_of_a_session_knows_the_images_size(client: Client, coffee: NDArray[np.uint8]) -> None:
    with client.open(coffee) as session:
        outline = session.prompt("wand_click", points=[(290, 200, 1)])
    assert outline.mask is None
    assert outline.to_mask().shape == (400, 600)
    assert outline.to_rle()["size"] == [400, 600]


async def test_the_asyncio_client_gives_the_same(client: Client, server: Service, astronaut: NDArray[np.uint8]) -> None:
    here = client.segment(astronaut, BOXES)
    async with polywand.aio.connect(server.target) as other:
        there = await other.segment(astronaut, BOXES)
        assert await other.server_info() == client.server_info()
    assert [one.unwrap().area for one in here] == [one.unwrap().area for one in there]
    assert all(result.unwrap().polygons for result in here)


def test_a_prompt_that_fails_does_not_stop_the_others(client: Client, astronaut: NDArray[np.uint8]) -> None:
    outside, incomplete, unknown, fine = client.segment(
        astronaut,
        [
            Prompt(box=(0, 0, 600, 20)),
            Prompt(points=[(*FACE, "negative")], model="wand_click"),
            Prompt(points=[FACE], model="no_such_tool"),
            Prompt(points=[FACE]),
        ],
    )
    assert isinstance(outside.error, polywand.InvalidRequest)
    assert "box" in outside.error.violations[0].field
    with pytest.raises(polywand.IncompletePrompt, match="positive point"):
        incomplete.unwrap()
    assert isinstance(unknown.error, polywand.NotFound)
    assert unknown.error.reason == "MODEL_NOT_FOUND"
    assert fine.unwrap().to_mask()[FACE[1], FACE[0]]


def test_a_region_of_interest_is_all_that_is_seen(client: Client, astronaut: NDArray[np.uint8]) -> None:
    roi = (100, 0, 356, 256)
    (found,) = client.segment(astronaut, [Prompt(points=[FACE])], roi=roi, model="wand_click", tolerance=0)
    (cropped,) = client.segment(
        np.ascontiguousarray(astronaut[:256, 100:356]),
        [Prompt(points=[(FACE[0] - 100, FACE[1])])],
        model="wand_click",
        tolerance=0,
    )
    mask = found.unwrap().to_mask()
    assert mask.shape == (512, 512)
    np.testing.assert_array_equal(mask[:256, 100:356], cropped.unwrap().to_mask())
    assert not mask[256:].any()
    (refused,) = client.segment(astronaut, [Prompt(points=[SUIT])], roi=roi)
    assert isinstance(refused.error, polywand.InvalidRequest)


def test_detections_are_prompts(client: Client, astronaut: NDArray[np.uint8]) -> None:
    best = client.detect(astronaut, model="nanodet")[0]
    (outlined,) = client.segment(astronaut, [best.box])
    assert outlined.unwrap().to_mask()[FACE[1], FACE[0]]


def test_an_image_that_cannot_be_read_is_raised(client: Client) -> None:
    with pytest.raises(polywand.InvalidRequest) as caught:
        client.segment(b"no image", BOXES)
    assert caught.value.violations[0].field == "image.encoded"


def test_a_server_tells_its_limits_and_abilities(client: Client) -> None:
    info = client.server_info()
    assert info.ready
    assert info.version == polywand.__version__
    assert info.limits.segment_prompts >= 64
    assert info.limits.message_bytes > info.limits.image_bytes > 0
    assert "image/jpeg" in info.image_types
    assert {"polygons", "rle"} <= set(info.output_forms)
    assert info.default_detector == "nanodet"


def test_the_reason_of_an_error_is_an_attribute(client: Client, astronaut: NDArray[np.uint8]) -> None:
    with pytest.raises(polywand.NotFound) as caught:
        client.detect(astronaut, model="no_such_tool")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    with client.open(astronaut) as session, pytest.raises(polywand.InvalidRequest) as refused:
        session.prompt("nanodet", points=[FACE])
    assert refused.value.reason
