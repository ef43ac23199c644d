"""Photos and outlines to train on: folders in COCO's format, decoded once, so that every process can share them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from polywand_pictures import PictureError, read_picture
from polywand_zoo.photopaths import find_photo
from polywand_zoo.segmentations import SegmentationError, run_lengths
from polywand_zoo.spreading import spread
from polywand_zoo.wand.training.holdout import HeldOut

LONGEST_SIDE = 512  # of a photo in memory; larger ones are reduced
SMALLEST_SIDE = 10  # of an object's box, in pixels
SMALLEST_AREA = 250  # of an object, in pixels
NEEDED = {"images": {"id", "file_name", "width", "height"}, "annotations": {"id", "image_id"}}  # in COCO's format
AREA_SHARES = (0.0015, 0.92)  # of the photo, for an object that says something

Pixels = NDArray[np.uint8]


class DatasetError(ValueError):
    """A folder holds nothing to train on; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One outlined object.

    photo: its photo's index in `Dataset.photos`.
    mask: COCO's compressed run lengths.
    box: left, top, width, height, in pixels.
    group: the data it comes from; the recipe's weights go by it.
    """

    photo: int
    mask: dict[str, Any]
    box: tuple[int, int, int, int]
    group: str
    annotation: int

    def pixels(self) -> Pixels:
        """Decode the mask: [h, w] of 0 and 1."""
        decoded: Pixels = coco.decode(self.mask)
        return decoded


def shape_of(pixels: Pixels) -> tuple[int, int]:
    """(height, width) of an image or a mask."""
    return pixels.shape[0], pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Photos, RGB uint8 [h, w, 3], and the things on them."""

    photos: Sequence[Pixels]
    things: Sequence[Thing]

    def by_photo(self) -> dict[int, list[Thing]]:
        """List each photo's things."""
        found: dict[int, list[Thing]] = defaultdict(list)
        for thing in self.things:
            found[thing.photo].append(thing)
        return dict(found)


def load(folders: Iterable[Path], *, without: Iterable[Path] = (), only: frozenset[int] | None = None) -> Dataset:
    """Read folders that hold annotations.json and the photos, in images/ or where file_name says.

    without: folders whose photos must not be read, whatever else they stand in (see `holdout`).
    only: the annotation ids to keep.

    Raises:
        DatasetError
    """
    needed = ((folder, photo["file_name"]) for folder in without for photo in _read(folder)["images"])
    held_out = HeldOut(_find(folder, name) or folder / name for folder, name in needed)
    photos: list[Pixels] = []
    things: list[Thing] = []
    for folder in folders:
        before = len(things)
        for pixels, found in _photos(folder, held_out, only):
            things += [Thing(len(photos), mask, box, group, annotation) for mask, box, group, annotation in found]
            photos.append(pixels)
        if len(things) == before:
            raise DatasetError(f"{folder}: no outlined object of a usable size in annotations.json")
    return Dataset(photos, things)


def choose(folder: Path, wanted: Sequence[int]) -> frozenset[int]:
    """Choose the annotations of these ids, or as many others, evenly spread, where not all are there; all for none."""
    ids = sorted(a["id"] for a in _read(folder)["annotations"] if _is_outlined(a))
    if not wanted or len(ids) <= len(wanted):
        return frozenset(ids)
    if set(wanted) <= set(ids):
        return frozenset(wanted)
    return frozenset(spread(ids, len(wanted)))


Found = list[tuple[dict[str, Any], tuple[int, int, int, int], str, int]]


def _photos(folder: Path, held_out: HeldOut, only: frozenset[int] | None) -> Iterator[tuple[Pixels, Found]]:
    content = _read(folder)
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        if _is_outlined(annotation) and (only is None or annotation["id"] in only):
            annotations[annotation["image_id"]].append(annotation)
    for photo in sorted(content["images"], key=lambda entry: entry["id"]):
        wanted = annotations.get(photo["id"], [])
        if not wanted:
            continue
        path = _find(folder, photo["file_name"])
        if path is None:
            raise DatasetError(f"{folder}: there is no photo {photo['file_name']}")
        data = path.read_bytes()
        whole = _decode(path, data)
        if held_out.holds(path, data, whole):
            continue
        _check_size(path, photo, whole)
        pixels = _reduced(whole)
        height, width = pixels.shape[:2]
        found = []
        for annotation in wanted:
            try:
                mask = _mask(annotation["segmentation"], photo, (height, width))
            except SegmentationError as error:
                raise DatasetError(
                    f"{folder}: the outline of annotation {annotation['id']} cannot be read ({error})"
                ) from error
            box = _usable_box(mask, height * width)
            if box is not None:
                group = annotation.get("source") or folder.name
                found.append(
                    (mask, box, f"{group}/part" if annotation.get("kind") == "part" else group, annotation["id"])
                )
        if found:
            yield pixels, found


def _is_outlined(annotation: dict[str, Any]) -> bool:
    """Whether it outlines one object: some have a box alone, and some are crowds."""
    return bool(annotation.get("segmentation")) and not annotation.get("iscrowd")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "annotations.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{folder}: there is no annotations.json") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise DatasetError(f"{path}: COCO's format has images and annotations")
    for kind, keys in NEEDED.items():
        for entry in content[kind]:
            lacking = keys - entry.keys()
            if lacking:
                raise DatasetError(f"{path}: one of its {kind} has no {', '.join(sorted(lacking))}")
    return content


def _find(folder: Path, file_name: str) -> Path | None:
    return find_photo((folder / "images", folder), file_name)


def _decode(path: Path, data: bytes) -> Pixels:
    try:
        return read_picture(data)
    except PictureError as error:
        raise DatasetError(f"{path} cannot be decoded: {error}") from error


def _check_size(path: Path, photo: dict[str, Any], pixels: Pixels) -> None:
    """Refuse a photo whose outlines are of another shape: they would be stretched over it."""
    (height, width), declared = pixels.shape[:2], (photo["width"], photo["height"])
    # A smaller or larger copy is as good, but for rounding.
    if abs(width * declared[1] - height * declared[0]) > max(declared):
        raise DatasetError(
            f"{path} is {width} x {height} pixels, upright as its EXIF orientation says, and its outlines are drawn on "
            f"{declared[0]} x {declared[1]}"
        )


def _reduced(pixels: Pixels) -> Pixels:
    reduction = max(pixels.shape[:2]) / LONGEST_SIDE
    if reduction <= 1:
        return pixels
    size = [max(1, round(side / reduction)) for side in pixels.shape[1::-1]]
    reduced: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return reduced


def _mask(segmentation: Any, photo: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return compressed run lengths of the size in memory."""
    mask = run_lengths(segmentation, photo["height"], photo["width"])
    if tuple(mask["size"]) != size:
        pixels = cv2.resize(coco.decode(mask), size[::-1], interpolation=cv2.INTER_NEAREST)
        mask = coco.encode(np.asfortranarray(pixels))
    return mask


def _usable_box(mask: dict[str, Any], photo_area: int) -> tuple[int, int, int, int] | None:
    area = float(coco.area(mask))
    smallest, largest = (share * photo_area for share in AREA_SHARES)
    left, top, width, height = (int(value) for value in coco.toBbox(mask))
    if not max(SMALLEST_AREA, smallest) <= area <= largest or min(width, height) < SMALLEST_SIDE:
        return None
    return left, top, width, height
