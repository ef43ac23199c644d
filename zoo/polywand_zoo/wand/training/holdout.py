"""The photos reserved for validation: recognises copies of them among the training photos."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_pictures import PictureError, read_picture

Pixels = NDArray[np.uint8]

THUMBNAIL = (32, 32)
# Between thumbnails of one photo in two encodings or sizes, at most, per pixel and channel.
LIKENESS = 8.0


class HeldOut:
    """Recognises copies of photos by their bytes, by COCO's number, or by their name if their pixels are similar.

    A photo that is listed but missing is recognised by its name alone.
    """

    def __init__(self, photos: Iterable[Path]) -> None:
        self._digests: set[bytes] = set()
        self._numbers: set[str] = set()
        self._named: defaultdict[str, list[Path]] = defaultdict(list)
        for path in photos:
            self._numbers |= _coco_number(path)
            if path.is_file():
                self._digests.add(_digest(path.read_bytes()))
            self._named[path.stem].append(path)

    def holds(self, path: Path, data: bytes, pixels: Pixels) -> bool:
        """Whether a photo is one of these; data: its file's. pixels: RGB uint8 [h, w, 3]."""
        if _digest(data) in self._digests or _coco_number(path) & self._numbers:
            return True
        named = self._named.get(path.stem, [])
        return any(not other.is_file() or _look_alike(pixels, other) for other in named)


def _coco_number(path: Path) -> set[str]:
    """COCO's number of a photo, twelve digits, which copies keep in their names; empty where there is none."""
    number = re.search(r"(?<!\d)\d{12}(?!\d)", path.stem)
    return {number.group()} if number else set()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _look_alike(pixels: Pixels, other: Path) -> bool:
    try:
        others = read_picture(other.read_bytes())
    except PictureError:
        return False
    first, second = (cv2.resize(each, THUMBNAIL, interpolation=cv2.INTER_AREA) for each in (pixels, others))
    return float(cv2.absdiff(first, second).mean()) < LIKENESS
