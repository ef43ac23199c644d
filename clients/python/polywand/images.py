"""Images as callers have them, to the contract's `Image`."""

import os
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand.errors import InvalidRequest
from polywand.v1 import annotation_pb2 as pb

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.uint8]
"""A file's path, a file's bytes, or pixels: uint8 [H, W, 3] in RGB order, or uint8 [H, W] grey."""


ValueRangeLike: TypeAlias = tuple[float, float]
"""Which values of a PNG or TIFF file with more than 8 bits are black and white, such as (0, 1023)."""


def to_message(image: ImageLike, value_range: ValueRangeLike | None = None) -> pb.Image:
    """Make the message of an image. Files travel as they are: the server decodes them and turns them by their EXIF.

    Raises InvalidRequest when the file cannot be read or the array is no image, and TypeError for anything else.
    """
    said = None if value_range is None else pb.ValueRange(low=value_range[0], high=value_range[1])
    if isinstance(image, np.ndarray):
        return pb.Image(raw=_raw(image), value_range=said)
    if isinstance(image, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(image), value_range=said)
    if isinstance(image, str | os.PathLike):
        return pb.Image(encoded=read(image), value_range=said)
    raise TypeError(f"an image is a path, the bytes of a file or an array of pixels, not {type(image).__name__}")


def read(path: str | os.PathLike[str]) -> bytes:
    """Read a file's bytes. Raises InvalidRequest when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        message = f"{os.fspath(path)} cannot be read: {error.strerror or error}"
        raise InvalidRequest(message, grpc.StatusCode.INVALID_ARGUMENT) from error


def _raw(pixels: NDArray[Any]) -> pb.RawImage:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, np.newaxis], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InvalidRequest(
            f"Pixels are uint8 [H, W, 3] in RGB order or uint8 [H, W] grey, not {pixels.dtype} {list(pixels.shape)}.",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    height, width, _ = pixels.shape
    return pb.RawImage(data=pixels.tobytes(), width=width, height=height, format=pb.PIXEL_FORMAT_RGB8)
