"""Shapes: from a probability map and output options to the answer's outline."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.geometry.outlines import outline
from polywand_server.geometry.overlap import intersection_over_union
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

    polygons: simplified, largest part first.
    area: before simplification, in square pixels.
    rle: COCO's compressed counts of the outline before simplification, if requested.
    tolerance: the simplification that was applied, in image pixels.
    iou: of the polygons with the outline before simplification.
    """

    polygons: shapely.MultiPolygon
    area: float
    rle: str | None
    tolerance: float
    iou: float


def make_shape(
    probabilities: ProbabilityMap,
    threshold: float,
    options: OutputOptions,
    image_width: int,
    image_height: int,
    keep: NDArray[np.float64],
    field: str = "prompt.output.threshold",
) -> Shape:
    """Turn a map into polygons; costs milliseconds whatever the image's size, and at most a second on the largest map.

    keep: points [N, 2] (x, y, image pixels) whose part or hole is kept however small.
    field: of the request, for the error.

    Raises:
        TooLargeError: the outline has too many vertices or rings.
    """
    exact = outline(probabilities, threshold, image_width, image_height, keep, field)
    known = max(SMALLEST_DEFAULT_TOLERANCE, probabilities.seen.pixel_size / 2)
    return shape_of(exact, options, image_width, image_height, known)


def shape_of(
    exact: shapely.MultiPolygon, options: OutputOptions, image_width: int, image_height: int, default_tolerance: float
) -> Shape:
    """Simplify an outline, in image pixels, by all options but the threshold.

    default_tolerance: image pixels, if the options have none.
    """
    tolerance = default_tolerance if options.tolerance is None else options.tolerance
    simple, applied = simplify(exact, tolerance, options.max_points)
    rle = to_rle(exact, image_width, image_height) if Form.RLE in options.forms else None
    iou = 1.0 if simple is exact else intersection_over_union(exact, simple)
    return Shape(simple, float(exact.area), rle, applied, iou)
