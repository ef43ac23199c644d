"""Image files and raw pixels to RGB: one reader for the service, the SDK's overlays, evaluation and training.

PictureError
 ├ UnreadableError  not a supported format, damaged or truncated
 ├ TooMuchError     decoding it would take more work than any honest file
 └ RangeError       the given range of values cannot be used for this file
"""

from polywand_pictures.errors import PictureError, RangeError, TooMuchError, UnreadableError
from polywand_pictures.header import Admission, Header, MakeRoom, Pixels, ValueRange
from polywand_pictures.raw import PixelFormat, RawPixels, read_raw
from polywand_pictures.reader import media_types, read_into, read_picture

__all__ = [
    "Admission",
    "Header",
    "MakeRoom",
    "PictureError",
    "PixelFormat",
    "Pixels",
    "RangeError",
    "RawPixels",
    "TooMuchError",
    "UnreadableError",
    "ValueRange",
    "media_types",
    "read_into",
    "read_picture",
    "read_raw",
]
