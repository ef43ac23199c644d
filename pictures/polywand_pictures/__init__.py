"""Picture files to RGB pixels: one reader for the service, the SDK's drawings, evaluation and training.

PictureError
 ├ UnreadableError  no picture that is read here, damaged or truncated
 ├ TooMuchError     it would take more work than any honest file
 └ RangeError       the range of values was said, and cannot be used for this file
"""

from polywand_pictures.errors import PictureError, RangeError, TooMuchError, UnreadableError
from polywand_pictures.header import Admission, Header, MakeRoom, Pixels, ValueRange
from polywand_pictures.reader import read_into, read_picture

__all__ = [
    "Admission",
    "Header",
    "MakeRoom",
    "PictureError",
    "Pixels",
    "RangeError",
    "TooMuchError",
    "UnreadableError",
    "ValueRange",
    "read_into",
    "read_picture",
]
