"""Masks in image files, as other tools write them."""

from pathlib import Path

import cv2
import grpc
import numpy as np
from numpy.typing import NDArray

from polywand import images
from polywand.errors import InvalidRequest


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an image file whose pixels are inside where they are not black: bool [H, W].

    Raises InvalidRequest when it cannot be read, or not by OpenCV.
    """
    encoded = np.frombuffer(images.read(path), np.uint8)
    # Any depth: scaled from 16 bits to 8, small label numbers would become 0. Any colour: so would dark blue as grey.
    pixels = cv2.imdecode(encoded, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR) if len(encoded) else None
    if pixels is None:
        raise InvalidRequest(f"{path} is not an image that OpenCV reads.", grpc.StatusCode.INVALID_ARGUMENT)
    inside: NDArray[np.bool_] = pixels != 0
    return inside if inside.ndim == 2 else inside.any(axis=2)
