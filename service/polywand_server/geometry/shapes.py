"""Shapes: from a probability map and output options to the answer's outline."""

from dataclasses import dataclass, replace
from enum import StrEnum

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.geometry.boxes import Box
from polywand_server.geometry.outlines import outline
from polywand_server.geometry.overlap import intersection_over_union
from polywand_server.geometry.png import to_png
from polywand_server.geometry.raster import to_rle
from polywand_server.geometry.simplify import simplify
from polywand_server.images.regions import ProbabilityMap

# The default tolerance is never finer than this, in image pixels.
SMALLEST_DEFAULT_TOLERANCE = 0.5


class Form(StrEnum):
    """A form of an outline in an answer; the contract's `OutputForm`. BOX adds nothing: the box is always there."""

    POLYGONS = "polygons"
    RLE = "rle"
    PNG = "png"
    BOX = "box"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Options of an answer's outline; None means the contract's default."""

    threshold: float | None = None
    tolerance: float | None = None
    max_points: int | None = None
    forms: tuple[Form, ...] = (Form.POLYGONS,)


@dataclass(frozen=True, slots=True)
class Shape:
    """The outline of one object in image pixels (corners at integers).

    polygons: simplified, largest part first; empty if they are not requested.
    box: around the polygons or, if these are not requested, around the outline before simplification; None if nothing
        was found.
    area: before simplification, in square pixels.
    rle, png: COCO's compressed counts and a PNG file of the outline before simplification, if requested.
    tolerance: the simplification that was applied, in image pixels.
    iou: of the polygons with the outline before simplification; 1 without polygons.
    confidence: mean probability of the mask's pixels; 0 for an empty mask, 1 for a mask that no model made.
    """

    polygons: shapely.MultiPolygon
    box: Box | None
    area: float
    rle: str | None
    png: bytes | None
    tolerance: float
    iou: float
    confidence: float = 1.0


def make_shape(
    probabilities: ProbabilityMap,
    threshold: float,
    options: OutputOptions,
    image_width: int,
    image_height: int,
    keep: NDArray[np.float64],
    field: str = "prompt.output.threshold",
) -> Shape:
    """Outline a map; costs milliseconds whatever the image's size, and at most a second on the largest map.

    keep: points [N, 2] (x, y, image pixels) whose part or hole is kept however small.
    field: of the request, for the error.

    Raises:
        TooLargeError: the outline has too many vertices or rings.
    """
    exact = outline(probabilities, threshold, image_width, image_height, keep, field)
    known = max(SMALLEST_DEFAULT_TOLERANCE, probabilities.seen.pixel_size / 2)
    shape = shape_of(exact, options, image_width, image_height, known)
    values = probabilities.values[probabilities.region.inside(image_width, image_height)]
    return replace(shape, confidence=0.0 if exact.is_empty else mean_probability(values, threshold))


def shape_of(
    exact: shapely.MultiPolygon, options: OutputOptions, image_width: int, image_height: int, default_tolerance: float
) -> Shape:
    """Write an outline, in image pixels, in the forms that are requested, by all options but the threshold.

    default_tolerance: image pixels, if the options have none.
    """
    polygons, applied, iou = shapely.MultiPolygon(), 0.0, 1.0
    if Form.POLYGONS in options.forms:
        tolerance = default_tolerance if options.tolerance is None else options.tolerance
        polygons, applied = simplify(exact, tolerance, options.max_points)
        iou = 1.0 if polygons is exact else intersection_over_union(exact, polygons)
    boxed = polygons if Form.POLYGONS in options.forms else exact
    return Shape(
        polygons=polygons,
        box=None if boxed.is_empty else Box(*boxed.bounds),
        area=float(exact.area),
        rle=to_rle(exact, image_width, image_height) if Form.RLE in options.forms else None,
        png=to_png(exact, image_width, image_height) if Form.PNG in options.forms else None,
        tolerance=applied,
        iou=iou,
    )


def mean_probability(values: NDArray[np.float32], threshold: float) -> float:
    """Mean of the probabilities [h, w] above a threshold; 0 where there are none."""
    return float(cv2.mean(values, cv2.compare(values, threshold, cv2.CMP_GT))[0])
