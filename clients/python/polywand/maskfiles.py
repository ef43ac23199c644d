"""Masks in image files, as other tools write them."""

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

# A mask has few colours; a photo that was cut out has more.
MASK_COLOURS = 16
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY = 0  # as a PNG's header calls it


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an image file as a mask, bool [H, W]; the first of these that holds says which pixels are inside.

    - Some are transparent, and the others have many colours or one, as what was cut out of a photo or drawn on nothing:
      those more than half as opaque as the most opaque one, whatever their colour.
    - Some are transparent, and the others have a few colours: those of them that are not black.
    - JPEG or lossy WebP, where black is not quite black: those more than half as bright as the brightest.
    - Any other: those that are not black. So every number of a map of labels is inside.

    Raises InvalidRequest when it cannot be read, or not by OpenCV.
    """
    data = images.read(path)
    encoded = np.frombuffer(data, np.uint8)
    raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if len(encoded) else None
    if raw is None:
        raise InvalidRequest(f"{path} is not an image that OpenCV reads.", grpc.StatusCode.INVALID_ARGUMENT)
    opaque = _opaque(raw, data)
    if opaque is not None:
        return opaque & _coloured(raw) if _is_flat(raw, opaque) else opaque
    # Any depth: scaled from 16 bits to 8, small label numbers would become 0. Any colour: so would dark blue as grey.
    pixels = cv2.imdecode(encoded, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if _is_lossy(data):
        brightness = pixels if pixels.ndim == 2 else pixels.max(axis=2)
        bright: NDArray[np.bool_] = brightness > brightness.max() / 2
        return bright
    return _coloured(pixels)


def _coloured(pixels: Pixels) -> NDArray[np.bool_]:
    """Which pixels [H, W] or [H, W, C] are more than black, as no NaN is; the fourth channel does not count."""
    coloured: NDArray[np.bool_] = pixels > 0
    return coloured if coloured.ndim == 2 else coloured[..., :3].any(axis=2)


def _opaque(raw: Pixels, data: bytes) -> NDArray[np.bool_] | None:
    """Which pixels are opaque, bool [H, W]; None where all are. raw: as OpenCV reads the file unchanged."""
    if raw.ndim == 2:
        hole = _transparent_grey(data)
        return None if hole is None or not (raw == hole).any() else raw != hole
    if raw.shape[2] != 4:
        return None
    opacity = raw[..., 3].astype(np.float64)
    full = {np.dtype(np.uint8): 2.0**8 - 1, np.dtype(np.uint16): 2.0**16 - 1}.get(raw.dtype, 1.0)
    return None if (opacity >= full).all() else opacity > opacity.max() / 2


def _transparent_grey(data: bytes) -> int | None:
    """The grey that a PNG without a channel for it calls transparent, as OpenCV reads it; OpenCV overlooks that."""
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
    """Whether what is opaque has a few colours, black and others, as masks have."""
    colours = np.atleast_3d(raw)[opaque][:, :3]
    if not colours.any() or colours.any(axis=1).all():
        return False
    # Most photos are told from masks by a thousand of their pixels; to sort all takes long.
    for some in (colours[:: max(1, len(colours) // 1000)], colours):
        if len(np.unique(some, axis=0)) > MASK_COLOURS:
            return False
    return True


def _is_lossy(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8") or (is_webp(memoryview(data)) and b"VP8L" not in data)
