"""Overlays: polygons, boxes and clicks drawn on the image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from unicodedata import normalize
from zlib import crc32

import cv2
import numpy as np
from grpc import StatusCode
from numpy.typing import NDArray

from polywand.errors import InvalidRequest
from polywand.prompts import Point
from polywand.raster import rasterise
from polywand.results import Box, Detection, Polygon
from polywand_pictures import PictureError, ValueRange, read_picture

RGB = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Okabe and Ito's palette without black: most colour-blind people can tell these apart.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
OUTLINE: Colour = (0, 114, 178)
CLICKS: dict[str, Colour] = {"positive": (40, 200, 60), "negative": (225, 45, 45), "extreme": (250, 215, 40)}
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
FILL_OPACITY = 0.35
SHIFT = 4  # OpenCV draws in sixteenths of a pixel
LINES_PER_SIDE = 300  # line width: the image's mean side divided by this, at least 1 pixel


def load_rgb(data: bytes, value_range: tuple[float, float] | None = None) -> RGB:
    """Decode an image file by the server's own reader: uint8 [H, W, 3] RGB, upright, on white where transparent.

    value_range: the values that are black and white, in files with more than 8 bits.
    Raises InvalidRequest when it cannot be read.
    """
    try:
        return read_picture(data, None if value_range is None else ValueRange(*value_range))
    except PictureError as error:
        raise InvalidRequest(f"This image cannot be drawn on: {error}.", StatusCode.INVALID_ARGUMENT) from error


def can_write(path: Path) -> bool:
    """Whether a file name's suffix is that of a picture format that `encode` knows."""
    return bool(path.suffix) and cv2.haveImageWriter(path.name)


def encode(image: RGB, suffix: str) -> bytes:
    """Encode RGB uint8 [H, W, 3] as the format of a file name's suffix, such as ".png".

    Raises InvalidRequest when the format has no room for so many pixels.
    """
    try:
        is_done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        is_done = False
    if not is_done:
        height, width = image.shape[:2]
        raise InvalidRequest(
            f"A picture of {width} x {height} pixels cannot be written as {suffix}.", StatusCode.INVALID_ARGUMENT
        )
    return bytes(data)


def draw_segmentation(
    image: RGB, polygons: Sequence[Polygon], points: Iterable[Point] = (), box: Box | None = None
) -> RGB:
    """Draw an outline with its translucent inside (holes left open), the clicks and the box of a prompt; on a copy."""
    canvas = image.copy()
    line = _line_width(image)
    _shape(canvas, polygons, OUTLINE, line)
    if box is not None:
        _rectangle(canvas, box, WHITE, line)
    for point in points:
        _disc(canvas, point, 3.5 * line, WHITE)
        _disc(canvas, point, 2.5 * line, CLICKS[point.label])
    return canvas


def draw_objects(image: RGB, shapes: Iterable[Sequence[Polygon]], boxes: Iterable[Box]) -> RGB:
    """Draw the outlines of several objects, and their boxes, one colour after another; on a copy."""
    canvas = image.copy()
    line = _line_width(image)
    for number, (polygons, box) in enumerate(zip(shapes, boxes, strict=True)):
        colour = PALETTE[number % len(PALETTE)]
        _shape(canvas, polygons, colour, line)
        _rectangle(canvas, box, colour, line)
    return canvas


def draw_detections(image: RGB, detections: Iterable[Detection]) -> RGB:
    """Draw outlines, or boxes where there are none, with label and score, one colour per label; on a copy.

    The best is on top.
    """
    canvas = image.copy()
    line = _line_width(image)
    worst_first = [(PALETTE[crc32(d.label.encode()) % len(PALETTE)], d) for d in reversed(list(detections))]
    for colour, detection in worst_first:
        if detection.polygons:
            _shape(canvas, detection.polygons, colour, line)
        else:
            _rectangle(canvas, detection.box, colour, line)
    for colour, detection in worst_first:
        # OpenCV's fonts are ASCII: accents and other letters are removed.
        label = normalize("NFKD", detection.label).encode("ascii", "ignore").decode()
        _tag(canvas, f"{label} {detection.score:.2f}", detection.box, colour, line)
    return canvas


def _line_width(image: RGB) -> int:
    return max(1, round(sum(image.shape[:2]) / 2 / LINES_PER_SIDE))


def _fixed(points: NDArray[np.float32]) -> NDArray[np.int32]:
    # OpenCV has pixel centres at integers, the contract has corners there.
    fixed: NDArray[np.int32] = np.rint((points - 0.5) * (1 << SHIFT)).astype(np.int32)
    return fixed


def _shape(canvas: RGB, polygons: Sequence[Polygon], colour: Colour, line: int) -> None:
    """Draw an outline, filled translucently except for its holes."""
    height, width = canvas.shape[:2]
    inside = rasterise(polygons, width, height)
    canvas[inside] = np.rint(canvas[inside] * (1 - FILL_OPACITY) + np.array(colour) * FILL_OPACITY).astype(np.uint8)
    rings = [_fixed(ring) for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    cv2.polylines(canvas, rings, True, WHITE, 2 * line, cv2.LINE_AA, SHIFT)
    cv2.polylines(canvas, rings, True, colour, line, cv2.LINE_AA, SHIFT)


def _rectangle(canvas: RGB, box: Box, colour: Colour, line: int) -> None:
    corners = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)], np.float32)
    cv2.polylines(canvas, [_fixed(corners)], True, colour, line, cv2.LINE_AA, SHIFT)


def _disc(canvas: RGB, point: Point, radius: float, colour: Colour) -> None:
    x, y = _fixed(np.array([point.x, point.y], np.float32)).tolist()
    cv2.circle(canvas, (x, y), round(radius * (1 << SHIFT)), colour, cv2.FILLED, cv2.LINE_AA, SHIFT)


def _tag(canvas: RGB, text: str, box: Box, colour: Colour, line: int) -> None:
    """Write text on a filled patch above the box's top left corner, or inside where there is no room above."""
    height, width = canvas.shape[:2]
    font, scale, stroke, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.2 + 0.2 * line, max(1, line // 2), 2 * line
    (text_width, text_height), below = cv2.getTextSize(text, font, scale, stroke)
    patch_width, patch_height = text_width + 2 * pad, text_height + below + 2 * pad
    left = int(np.clip(box.x0, 0, max(0, width - patch_width)))
    top = int(np.clip(box.y0 - patch_height if box.y0 >= patch_height else box.y0, 0, max(0, height - patch_height)))
    canvas[top : top + patch_height, left : left + patch_width] = colour
    ink = BLACK if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else WHITE
    cv2.putText(canvas, text, (left + pad, top + pad + text_height), font, scale, ink, stroke, cv2.LINE_AA)
