"""Photos of any size, and seeded clicks on what they show."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

CLICKS_PER_OBJECT = 5
JITTER = 0.02  # of the photo's sides; two objects are never clicked at quite the same places


@dataclass(frozen=True, slots=True)
class Click:
    """A point in image pixels (corners at integers), on the object or not."""

    x: float
    y: float
    positive: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """Where an annotator would click a picture: fractions of its width and height, on the object and beside it."""

    start: tuple[float, float]
    on: Sequence[tuple[float, float]]
    beside: Sequence[tuple[float, float]]


SUBJECTS = {
    "astronaut": Subject(
        start=(0.43, 0.25),
        on=((0.30, 0.80), (0.28, 0.58), (0.45, 0.68), (0.17, 0.72), (0.53, 0.62)),
        beside=((0.72, 0.88), (0.82, 0.40), (0.10, 0.35), (0.92, 0.12)),
    ),
    "coffee": Subject(
        start=(0.50, 0.35),
        on=((0.50, 0.09), (0.32, 0.30), (0.42, 0.55), (0.36, 0.70), (0.64, 0.40)),
        beside=((0.90, 0.50), (0.20, 0.20), (0.60, 0.70), (0.10, 0.85)),
    ),
    "chelsea": Subject(
        start=(0.50, 0.50),
        on=((0.57, 0.82), (0.38, 0.35), (0.70, 0.45), (0.20, 0.40), (0.30, 0.80)),
        beside=((0.95, 0.75), (0.95, 0.20), (0.03, 0.25), (0.92, 0.92)),
    ),
}


@dataclass(frozen=True, slots=True)
class Photo:
    """A JPEG and what is on it."""

    name: str
    jpeg: bytes
    width: int
    height: int
    subject: Subject

    def clicks(self, generator: np.random.Generator) -> tuple[Click, ...]:
        """One object's clicks: on it, on it again, then what the annotator finds missing or too much."""
        on, beside = generator.permutation(self.subject.on), generator.permutation(self.subject.beside)
        corrections = [(spot, True) for spot in on[1:]] + [(spot, False) for spot in beside]
        chosen = generator.permutation(len(corrections))[: CLICKS_PER_OBJECT - 2]
        marks = [(np.array(self.subject.start), True), (on[0], True), *(corrections[number] for number in chosen)]
        return tuple(self.at(spot + generator.uniform(-JITTER, JITTER, 2), positive) for spot, positive in marks)

    def at(self, spot: NDArray[np.float64], positive: bool = True) -> Click:
        """The click at fractions of the sides, kept inside."""
        x, y = np.clip(spot, 0, 1) * (self.width, self.height)
        return Click(float(x), float(y), positive)


def scaled(name: str, megapixels: float) -> NDArray[np.uint8]:
    """One of scikit-image's pictures enlarged to a size, RGB uint8."""
    picture = getattr(skimage.data, name)()
    height, width = picture.shape[:2]
    factor = (megapixels * 1e6 / (width * height)) ** 0.5
    return cv2.resize(picture, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_CUBIC)


@cache
def photos(megapixels: float) -> tuple[Photo, ...]:
    """Every subject as a JPEG (OpenCV's quality, 95).

    Enlarged pictures are smoother than a camera's, so their files are small: that is kind to whoever sends them often.
    """
    return tuple(photo_of(name, megapixels) for name in SUBJECTS)


@cache
def photo_of(name: str, megapixels: float) -> Photo:
    """One subject as a JPEG."""
    pixels = scaled(name, megapixels)
    height, width = pixels.shape[:2]
    jpeg = cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()
    return Photo(name, jpeg, width, height, SUBJECTS[name])
