"""The simulated annotator clicks as the field's protocol says, in the contract's coordinates."""

import numpy as np
import pytest

from polywand import Box, Point
from polywand_zoo.evaluation.objects import Truth
from polywand_zoo.evaluation.simulation import (
    extreme_points,
    inside_point,
    iou,
    next_click,
    obeys,
    tight_box,
)


def field(*boxes: tuple[int, int, int, int], size: int = 40) -> np.ndarray:
    """A mask with these boxes (x0, y0, x1, y1) filled."""
    mask = np.zeros((size, size), np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


NOTHING = field()


def test_the_first_click_falls_on_the_middle_of_the_object():
    assert next_click(NOTHING, Truth(field((10, 20, 15, 25))), ()) == Point(12.5, 22.5, "positive")


def test_the_border_of_the_image_is_an_edge():
    assert next_click(NOTHING, Truth(field((0, 0, 9, 9))), ()) == Point(4.5, 4.5, "positive")


def test_the_click_goes_to_the_deeper_error_though_the_other_has_more_pixels():
    truth = Truth(field((0, 0, 40, 3), (20, 20, 29, 29)))
    assert next_click(NOTHING, truth, ()) == Point(24.5, 24.5, "positive")


def test_what_is_too_much_is_clicked_negative():
    click = next_click(field((5, 5, 10, 10), (20, 20, 31, 31)), Truth(field((5, 5, 10, 12))), ())
    assert click == Point(25.5, 25.5, "negative")


def test_of_equally_deep_errors_the_negative_comes_first():
    click = next_click(field((20, 20, 25, 25)), Truth(field((5, 5, 10, 10))), ())
    assert click == Point(22.5, 22.5, "negative")


def test_no_pixel_is_clicked_twice():
    truth, clicks = Truth(field((10, 10, 13, 13))), ()
    while (click := next_click(NOTHING, truth, clicks)) is not None:
        clicks = (*clicks, click)
    assert len(set(clicks)) == len(clicks) == 9


def test_there_is_no_click_when_nothing_is_wrong():
    assert next_click(field((3, 3, 9, 9)), Truth(field((3, 3, 9, 9))), ()) is None


def test_ignored_pixels_are_never_clicked_and_count_nowhere():
    truth = Truth(field((10, 10, 20, 20)), ignored=field((20, 10, 40, 20)))
    assert next_click(field((10, 10, 40, 20)), truth, ()) is None
    assert iou(field((10, 10, 40, 20)), truth) == 1
    assert iou(field((10, 10, 15, 20)), truth) == 0.5


def test_the_box_runs_along_the_outer_edges_of_the_outermost_pixels():
    assert tight_box(Truth(field((4, 7, 10, 30)))) == Box(4, 7, 10, 30)


def test_extreme_points_are_the_centres_of_the_outermost_pixels():
    cross = field((5, 18, 35, 21), (18, 10, 21, 30))
    assert extreme_points(Truth(cross)) == (
        Point(5.5, 19.5, "extreme"),
        Point(19.5, 10.5, "extreme"),
        Point(34.5, 19.5, "extreme"),
        Point(19.5, 29.5, "extreme"),
    )


def test_extreme_points_lie_on_the_object_where_its_edge_has_a_gap():
    truth = field((5, 5, 6, 8), (5, 20, 6, 21), (6, 5, 30, 21))
    assert all(truth[int(point.y), int(point.x)] for point in extreme_points(Truth(truth)))


def test_the_inside_point_is_the_deepest():
    assert inside_point(Truth(field((0, 10, 40, 12), (10, 0, 21, 11)))) == Point(15.5, 5.5, "positive")


@pytest.mark.parametrize(("label", "obeyed"), [("positive", True), ("negative", False), ("extreme", True)])
def test_a_click_is_obeyed_on_its_side_of_the_outline(label, obeyed):
    mask = field((10, 10, 20, 20))
    assert obeys(mask, (Point(19.9, 10.1, label),)) is obeyed
    outside = not obeyed or label == "extreme"
    assert obeys(mask, (Point(20.0, 10.1, label),)) is outside
