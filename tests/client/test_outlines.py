"""An outline in other forms: a mask, COCO's, GeoJSON's."""

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import shapely
import shapely.geometry

import polywand
from polywand import Box, Outline, Polygon

SQUARE = np.float32([[1, 1], [7, 1], [7, 7], [1, 7]])
HOLE = np.float32([[3, 3], [3, 5], [5, 5], [5, 3]])
DOT = np.float32([[9, 0], [10, 0], [10, 1], [9, 1]])


def outline(*polygons: Polygon, **fields: Any) -> Outline:
    box = Box(1, 0, 10, 7) if polygons else None
    defaults: dict[str, Any] = {"box": box, "area": 33.0, "width": 12, "height": 8, "model": "m", "version": 1}
    return Outline(polygons=polygons, **(defaults | {"threshold": 0.5, "tolerance": 0.0, "iou": 1.0} | fields))


WITH_HOLE = outline(Polygon(SQUARE, (HOLE,)), Polygon(DOT))
WHOLE = outline(Polygon(SQUARE), Polygon(DOT))


def test_a_mask_is_made_of_the_polygons_with_their_holes() -> None:
    mask = WITH_HOLE.to_mask()
    assert (mask.dtype, mask.shape) == (np.bool_, (8, 12))
    assert mask.sum() == 36 - 4 + 1
    np.testing.assert_array_equal(mask, polywand.rasterise(WITH_HOLE.polygons, 12, 8))


def test_a_mask_that_was_sent_is_the_mask() -> None:
    sent = np.zeros((8, 12), bool)
    assert outline(Polygon(SQUARE), mask=sent).to_mask() is sent


def test_run_lengths_are_those_that_pycocotools_reads() -> None:
    rle = WITH_HOLE.to_rle()
    assert rle["size"] == [8, 12]
    assert isinstance(rle["counts"], str)
    np.testing.assert_array_equal(pycocotools.mask.decode(rle), WITH_HOLE.to_mask())


def test_coco_lists_are_the_exteriors_of_an_outline_without_holes() -> None:
    assert WHOLE.to_coco() == [SQUARE.ravel().tolist(), DOT.ravel().tolist()]


def test_coco_loses_no_hole_unless_told_to() -> None:
    assert WITH_HOLE.to_coco() == WITH_HOLE.to_rle()
    assert WITH_HOLE.to_coco(holes="drop") == WHOLE.to_coco()
    with pytest.raises(ValueError, match="holes"):
        WITH_HOLE.to_coco(holes="error")


def test_an_outline_without_polygons_is_its_mask() -> None:
    mask = WITH_HOLE.to_mask()
    only_mask = outline(box=Box(1, 0, 10, 7), mask=mask)
    assert only_mask.to_coco() == WITH_HOLE.to_rle()
    only_box = outline(box=Box(1, 0, 10, 7))
    for convert in (only_box.to_mask, only_box.to_rle, only_box.to_coco):
        with pytest.raises(ValueError, match="neither polygons nor a mask"):
            convert()


def test_nothing_found_is_an_empty_outline() -> None:
    nothing = outline()
    assert not nothing.to_mask().any()
    assert nothing.to_coco() == []
    assert shapely.geometry.shape(nothing).is_empty


@pytest.mark.parametrize(
    ("shape", "kind"), [(WITH_HOLE, "MultiPolygon"), (outline(Polygon(SQUARE, (HOLE,))), "Polygon")]
)
def test_shapely_reads_an_outline(shape: Outline, kind: str) -> None:
    geometry = shapely.geometry.shape(shape)
    assert geometry.geom_type == kind
    assert geometry.is_valid
    assert geometry.area == (33 if kind == "MultiPolygon" else 32)
    for polygon in (
        shape.__geo_interface__["coordinates"] if kind == "MultiPolygon" else [shape.__geo_interface__["coordinates"]]
    ):
        assert all(ring[0] == ring[-1] for ring in polygon)


def test_an_outline_is_shown_in_one_line() -> None:
    shown = repr(WITH_HOLE)
    assert shown == "Outline(m version 1 on 12 x 8 pixels: 2 polygons, area=33, box=(1, 0, 10, 7))"
    assert repr(outline(score=0.25)).endswith("0 polygons, area=33, nothing found, score=0.250)")
    assert repr(WITH_HOLE.polygons[0]) == "Polygon(4 vertices, 1 holes)"


def test_a_seed_may_be_an_outline() -> None:
    message = polywand.prompts.to_message(polywand.Prompt(seed=WITH_HOLE))
    assert len(message.seed.polygons.polygons) == 2
    assert len(message.seed.polygons.polygons[0].holes) == 1
