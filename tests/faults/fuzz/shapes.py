"""What the contract promises of a `Shape`."""

import io
import math
from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from polywand import decode_rle, rasterise
from polywand.results import Polygon
from polywand_contract.v1 import annotation_pb2 as pb

# Beyond these a check would take longer than the answer.
MOST_CHECKED_VERTICES = 3_000
MOST_CHECKED_PIXELS = 1_000_000
ROUNDING = 1e-4  # of a tolerance or an IoU that went through float32


def shape_breaches(shape: pb.Shape, image: tuple[int, int], output: pb.OutputOptions) -> Iterator[str]:
    """Yield what of a shape is against the contract. image: width and height in pixels. output: what was asked for."""
    rings = [ring for polygon in shape.polygons for ring in (polygon.exterior, *polygon.holes)]
    for ring in rings:
        yield from _ring_breaches(ring, image)
    vertices = sum(len(ring.coordinates) // 2 for ring in rings)
    if output.HasField("max_points") and vertices > output.max_points:
        yield f"{vertices} vertices where {output.max_points} were allowed"
    has_polygons = not output.forms or pb.OUTPUT_FORM_POLYGONS in output.forms
    yield from _number_breaches(shape, image, output if has_polygons else pb.OutputOptions())
    if not has_polygons:
        yield from _no_polygons_breaches(shape, image)
        yield from _mask_breaches(shape, image, output)
        return
    if any(len(ring.coordinates) < 6 or len(ring.coordinates) % 2 for ring in rings):
        return
    yield from _box_breaches(shape, rings)
    if vertices <= MOST_CHECKED_VERTICES:
        yield from _polygon_breaches(shape)
    yield from _mask_breaches(shape, image, output)


def _ring_breaches(ring: pb.Ring, image: tuple[int, int]) -> Iterator[str]:
    if len(ring.coordinates) < 6 or len(ring.coordinates) % 2:
        yield f"a ring of {len(ring.coordinates)} coordinates"
        return
    vertices = _vertices(ring)
    if not ((vertices >= 0) & (vertices <= image)).all():  # false for NaN too
        yield f"a ring reaches outside of {image}, or is not finite: {vertices.min(axis=0)} to {vertices.max(axis=0)}"
    if (vertices[0] == vertices[-1]).all():
        yield "a ring repeats its first vertex"


def _number_breaches(shape: pb.Shape, image: tuple[int, int], output: pb.OutputOptions) -> Iterator[str]:
    if not 0 <= shape.iou <= 1 + ROUNDING:
        yield f"an IoU of {shape.iou}"
    if not 0 <= shape.area <= image[0] * image[1] * (1 + ROUNDING):
        yield f"an area of {shape.area} on {image}"
    least = output.tolerance if output.HasField("tolerance") else 0.0
    if not (math.isfinite(shape.tolerance) and shape.tolerance >= least - ROUNDING * least):
        yield f"a tolerance of {shape.tolerance} where {least} was asked for"


def _box_breaches(shape: pb.Shape, rings: list[pb.Ring]) -> Iterator[str]:
    if shape.HasField("box") != bool(rings):
        yield "a box without polygons, or polygons without a box"
    elif rings:
        vertices = np.concatenate([_vertices(ring) for ring in rings])
        tight = (*vertices.min(axis=0), *vertices.max(axis=0))
        box = (shape.box.x0, shape.box.y0, shape.box.x1, shape.box.y1)
        if box != tight:
            yield f"the box {box} is not the tight one, {tight}"


def _no_polygons_breaches(shape: pb.Shape, image: tuple[int, int]) -> Iterator[str]:
    box = shape.box
    if shape.polygons or (shape.tolerance, shape.iou) != (0, 1):
        yield f"{len(shape.polygons)} polygons that were not asked for, tolerance {shape.tolerance}, iou {shape.iou}"
    if shape.area and not shape.HasField("box"):
        yield f"an area of {shape.area} without a box"
    if shape.HasField("box") and not (0 <= box.x0 <= box.x1 <= image[0] and 0 <= box.y0 <= box.y1 <= image[1]):
        yield f"a box ({box.x0}, {box.y0}, {box.x1}, {box.y1}) on {image}"


def _polygon_breaches(shape: pb.Shape) -> Iterator[str]:
    areas = []
    for polygon in shape.polygons:
        for name, ring, turn in (
            ("an exterior", polygon.exterior, 1),
            *(("a hole", hole, -1) for hole in polygon.holes),
        ):
            if not shapely.LinearRing(_vertices(ring)).is_simple:
                yield f"{name} crosses or touches itself"
            if turn * _signed_area(_vertices(ring)) < 0:
                yield f"{name} runs the wrong way round"
        areas.append(
            abs(_signed_area(_vertices(polygon.exterior)))
            - sum(abs(_signed_area(_vertices(hole))) for hole in polygon.holes)
        )
    # The order is that before simplification.
    if areas and shape.iou == 1 and areas != sorted(areas, reverse=True):
        yield "parts are not largest first"


def _mask_breaches(shape: pb.Shape, image: tuple[int, int], output: pb.OutputOptions) -> Iterator[str]:
    """Yield what of the run lengths and the PNG file is against the contract, or different from each other."""
    if shape.HasField("rle") != (pb.OUTPUT_FORM_RLE in output.forms):
        yield "run lengths where none were asked for, or none where some were"
        return
    if bool(shape.png) != (pb.OUTPUT_FORM_PNG in output.forms):
        yield "a PNG file where none was asked for, or none where one was"
        return
    if image[0] * image[1] > MOST_CHECKED_PIXELS:
        return
    masks = []
    try:
        if shape.HasField("rle"):
            if (shape.rle.width, shape.rle.height) != image:
                raise ValueError(f"{shape.rle.width} x {shape.rle.height} pixels on {image}")
            masks.append(decode_rle(shape.rle.counts, *image))
        if shape.png:
            masks.append(_pixels(shape.png, image))
    except (ValueError, OSError) as error:
        yield f"a mask that is none: {error}"
        return
    is_exact = output.HasField("tolerance") and output.tolerance == 0 and not output.HasField("max_points")
    if is_exact and (not output.forms or pb.OUTPUT_FORM_POLYGONS in output.forms):
        masks.append(_rasterised(shape, image))
    if any((mask != masks[0]).any() for mask in masks[1:]):
        yield "masks that are not the same, or polygons of tolerance 0 that do not give the mask back"


def _pixels(png: bytes, image: tuple[int, int]) -> NDArray[np.bool_]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        if (opened.mode, opened.size) != ("1", image):
            raise ValueError(f"a PNG file of {opened.mode} {opened.size} on {image}")
        return np.asarray(opened)


def _rasterised(shape: pb.Shape, image: tuple[int, int]) -> NDArray[np.bool_]:
    polygons = [
        Polygon(_vertices(polygon.exterior), tuple(_vertices(hole) for hole in polygon.holes))
        for polygon in shape.polygons
    ]
    return rasterise(polygons, *image)


def _vertices(ring: pb.Ring) -> NDArray[np.float32]:
    return np.array(ring.coordinates, np.float32).reshape(-1, 2)


def _signed_area(vertices: NDArray[np.float32]) -> float:
    """Positive when the ring runs clockwise on a screen."""
    x, y = (vertices.astype(np.float64) - vertices[0]).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
