"""The prompt maps of the published networks are those of their authors' formulas, in every runtime of the service."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.points import Label
from polywand_zoo.published.prompts import ClickDisks, DistanceMaps, ExtremePointHeat, InsideOutsideHeat, WholePixels
from tests.zoo.runtimes import RUNTIMES, BeforeConvolution, Run, runner

SIZE = 512
ROWS = 8
CLICK_ROWS = 64
BFLOAT16 = "OpenVINO bf16"

Points = NDArray[np.float32]
Map = NDArray[np.float32]


def points(*rows: tuple[float, float, int], count: int = ROWS) -> Points:
    """Return POINTS [1, count, 3] of these rows, padded with coordinates that would show."""
    padded = np.full((1, count, 3), 100, np.float32)
    padded[..., 2] = Label.PADDING
    padded[0, : len(rows)] = np.array(rows, np.float32).reshape(-1, 3)
    return padded


# Gaussians, of a fixed size.


class Heat(nn.Module):
    """All three channels that DEXTR and IOG see beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.extreme = ExtremePointHeat(SIZE)
        self.inside_outside = InsideOutsideHeat(SIZE)

    def forward(self, points: Tensor) -> Tensor:
        return torch.cat([self.extreme(points), *self.inside_outside(points)], 1)


@pytest.fixture(scope="module", params=RUNTIMES)
def heat(request: pytest.FixtureRequest) -> tuple[Run, float]:
    """Draw POINTS [B, 8, 3] into [B, 3, 512, 512]: extreme, inside, outside; and how exact that is, of 255."""
    drawn = runner(request.param, BeforeConvolution(Heat(), 3), (points((1, 2, Label.POSITIVE)),))
    return drawn, 1.0 if request.param == BFLOAT16 else 1e-3


def gaussians(*centres: tuple[int, int]) -> Map:
    """Draw Gaussians of 10 pixels full width at half maximum, the highest of them, as the papers' authors do."""
    x, y = np.arange(SIZE, dtype=np.float64), np.arange(SIZE, dtype=np.float64)[:, None]
    drawn = np.zeros((SIZE, SIZE))
    for x0, y0 in centres:
        drawn = np.maximum(drawn, np.exp(-4 * np.log(2) * ((x - x0) ** 2 + (y - y0) ** 2) / 10**2))
    return (255 * drawn).astype(np.float32)


@pytest.mark.parametrize("shift", [0.0, 0.4, 0.999])
def test_extreme_points_are_gaussians_at_whole_pixels(heat: tuple[Run, float], shift: float) -> None:
    draw, tolerance = heat
    centres = [(3, 256), (257, 5), (509, 301), (255, 510)]
    (drawn,) = draw(points(*((x + shift, y + shift, Label.EXTREME) for x, y in centres)))
    np.testing.assert_allclose(drawn[0], gaussians(*centres), atol=tolerance)
    assert not drawn[1:].any()


def test_the_inside_point_and_the_four_corners_moved_outwards(heat: tuple[Run, float]) -> None:
    draw, tolerance = heat
    box = (51.9, 62.2, Label.BOX_TOP_LEFT), (459.7, 430.1, Label.BOX_BOTTOM_RIGHT)
    (drawn,) = draw(points((257.6, 300.3, Label.POSITIVE), *box))
    np.testing.assert_allclose(drawn[1], gaussians((257, 300)), atol=tolerance)
    np.testing.assert_allclose(drawn[2], gaussians((41, 52), (41, 440), (469, 52), (469, 440)), atol=tolerance)
    assert not drawn[0].any()


def test_corners_that_would_leave_the_crop_stay_at_its_edges(heat: tuple[Run, float]) -> None:
    draw, tolerance = heat
    (drawn,) = draw(points((7, 4, Label.BOX_TOP_LEFT), (505, 508, Label.BOX_BOTTOM_RIGHT)))
    np.testing.assert_allclose(drawn[2], gaussians((0, 0), (0, 512), (512, 0), (512, 512)), atol=tolerance)


def test_nothing_prompted_draws_nothing(heat: tuple[Run, float]) -> None:
    draw, _ = heat
    assert not draw(points((100, 100, Label.NEGATIVE))).any()


def test_requests_of_a_batch_are_drawn_apart(heat: tuple[Run, float]) -> None:
    draw, _ = heat
    first, second = points((40, 50, Label.EXTREME)), points((60.5, 70, Label.POSITIVE), (9, 9, Label.BOX_TOP_LEFT))
    together = draw(np.concatenate([first, second]))
    np.testing.assert_array_equal(together, np.concatenate([draw(first), draw(second)]))


def test_coordinates_are_cut_towards_zero() -> None:
    values = np.array([-3.0, -2.5, -1, -0.999, -0.0, 0.999, 1, 255.99998, 256, 511.9, 512, 575.5], np.float32)
    rows = np.stack([values, values[::-1], np.full_like(values, Label.POSITIVE)], 1)[None]
    whole = WholePixels(SIZE)(torch.from_numpy(rows)).numpy()
    np.testing.assert_array_equal(whole[0, :, 0], values.astype(int))
    np.testing.assert_array_equal(whole[0, :, 1], values[::-1].astype(int))


# Clicks, in maps of any size.


class ClickMaps(nn.Module):
    """Disks and distances, for an image whose only use is its size."""

    def __init__(self) -> None:
        super().__init__()
        self.disks = ClickDisks(5)
        self.distances = DistanceMaps(260)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        size = image.shape[1], image.shape[2]
        return torch.cat([self.disks(points, size), self.distances(points, size)], 1)


@pytest.fixture(scope="module", params=RUNTIMES)
def clicks(request: pytest.FixtureRequest) -> tuple[str, Run]:
    """Draw POINTS [B, 64, 3] into [B, 4, H, W] for an image [B, H, W, 3]: both kinds of disks, both of distances."""
    variable = {"INPUT_0": {1: "height", 2: "width"}, "OUTPUT": {2: "height", 3: "width"}}
    example = (image(48, 64), points((1, 2, Label.POSITIVE), count=CLICK_ROWS))
    return request.param, runner(request.param, BeforeConvolution(ClickMaps(), 4), example, variable)


def image(height: int, width: int, batch: int = 1) -> NDArray[np.uint8]:
    return np.zeros((batch, height, width, 3), np.uint8)


def squared_distances(rows: Points, label: Label, height: int, width: int) -> Map:
    """Return the squared distance to the nearest click with the label, 1e6 without one; float32, as the authors do."""
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    nearest = np.full((height, width), 1e6 * 260**2, np.float32)
    for click_x, click_y, is_label in rows[0]:
        if is_label == label and max(click_x, click_y) >= 0:
            nearest = np.minimum(nearest, (y - click_y) ** 2 + (x - click_x) ** 2)
    return nearest


def random_clicks(seed: int, height: int, width: int, step: float) -> Points:
    """Return 64 rows, many of them near or beyond the borders, at multiples of the step (0: anywhere)."""
    random = np.random.default_rng(seed)
    rows = random.uniform(-20, np.array([width, height, 0]) + 20, (1, CLICK_ROWS, 3)).astype(np.float32)
    if step:
        rows = np.round(rows / step) * step
    rows[..., 2] = random.choice([Label.PADDING, Label.NEGATIVE, Label.POSITIVE, Label.EXTREME], (1, CLICK_ROWS))
    return rows.astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(120, 333), (401, 780)])
@pytest.mark.parametrize("step", [1, 0.5, 0])
def test_clicks_are_disks(clicks: tuple[str, Run], height: int, width: int, step: float) -> None:
    runtime, draw = clicks
    for seed in range(3):
        rows = random_clicks(seed, height, width, step)
        (drawn,) = draw(image(height, width), rows)
        for channel, label in enumerate((Label.POSITIVE, Label.NEGATIVE)):
            expected = squared_distances(rows, label, height, width)
            differs = drawn[channel] != (expected <= 25)
            if runtime == BFLOAT16 and step == 0:
                # A click between pixels is placed to a sixteenth of one.
                differs &= np.abs(np.sqrt(expected) - 5) > 1 / 16
            assert not differs.any()


@pytest.mark.parametrize(("height", "width"), [(120, 333), (401, 780)])
def test_distances_are_to_the_nearest_click(clicks: tuple[str, Run], height: int, width: int) -> None:
    runtime, draw = clicks
    rows = random_clicks(7, height, width, step=0)
    rows[0, 10:, 2] = Label.PADDING
    (drawn,) = draw(image(height, width), rows)
    for channel, label in enumerate((Label.POSITIVE, Label.NEGATIVE)):
        expected = np.tanh(2 * np.sqrt(squared_distances(rows, label, height, width)) / 260)
        np.testing.assert_allclose(drawn[2 + channel], expected, atol=6e-3 if runtime == BFLOAT16 else 1e-6)


def test_without_a_click_there_is_no_disk_and_everything_is_far(clicks: tuple[str, Run]) -> None:
    _, draw = clicks
    (drawn,) = draw(image(60, 70), points((-1, -1, Label.POSITIVE), (30, 30, Label.EXTREME), count=CLICK_ROWS))
    assert not drawn[:2].any()
    np.testing.assert_array_equal(drawn[2:], np.ones((2, 60, 70), np.float32))


def test_clicks_of_a_batch_are_drawn_apart(clicks: tuple[str, Run]) -> None:
    _, draw = clicks
    rows = np.concatenate([random_clicks(seed, 60, 70, step=0) for seed in range(3)])
    apart = [draw(image(60, 70), item[None]) for item in rows]
    np.testing.assert_array_equal(draw(image(60, 70, batch=3), rows), np.concatenate(apart))
