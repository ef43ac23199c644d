"""Masks in image files that other tools wrote."""

from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
from numpy.typing import NDArray

from polywand import images
from polywand.errors import InvalidRequest
from polywand_pictures.webp import is_webp

Pixels = NDArray[np.integer[Any] | np.floating[Any]]

# A mask has few colours; a cut-out photo has more.
MASK_COLOURS = 16
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY = 0  # the colour type in a PNG's header


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an image file as a mask, bool [H, W]. The first of these cases that applies says what is inside:

    - Some pixels are transparent, the others have one colour or many (a cut-out photo, or a drawing on a transparent
      ground): pixels more than half as opaque as the most opaque one, of any colour.
    - Some pixels are transparent, the others have a few colours: opaque pixels that are not black.
    - JPEG or lossy WebP, where black is inexact: pixels more than half as bright as the brightest.
    - Any other file: pixels that are not black. So all labels of a label map are inside.

    Raises InvalidRequest when OpenCV cannot read it.
    """
    data = images.read(path)
    encoded = np.frombuffer(data, np.uint8)
    raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if len(encoded) else None
    if raw is None:
        raise InvalidRequest(f"{path} is not an image that OpenCV reads.", grpc.StatusCode.INVALID_ARGUMENT)
    opaque = _opaque(raw, data)
    if opaque is not None:
        return opaque & _coloured(raw) if _is_flat(raw, opaque) else opaque
    # Any depth: from 16 bits to 8, small labels would become 0. Any colour: to grey, dark blue would become 0.
    pixels = cv2.imdecode(encoded, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if _is_lossy(data):
        brightness = pixels if pixels.ndim == 2 else pixels.max(axis=2)
        bright: NDArray[np.bool_] = brightness > brightness.max() / 2
        return bright
    return _coloured(pixels)


def _coloured(pixels: Pixels) -> NDArray[np.bool_]:
    """Return which pixels [H, W] or [H, W, C] are above 0 in one of three channels, bool [H, W]; NaN is not."""
    coloured: NDArray[np.bool_] = pixels > 0
    return coloured if coloured.ndim == 2 else coloured[..., :3].any(axis=2)


def _opaque(raw: Pixels, data: bytes) -> NDArray[np.bool_] | None:
    """Return which pixels are opaque, bool [H, W]; None if all are. raw: by IMREAD_UNCHANGED."""
    if raw.ndim == 2:
        hole = _transparent_grey(data)
        return None if hole is None or not (raw == hole).any() else raw != hole
    if raw.shape[2] != 4:
        return None
    opacity = raw[..., 3].astype(np.float64)
    full = {np.dtype(np.uint8): 2.0**8 - 1, np.dtype(np.uint16): 2.0**16 - 1}.get(raw.dtype, 1.0)
    return None if (opacity >= full).all() else opacity > opacity.max() / 2


def _transparent_grey(data: bytes) -> int | None:
    """Return the grey that a PNG's tRNS chunk makes transparent, which OpenCV ignores; in the values that it reads."""
    if not data.startswith(_PNG) or data[25:26] != bytes([_GREY]):
        return None
    depth, at = data[24], len(_PNG)
    while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IDAT":  # a size of 4 bytes, a name, content, a checksum
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"tRNS":
            grey = int.from_bytes(data[at + 8 : at + 8 + size], "big")
            return grey if depth >= 8 else grey * 255 // (2**depth - 1)
        at += 12 + size
    return None


def _is_flat(raw: Pixels, opaque: NDArray[np.bool_]) -> bool:
    """Return whether the opaque pixels have a few colours, black and others, as in a mask."""
    colours = np.atleast_3d(raw)[opaque][:, :3]
    if not colours.any() or colours.any(axis=1).all():
        return False
    # A thousand pixels are enough to recognise most photos; sorting all takes long.
    for some in (colours[:: max(1, len(colours) // 1000)], colours):
        if len(np.unique(some, axis=0)) > MASK_COLOURS:
            return False
    return True


def _is_lossy(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8") or (is_webp(memoryview(data)) and b"VP8L" not in data)
