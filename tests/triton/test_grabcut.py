"""The GrabCut model, in a real tritonserver, from the repository as it is shipped."""

from collections.abc import AsyncIterator

import cv2
import numpy as np
import pytest
import pytest_asyncio
import skimage.data

from polywand_server.errors import ModelFailedError
from polywand_server.triton.client import TritonClient
from tests.running import REPOSITORY
from tests.triton.servers import running_triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
HEIGHT, WIDTH = 120, 160
CENTRE = (80, 60)
RADIUS = 35


class GrabCut:
    """The model with the leading axes taken off."""

    def __init__(self, client: TritonClient) -> None:
        self._client = client

    async def __call__(
        self, image: np.ndarray, points: list[tuple[float, float, int]], previous: np.ndarray | None = None
    ) -> np.ndarray:
        padded = np.full((1, 64, 3), -1, np.float32)
        if points:
            padded[0, : len(points)] = points
        if previous is None:
            previous = np.zeros(image.shape[:2], np.float32)
        inputs = {"IMAGE": image[None], "POINTS": padded, "PREV_MASK": previous[None, None]}
        return (await self._client.infer("grabcut", 0, inputs, ["LOGITS"], timeout_s=20.0))["LOGITS"][0, 0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grabcut() -> AsyncIterator[GrabCut]:
    async with running_triton(REPOSITORY) as triton:
        client = TritonClient(triton.url)
        await client.load("grabcut")
        yield GrabCut(client)
        await client.close()


@pytest.fixture(scope="module")
def ball() -> np.ndarray:
    """A red disc on noisy green, RGB."""
    noise = np.random.default_rng(0).normal(0, 12, (HEIGHT, WIDTH, 3))
    picture = np.full((HEIGHT, WIDTH, 3), (40, 120, 60), np.uint8)
    cv2.circle(picture, CENTRE, RADIUS, (200, 40, 50), -1)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float, int]]:
    return [(x0, y0, TOP_LEFT), (x1, y1, BOTTOM_RIGHT)]


def distance_from_centre() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(columns - CENTRE[0], rows - CENTRE[1])


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


@pytest.mark.parametrize("prompt", [box(40, 20, 120, 100), [(85.0, 58.0, POSITIVE)]])
async def test_a_box_or_one_click_finds_the_object_to_the_pixel(
    grabcut: GrabCut, ball: np.ndarray, prompt: list[tuple[float, float, int]]
) -> None:
    logits = await grabcut(ball, prompt)
    outside = distance_from_centre() - RADIUS
    wrong = (logits > 0) != (outside <= 0)
    assert np.abs(outside[wrong]).max(initial=0) < 1.5


async def test_the_map_is_the_distance_from_the_outline(grabcut: GrabCut, ball: np.ndarray) -> None:
    logits = await grabcut(ball, box(40, 20, 120, 100))
    distance = RADIUS + 0.5 - distance_from_centre()
    near = np.abs(distance) < 5
    assert np.abs(logits - distance)[near].mean() < 0.7
    assert logits[0, 0] == pytest.approx(-8)
    assert logits[CENTRE[::-1]] == pytest.approx(8)


async def test_a_person_in_a_box_is_found(grabcut: GrabCut) -> None:
    astronaut = cv2.resize(skimage.data.astronaut(), (320, 320), interpolation=cv2.INTER_AREA)
    mask = await grabcut(astronaut, box(15, 3, 278, 316)) > 0
    assert mask[80, 140]  # face
    assert mask[220, 90]  # suit
    assert not mask[40, 220]  # wall
    assert not mask[100, 300]  # shuttle


async def test_every_positive_click_is_inside_and_every_negative_one_outside(grabcut: GrabCut) -> None:
    cat = cv2.resize(skimage.data.chelsea(), (320, 213), interpolation=cv2.INTER_AREA)
    generator = np.random.default_rng(1)
    points: list[tuple[float, float, int]] = []
    previous = np.zeros(cat.shape[:2], np.float32)
    for label in (POSITIVE, NEGATIVE, POSITIVE, POSITIVE, NEGATIVE, NEGATIVE):
        points.append((float(generator.integers(320)), float(generator.integers(213)), label))
        logits = await grabcut(cat, points, previous)
        for x, y, wanted in points:
            assert (logits[int(y), int(x)] > 0) == (wanted == POSITIVE)
        previous = sigmoid(logits)


async def test_a_click_on_the_far_edge_is_one_at_the_last_pixels(grabcut: GrabCut, ball: np.ndarray) -> None:
    cut_off = np.ascontiguousarray(ball[:, : CENTRE[0]])
    on_edge = await grabcut(cut_off, [(CENTRE[0] - 0.5, 60.0, POSITIVE)])
    assert on_edge[60, -1] > 0
    np.testing.assert_array_equal(on_edge, await grabcut(cut_off, [(CENTRE[0] - 1.0, 60.0, POSITIVE)]))


async def test_a_correction_leaves_what_is_far_from_it_alone(grabcut: GrabCut, ball: np.ndarray) -> None:
    two = np.concatenate([ball, ball], axis=1)
    first = await grabcut(two, box(10, 10, 310, 110))
    second = await grabcut(two, [*box(10, 10, 310, 110), (80.0, 60.0, NEGATIVE)], sigmoid(first))
    assert second[60, 80] < 0
    np.testing.assert_array_equal(second[:, 200:] > 0, first[:, 200:] > 0)


async def test_equal_prompts_have_equal_answers(grabcut: GrabCut) -> None:
    cat = cv2.resize(skimage.data.chelsea(), (320, 213), interpolation=cv2.INTER_AREA)
    answers = [await grabcut(cat, box(40, 10, 260, 200)) for _ in range(2)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("image", "points"),
    [
        pytest.param(np.full((50, 70, 3), 90, np.uint8), box(10, 10, 40, 40), id="one colour, box"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), [(20.0, 20.0, POSITIVE)], id="one colour, click"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), box(-9, -9, 90, 90), id="a box that holds everything"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), box(30, 20, 30, 20), id="a box of one pixel"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), box(80, 80, 90, 90), id="a box outside"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), [(5.0, 5.0, POSITIVE), (5.0, 5.0, NEGATIVE)], id="conflict"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), [(5.0, 5.0, NEGATIVE)], id="nothing positive"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), [(500.0, 5.0, POSITIVE)], id="a click outside"),
        pytest.param(np.full((50, 70, 3), 90, np.uint8), [], id="nothing"),
        pytest.param(np.full((1, 1, 3), 90, np.uint8), [(0.0, 0.0, POSITIVE)], id="one pixel"),
        pytest.param(np.full((2, 9, 3), 90, np.uint8), [*box(0, 0, 8, 1), (3.0, 1.0, NEGATIVE)], id="a strip"),
    ],
)
async def test_there_is_an_answer_to_everything(
    grabcut: GrabCut, image: np.ndarray, points: list[tuple[float, float, int]]
) -> None:
    for previous in (0.0, 1.0):
        logits = await grabcut(image, points, np.full(image.shape[:2], previous, np.float32))
        assert logits.shape == image.shape[:2]
        assert np.isfinite(logits).all()


async def test_sizes_that_differ_are_refused(grabcut: GrabCut, ball: np.ndarray) -> None:
    with pytest.raises(ModelFailedError, match="their sizes must be equal"):
        await grabcut(ball, box(40, 20, 120, 100), np.zeros((10, 10), np.float32))
