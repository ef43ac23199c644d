"""Outlines: the level line of a probability map as polygons with sub-pixel edges, in image coordinates."""

from itertools import pairwise

import contourpy
import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.regions import ProbabilityMap

# Parts and holes below this share of the largest part's area are specks, unless a point of the prompt lies in them.
SPECK_SHARE = 0.005
# Of a probability from the threshold, while lines are traced: keeps vertices apart when they are rounded to float32.
SMALLEST_DISTANCE = 2.0**-8


def outline(
    probabilities: ProbabilityMap,
    threshold: float,
    image_width: int,
    image_height: int,
    keep: NDArray[np.float64],
) -> shapely.MultiPolygon:
    """Trace where the probability passes the threshold, by marching squares with linear interpolation.

    probabilities: of a region of the image; the outline is cut at the image's edges, and at the region's.
    threshold: 0..1; a pixel is inside when its probability is above.
    keep: points [N, 2] (x, y, image pixels) whose part or hole is kept however small.
    Returns parts with holes, largest first, in image pixels (corners at integers), coordinates rounded to float32 (as
    they travel). A pixel centre of the map is inside exactly when its probability is above the threshold, and exteriors
    run clockwise on a screen.
    """
    rows, columns = probabilities.region.inside(image_width, image_height)
    values = probabilities.values[rows, columns]
    window = _tight_window(values > threshold)
    if window is None:
        return shapely.MultiPolygon()
    y0, y1, x0, x1 = window
    # One ring of pixels more, so that the line closes around the object. Where the map ends it is repeated outwards, so
    # that the line runs on to the edge, where it is cut.
    pad = [(int(y0 == 0), int(y1 == values.shape[0])), (int(x0 == 0), int(x1 == values.shape[1]))]
    inner = values[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
    grid = np.pad(inner, pad, mode="edge")
    # A line through a pixel's very centre may touch itself there, so it passes by at a distance that nobody sees.
    near = np.abs(grid - threshold) < SMALLEST_DISTANCE
    grid[near] = threshold + np.where(grid[near] > threshold, SMALLEST_DISTANCE, -SMALLEST_DISTANCE)
    origin = np.array([columns.start + x0 - 1, rows.start + y0 - 1], np.float64)

    low, high = _bounds(probabilities, image_width, image_height)
    polygons = []
    for points, offsets in zip(*_contour_generator(grid).filled(threshold, np.inf), strict=True):
        placed = np.clip(probabilities.region.from_input(points + origin), low, high).astype(np.float32)
        rings = [placed[begin:end] for begin, end in pairwise(offsets)]
        polygons.append(shapely.Polygon(rings[0], rings[1:]))
    return _without_specks(polygons, shapely.points(keep))


def _contour_generator(values: NDArray[np.float32]) -> contourpy.SerialContourGenerator:
    """What `contourpy.contour_generator` makes of a grid of numbers, without its search for those that are none, which
    takes longer than the contours."""
    x, y = np.empty(values.shape), np.empty(values.shape)
    x[:], y[:] = np.arange(values.shape[1]), np.arange(values.shape[0])[:, None]
    return contourpy.SerialContourGenerator(
        *(x, y, values.astype(np.float64)),
        None,  # type: ignore[arg-type]  # no mask, as contourpy itself says it
        corner_mask=False,
        line_type=contourpy.LineType.Separate,
        fill_type=contourpy.FillType.OuterOffset,
        quad_as_tri=False,
        z_interp=contourpy.ZInterp.Linear,
    )


def _tight_window(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """First and past-the-last row and column that hold a true value."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _bounds(
    probabilities: ProbabilityMap, image_width: int, image_height: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    region = probabilities.region
    low = (max(0.0, region.left), max(0.0, region.top))
    high = (min(image_width, region.left + region.width), min(image_height, region.top + region.height))
    return low, high


def _without_specks(polygons: list[shapely.Polygon], keep: NDArray[np.object_]) -> shapely.MultiPolygon:
    """Drop tiny parts and fill tiny holes; sort by area, largest first."""
    areas = {id(polygon): polygon.area for polygon in polygons}
    smallest = SPECK_SHARE * max(areas.values())

    def wanted(ring: shapely.Polygon, area: float) -> bool:
        return area > 0 and (area >= smallest or bool(shapely.intersects(ring, keep).any()))

    kept = []
    for polygon in sorted(polygons, key=lambda polygon: -areas[id(polygon)]):
        if not wanted(shapely.Polygon(polygon.exterior), areas[id(polygon)]):
            continue
        filled = [shapely.Polygon(hole) for hole in polygon.interiors]
        holes = [hole.exterior for hole in filled if wanted(hole, hole.area)]
        kept.append(polygon if len(holes) == len(filled) else shapely.Polygon(polygon.exterior, holes))
    return shapely.MultiPolygon(kept)
