"""COCO's JSON: every annotation is an object; its segmentation may be polygons or run lengths, compressed or not."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from polywand_zoo.evaluation.objects import DataError, DataSet, Subject, Truth
from polywand_zoo.photopaths import find_photo, is_name
from polywand_zoo.segmentations import SegmentationError, run_lengths


def read_coco(file: Path, images: Path, only: Collection[int] | None = None) -> DataSet:
    """Read the objects of an annotation file, in its order; what cannot be used is listed as a flaw, and so are crowds.

    images: the folder that `file_name` is relative to; names as other tools write them are found there, too, and beside
    the file. only: ids of annotations; all others are ignored, without a flaw.

    Raises:
        DataError: the file cannot be read, or lacks one of these ids.
    """
    content = _content(file)
    photos = _photos(content["images"], (images, file.parent))
    categories = _categories(content.get("categories"))
    annotations = [item for item in content["annotations"] if only is None or _id(item) in only]
    missing = set(only or ()) - {_id(item) for item in annotations}
    if missing:
        raise DataError(file, f"it has no annotations with the ids {', '.join(map(str, sorted(missing)[:10]))}")
    subjects, flaws, names = [], [], set[str]()
    for position, item in enumerate(annotations, 1):
        number = _id(item)
        name = f"annotation {number}" if number is not None else f"the annotation at position {position}"
        wrong = _wrong(item, name, name in names, photos)
        names.add(name)
        if wrong:
            flaws.append(DataError(file, wrong))
            continue
        photo = photos[_key(item["image_id"])]
        read = partial(_truth, file, name, item["segmentation"], photo.entry)
        group = categories.get(str(item.get("category_id")), "")
        subjects.append(Subject(file.stem, group, name, photo.path, file, read))
    return DataSet(file.stem, subjects, flaws)


@dataclass(slots=True)
class _Photo:
    """An entry of a file's images. path: its file. wrong: which images cannot be used, and why; or None."""

    entry: Mapping[str, Any]
    path: Path = Path()
    wrong: tuple[str, str] | None = None


def _photos(entries: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, _Photo]:
    """The photos by their ids."""
    photos: dict[str, _Photo] = {}
    by_path: dict[Path, _Photo] = {}
    for entry in entries:
        number, name = entry["id"], entry.get("file_name")
        this = _Photo(entry)
        other = photos.setdefault(_key(number), this)
        if other is not this:
            if other.entry != entry:
                other.wrong = f"image {number}", "is listed twice"
        elif not isinstance(name, str):
            this.wrong = f"image {number}", "has no file_name"
        elif not is_name(name):
            this.wrong = f"image {number}", "has a file_name that no file can have"
        else:
            this.path = find_photo(folders, name) or folders[0] / name
            other = by_path.setdefault(this.path, this)
            if other.entry["file_name"] != name:  # of two folders, of which one is not here
                this.wrong = other.wrong = f"images {other.entry['id']} and {number}", f"both come to {this.path}"
    return photos


def _categories(entries: Any) -> dict[str, str]:
    listed = entries if isinstance(entries, list) else []
    return {_key(entry.get("id")): str(entry.get("name", "")) for entry in listed if isinstance(entry, dict)}


def _wrong(item: Any, name: str, is_second: bool, photos: Mapping[str, _Photo]) -> str:
    """Say why an annotation cannot be used; empty where it can."""
    if _id(item) is None:
        return f"{name} has no usable id"
    if is_second:
        return f"{name} is there twice, and the first one counts"
    photo = photos.get(_key(item.get("image_id")))
    if photo is None:
        return f"{name} is of image {item.get('image_id')}, which is not listed"
    if photo.wrong is not None:
        images, why = photo.wrong
        return f"{images}, of {name}, {why}"
    if item.get("iscrowd"):
        return f"{name} is a crowd, and not one object"
    return "" if item.get("segmentation") else f"{name} has no segmentation"


def _id(entry: Any) -> int | str | None:
    """Find the id of an image or an annotation; None where it is no number and no text."""
    number = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number if isinstance(number, int | str) and not isinstance(number, bool) else None


def _key(number: Any) -> str:
    """Normalise an id: 7, 7.0 and "7" are the same, and some tools mix them."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def photos_of(file: Path) -> Path:
    """Find the default folder of a JSON's photos: `images` beside it, or its own folder."""
    images = file.parent / "images"
    return images if images.is_dir() else file.parent


def read_ids(file: Path) -> set[int]:
    """Read ids of annotations: a JSON list, or numbers with blanks or line ends between them.

    Raises:
        DataError
    """
    try:
        text = file.read_text(encoding="utf-8")
        return {int(number) for number in (json.loads(text) if text.lstrip().startswith("[") else text.split())}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(file, f"this is no list of annotation ids ({error})") from error


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(file, f"it cannot be read as JSON ({error})") from error
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(items, list) for items in lists):
        raise DataError(file, "this is not COCO's JSON: it needs the lists 'images' and 'annotations'")
    if not all(_id(item) is not None for item in content["images"]):
        raise DataError(file, "an image has no id")
    return dict(content)


def _truth(file: Path, name: str, segmentation: Any, photo: Mapping[str, Any]) -> Truth:
    height, width = photo.get("height"), photo.get("width")
    if height is None and width is None and isinstance(segmentation, dict):  # run lengths state their size themselves
        size = segmentation.get("size")
        height, width = size if isinstance(size, list) and len(size) == 2 else (None, None)
    try:
        inside = coco.decode(run_lengths(segmentation, height, width))
    except SegmentationError as error:
        raise DataError(file, f"the segmentation of {name} cannot be read: {error}") from error
    return Truth(np.ascontiguousarray(inside).astype(np.bool_))
