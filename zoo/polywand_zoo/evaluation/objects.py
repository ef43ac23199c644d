"""Objects whose masks are known: what a tool is measured on, and what is wrong with those that cannot be used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polywand_pictures import PictureError, read_picture
from polywand_zoo.spreading import spread

Mask = NDArray[np.bool_]


class DataError(Exception):
    """A file cannot be used; the message names it and says why."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is known of an object, bool [H, W] each.

    inside: its pixels. ignored: pixels that are neither inside nor outside; no score counts them, and no click falls on
    them; or None.
    """

    inside: Mask
    ignored: Mask | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """One object of a data set.

    name: for the user, unique in its data set. group: the video sequence or the category that
    it belongs to; "" where there is none.
    read: reads its mask, from the file `masks`; raises DataError.
    """

    data: str
    group: str
    name: str
    image: Path
    masks: Path
    read: Callable[[], Truth]


@dataclass(frozen=True, slots=True)
class DataSet:
    """The objects of one data set, in a fixed order; flaws: what was left out, and why."""

    name: str
    subjects: Sequence[Subject]
    flaws: Sequence[DataError]

    def spread(self, limit: int | None) -> "DataSet":
        """Select at most `limit` of the objects, evenly spread; None is all."""
        return DataSet(self.name, spread(self.subjects, limit), self.flaws)


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An image with one object, read and checked. pixels: RGB uint8 [H, W, 3], turned by its EXIF."""

    subject: Subject
    pixels: NDArray[np.uint8]
    truth: Truth

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[0])


def load(subject: Subject) -> Photo:
    """Read an object's image and its mask.

    Raises:
        DataError: one of them cannot be read, they differ in size, or the mask is empty.
    """
    try:
        pixels = read_picture(subject.image.read_bytes())
    except OSError as error:
        raise DataError(subject.image, f"the image cannot be read ({error.strerror or error})") from error
    except PictureError as error:
        raise DataError(subject.image, str(error)) from error
    truth = subject.read()
    height, width = truth.inside.shape
    if (height, width) != pixels.shape[:2]:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise DataError(subject.masks, f"the mask is {width} x {height} pixels, and {subject.image.name} is {size}")
    if not truth.inside.any():
        raise DataError(subject.masks, f"the mask of {subject.name} is empty")
    return Photo(subject, pixels, truth)
