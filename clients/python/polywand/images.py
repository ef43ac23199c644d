"""Callers' images to the contract's `Image`."""

import os
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand import checks, files
from polywand.errors import InvalidRequest
from polywand_contract.v1 import annotation_pb2 as pb

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | files.Source | NDArray[np.uint8]
"""A file's path, a file's bytes, or pixels: uint8 [H, W, 3] in RGB order, or uint8 [H, W] grey."""

ValueRangeLike: TypeAlias = tuple[float, float]
"""The values that are black and white in a PNG or TIFF file with more than 8 bits, such as (0, 1023)."""


def to_message(image: ImageLike, value_range: ValueRangeLike | None = None) -> pb.Image:
    """Make the message of an image. Files are sent as they are: the server decodes them and applies EXIF orientation.

    Raises InvalidRequest when the file cannot be read, the array is not an image, or the type is another.
    """
    range_ = range_message(value_range)
    if isinstance(image, np.ndarray):
        return pb.Image(raw=_raw(image), value_range=range_)
    if isinstance(image, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(image), value_range=range_)
    if isinstance(image, str | os.PathLike):
        return pb.Image(encoded=read(image), value_range=range_)
    if isinstance(image, files.Source):
        return pb.Image(encoded=image.read(), value_range=range_)
    raise InvalidRequest(
        f"An image is a path, the bytes of a file or an array of pixels, not {type(image).__name__}.",
        grpc.StatusCode.INVALID_ARGUMENT,
    )


def range_message(value_range: ValueRangeLike | None) -> pb.ValueRange | None:
    """Make the message of a range of values. Raises InvalidRequest when it is not finite or empty."""
    if value_range is None:
        return None
    low, high = checks.coordinates("value_range", value_range, 2)
    if low >= high:
        raise checks.invalid("value_range", f"({low:g}, {high:g}) is not a range: the first must be below the second")
    return pb.ValueRange(low=low, high=high)


def read(path: str | os.PathLike[str]) -> bytes:
    """Read a file's bytes. Raises InvalidRequest when it cannot be read."""
    return files.read(path)


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
