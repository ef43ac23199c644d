"""Errors of images that are not decoded: limits, and the reader's errors with the request's field."""

from collections.abc import Iterator
from contextlib import contextmanager

from polywand_pictures import PictureError, RangeError, TooMuchError
from polywand_pictures.raw import check_raw_range
from polywand_pictures.reader import check_range
from polywand_server.config import Limits
from polywand_server.errors import InvalidInputError, Reason, TooLargeError
from polywand_server.images.picture import ImageSource, RawImage, SentImage

# Pixels of one side, the most that JPEG allows.
MAX_SIDE = 65_535


def check_size(field: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse images without a pixel, with too many, or with too long a side.

    Raises:
        InvalidInputError, TooLargeError
    """
    if width < 1 or height < 1:
        text = f"the image is {width} x {height} pixels; it must have at least one"
        raise InvalidInputError(field, text, reason=Reason.IMAGE_UNREADABLE)
    if width * height > max_pixels:
        text = f"the image has {width} x {height} = {width * height} pixels; this server takes at most {max_pixels}"
        raise TooLargeError(field, text, reason=Reason.IMAGE_TOO_LARGE, limit="image_pixels")
    if max(width, height) > MAX_SIDE:
        text = f"the image is {width} x {height} pixels; a side may have at most {MAX_SIDE}"
        raise TooLargeError(field, text, reason=Reason.IMAGE_TOO_LARGE, limit="image_side")


def check_sent(image: SentImage, limits: Limits) -> None:
    """Refuse what can be refused before the bytes are read.

    Raises:
        InvalidInputError, TooLargeError
    """
    nbytes, most = len(image.data), limits.image_bytes
    if nbytes > most:
        text = f"the image has {nbytes} bytes; this server takes at most {most}"
        raise TooLargeError(image.field, text, reason=Reason.IMAGE_TOO_LARGE, limit="image_bytes")
    with in_terms_of(image):
        check_range(image.value_range)
        if isinstance(image, RawImage):
            check_raw_range(image.pixels.format, image.value_range)
    if isinstance(image, RawImage):
        _check_raw(image, limits)
    elif not nbytes:
        raise InvalidInputError(image.field, "the image is empty", reason=Reason.IMAGE_UNREADABLE)


def _check_raw(image: RawImage, limits: Limits) -> None:
    pixels, nbytes = image.pixels, len(image.data)
    check_size(image.field, pixels.width, pixels.height, limits.image_pixels)
    if nbytes != pixels.expected_bytes:
        size = f"{pixels.width} x {pixels.height} {pixels.format} pixels"
        raise InvalidInputError(f"{image.field}.data", f"{size} are {pixels.expected_bytes} bytes, and {nbytes} came")


@contextmanager
def in_terms_of(source: ImageSource) -> Iterator[None]:
    """Turn the reader's errors into those of the request's fields.

    Raises:
        InvalidInputError, TooLargeError
    """
    try:
        yield
    except RangeError as error:
        raise InvalidInputError(source.range_field, str(error)) from error
    except TooMuchError as error:
        raise TooLargeError(source.field, str(error), reason=Reason.IMAGE_TOO_LARGE) from error
    except PictureError as error:
        raise InvalidInputError(source.field, str(error), reason=Reason.IMAGE_UNREADABLE) from error
