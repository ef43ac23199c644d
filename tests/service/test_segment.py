"""What Segment promises: many prompts on one image, each with an answer of its own, as on a stream."""

import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.streams import prompt, raw_image


def request(pixels, *prompts: pb.Prompt, **options) -> pb.SegmentRequest:
    return pb.SegmentRequest(image=raw_image(pixels), prompts=prompts, **options)


def outcomes(response: pb.SegmentResponse) -> list[str]:
    return [result.WhichOneof("result") for result in response.results]


def boxes(count: int, side: int = 512) -> list[tuple[int, int, int, int]]:
    """Boxes of different places and sizes, inside an image of this size."""
    numbers = np.random.default_rng(5)
    found = []
    for _ in range(count):
        width, height = numbers.integers(40, 200, 2)
        x, y = numbers.integers(0, side - width), numbers.integers(0, side - height)
        found.append((int(x), int(y), int(x + width), int(y + height)))
    return found


def test_sixty_four_boxes_are_answered_in_their_order(puppet_stub, astronaut):
    wanted = boxes(64)
    prompts = [prompt("upper_half", box=box, object_id=f"object {number}") for number, box in enumerate(wanted)]
    response = puppet_stub.Segment(request(astronaut, *prompts))
    assert (response.image.width, response.image.height) == (512, 512)
    assert [result.object_id for result in response.results] == [f"object {number}" for number in range(64)]
    for (x0, y0, x1, y1), result in zip(wanted, response.results, strict=True):
        box = result.segmentation.shape.box
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((x0, y0, x1, (y0 + y1) / 2), abs=4)
