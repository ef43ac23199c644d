"""COCO's JSON: every annotation is an object; its segmentation may be polygons or run lengths, compressed or not."""

import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from polywand_zoo.evaluation.objects import DataError, DataSet, Subject, Truth
from polywand_zoo.segmentations import run_lengths


def read_coco(file: Path, images: Path, only: Collection[int] | None = None) -> DataSet:
    """Read the objects of an annotation file, in its order; crowds are left out and counted.

    images: the folder that `file_name` is relative to. only: ids of annotations; all others are left out in silence.

    Raises:
        DataError: the file cannot be read, or lacks one of these ids.
    """
    content = _content(file)
    photos = {photo["id"]: photo for photo in content["images"]}
    categories = {category["id"]: str(category.get("name", "")) for category in content.get("categories", [])}
    annotations = [item for item in content["annotations"] if only is None or item["id"] in only]
    missing = set(only or ()) - {item["id"] for item in annotations}
    if missing:
        raise DataError(file, f"it has no annotations with the ids {', '.join(map(str, sorted(missing)[:10]))}")
    subjects, flaws = [], []
    for item in annotations:
        photo, name = photos.get(item.get("image_id")), f"annotation {item['id']}"
        if photo is None:
            flaws.append(DataError(file, f"{name} is of image {item.get('image_id')}, which is not listed"))
        elif not isinstance(photo.get("file_name"), str):
            flaws.append(DataError(file, f"image {photo['id']}, of {name}, has no file_name"))
        elif item.get("iscrowd"):
            flaws.append(DataError(file, f"{name} is a crowd, and not one object"))
        elif not item.get("segmentation"):
            flaws.append(DataError(file, f"{name} has no segmentation"))
        else:
            read = partial(_truth, file, name, item["segmentation"], photo)
            group = categories.get(item.get("category_id"), "")
            subjects.append(Subject(file.stem, group, name, images / photo["file_name"], file, read))
    return DataSet(file.stem, subjects, flaws)


def photos_of(file: Path) -> Path:
    """Where the photos of a JSON are, unless told otherwise: in images, beside it, or beside it themselves."""
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
    except (OSError, ValueError) as error:
        raise DataError(file, f"it cannot be read as JSON ({error})") from error
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(items, list) for items in lists):
        raise DataError(file, "this is not COCO's JSON: it needs the lists 'images' and 'annotations'")
    if not all("id" in item for items in lists for item in items or ()):
        raise DataError(file, "an image or an annotation has no id")
    return dict(content)


def _truth(file: Path, name: str, segmentation: Any, photo: Mapping[str, Any]) -> Truth:
    try:
        height, width = photo["height"], photo["width"]
        inside = coco.decode(run_lengths(segmentation, height, width))
    except Exception as error:  # pycocotools raises what comes along, down to bare exceptions
        raise DataError(file, f"the segmentation of {name} cannot be read ({error})") from error
    return Truth(np.ascontiguousarray(inside).astype(np.bool_))
