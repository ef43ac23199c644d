"""Callers' images to the contract's `Image`, and the images that a server is known to hold."""

import hashlib
import os
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand import checks, files
from polywand.errors import InvalidRequest
from polywand_contract.v1 import annotation_pb2 as pb

PixelFormat: TypeAlias = Literal["RGB8", "BGR8", "GRAY8", "RGBA8", "GRAY16"]
"""The layout of pixels: channels in this order, and bits of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """An array of pixels in another layout than its shape tells, such as OpenCV's: Pixels(array, "BGR8").

    array: uint8 [H, W, 3] for "RGB8" and "BGR8", uint8 [H, W] for "GRAY8", uint8 [H, W, 4] for "RGBA8" (opacity last,
    not premultiplied), uint16 [H, W] for "GRAY16".
    """

    array: NDArray[np.uint8 | np.uint16]
    format: PixelFormat


class PillowImage(Protocol):
    """An image of Pillow (PIL.Image.Image). Its pixels are sent as they are: EXIF orientation is not applied."""

    @property
    def mode(self) -> str:
        """The layout of its pixels."""
        ...

    def convert(self, mode: str) -> Any:
        """Return it with another layout."""
        ...


ImageLike: TypeAlias = (
    str | os.PathLike[str] | bytes | files.Source | NDArray[np.uint8 | np.uint16] | Pixels | PillowImage
)
"""A file's path; a file's bytes; an array of pixels: uint8 [H, W, 3] in RGB order, uint8 [H, W, 4] with opacity, or
uint8 or uint16 [H, W] grey; `Pixels` for other layouts; or an image of Pillow."""

ValueRangeLike: TypeAlias = tuple[float, float]
"""The values that are black and white in a file or an array with more than 8 bits, such as (0, 1023)."""

_FORMATS: dict[str, tuple[pb.PixelFormat.ValueType, type[np.generic], int | None]] = {  # dtype, channels
    "RGB8": (pb.PIXEL_FORMAT_RGB8, np.uint8, 3),
    "BGR8": (pb.PIXEL_FORMAT_BGR8, np.uint8, 3),
    "GRAY8": (pb.PIXEL_FORMAT_GRAY8, np.uint8, None),
    "RGBA8": (pb.PIXEL_FORMAT_RGBA8, np.uint8, 4),
    "GRAY16": (pb.PIXEL_FORMAT_GRAY16, np.uint16, None),
}
_BY_SHAPE = ("RGB8", "RGBA8", "GRAY8", "GRAY16")
_PILLOW_MODES = {"RGBA": "RGBA", "L": "L", "I;16": "I;16", "LA": "RGBA", "PA": "RGBA", "La": "RGBA", "RGBa": "RGBA"}
_MOST_KNOWN = 1024  # images; about 200 bytes each


def to_message(image: ImageLike, value_range: ValueRangeLike | None = None) -> pb.Image:
    """Make the message of an image. Files are sent as they are: the server decodes them and applies EXIF orientation.

    Raises InvalidRequest when the file cannot be read, the array is not an image, or the type is another.
    """
    range_ = range_message(value_range)
    if isinstance(image, str | os.PathLike):
        return pb.Image(encoded=read(image), value_range=range_)
    if isinstance(image, files.Source):
        return pb.Image(encoded=image.read(), value_range=range_)
    if isinstance(image, bytes | bytearray | memoryview):
        return pb.Image(encoded=bytes(image), value_range=range_)
    if isinstance(image, np.ndarray):
        return _raw(image, _format_of(image), range_)
    if isinstance(image, Pixels):
        return _raw(image.array, image.format, range_)
    if (pixels := _pillow_pixels(image)) is not None:
        return _raw(pixels, _format_of(pixels), range_)
    raise _wrong(f"An image is a path, the bytes of a file or an array of pixels, not {type(image).__name__}.")


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


class KnownImages:
    """The images that a server has accepted from this client: from then on, they are sent by their digest.

    The server may have removed one since, or another replica may never have had it: after `ImageNotHeld`, `discard` it
    and send the image itself. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()  # by digest and range; the oldest first

    def by_digest(self, image: pb.Image) -> pb.Image | None:
        """Return a message with the digest of a known image, or None if the image is not known.

        Only an image of the size of a known one is hashed, which takes about a millisecond for each megabyte.
        """
        with self._lock:
            if image.ByteSize() not in self._sizes.values():
                return None
        key = digest(image), _range(image)
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
        return pb.Image(digest=key[0], value_range=image.value_range if image.HasField("value_range") else None)

    def add(self, image: pb.Image, info: pb.ImageInfo) -> None:
        """Note an image that the server accepted. info: its answer; without a digest, nothing is noted."""
        if not info.digest:
            return
        with self._lock:
            self._sizes[info.digest, _range(image)] = image.ByteSize()
            while len(self._sizes) > _MOST_KNOWN:
                self._sizes.popitem(last=False)

    def discard(self, by_digest: pb.Image) -> None:
        """Forget an image that the server does not hold. by_digest: the message that it refused."""
        with self._lock:
            self._sizes.pop((by_digest.digest, _range(by_digest)), None)


def digest(image: pb.Image) -> bytes:
    """Return the SHA-256 of an image's bytes as the contract defines it (`ImageInfo.digest`)."""
    if image.WhichOneof("source") == "encoded":
        return hashlib.sha256(image.encoded).digest()
    name = pb.PixelFormat.Name(image.raw.format).removeprefix("PIXEL_FORMAT_")
    hashed = hashlib.sha256(f"{name} {image.raw.width} {image.raw.height}\n".encode())
    hashed.update(image.raw.data)
    return hashed.digest()


def _range(image: pb.Image) -> bytes:
    return image.value_range.SerializeToString(deterministic=True) if image.HasField("value_range") else b"-"


def _raw(pixels: NDArray[Any], name: str, value_range: pb.ValueRange | None) -> pb.Image:
    if name not in _FORMATS:
        raise checks.invalid("format", f"{name!r} is not one of {', '.join(_FORMATS)}")
    format_, dtype, channels = _FORMATS[name]
    if not isinstance(pixels, np.ndarray) or not _is(pixels, dtype, channels):
        needed = f"{np.dtype(dtype)} [H, W{'' if channels is None else f', {channels}'}]"
        raise _wrong(f"Pixels of {name} are {needed}, not {_described(pixels)}.")
    message = pb.Image(value_range=value_range)
    message.raw.format = format_
    message.raw.height, message.raw.width = pixels.shape[:2]
    message.raw.data = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()  # not copied once more
    return message


def _format_of(pixels: NDArray[Any]) -> str:
    """Return the layout that an array's type and shape tell. Raises InvalidRequest when it is not an image's."""
    for name in _BY_SHAPE:
        _, dtype, channels = _FORMATS[name]
        if _is(pixels, dtype, channels):
            return name
    raise _wrong(
        "Pixels are uint8 [H, W, 3] in RGB order, uint8 [H, W, 4] with opacity, or uint8 or uint16 [H, W] grey, "
        f"not {_described(pixels)}."
    )


def _is(pixels: NDArray[Any], dtype: type[np.generic], channels: int | None) -> bool:
    """Return whether an array has pixels of this type, in either byte order, and this many channels; None: [H, W]."""
    shape = () if channels is None else (channels,)
    return (
        pixels.dtype.newbyteorder("=") == dtype
        and pixels.ndim == 2 + len(shape)
        and pixels.shape[2:] == shape
        and pixels.size > 0
    )


def _described(pixels: Any) -> str:
    return f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__


def _pillow_pixels(image: Any) -> NDArray[Any] | None:
    """Return the pixels of an image of Pillow, which is not imported here; None for all else."""
    pillow = sys.modules.get("PIL.Image")
    if pillow is None or not isinstance(image, pillow.Image):
        return None
    mode = "RGBA" if "transparency" in image.info else _PILLOW_MODES.get(image.mode, "RGB")
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, grpc.StatusCode.INVALID_ARGUMENT)
