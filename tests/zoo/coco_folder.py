"""A folder in COCO's format with a handful of drawn photos."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

Pixels = NDArray[np.uint8]


def compressed(mask: Pixels) -> dict[str, Any]:
    """Return a mask's run lengths as JSON holds them."""
    encoded = run_lengths.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def write(folder: Path, photos: dict[str, Pixels], annotations: list[dict[str, Any]]) -> Path:
    """Write RGB photos by file name and annotations, whose image_id counts the photos from 1."""
    (folder / "images").mkdir(parents=True)
    images = []
    for number, (name, pixels) in enumerate(photos.items(), 1):
        assert cv2.imwrite(str(folder / "images" / name), pixels[..., ::-1])
        images.append({"id": number, "file_name": name, "width": pixels.shape[1], "height": pixels.shape[0]})
    content = {
        "images": images,
        "annotations": [{"id": number, "iscrowd": 0, **entry} for number, entry in enumerate(annotations, 1)],
        "categories": [],
    }
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def drawn(folder: Path, count: int, seed: int) -> Path:
    """Write photos of an ellipse and a bar that touch, on noise."""
    random = np.random.default_rng(seed)
    photos, annotations = {}, []
    for number in range(1, count + 1):
        pixels = random.integers(60, 120, (120, 160, 3), dtype=np.uint8)
        ellipse, bar = np.zeros((2, 120, 160), np.uint8)
        centre = (int(random.integers(50, 90)), int(random.integers(45, 75)))
        cv2.ellipse(ellipse, centre, (30, 20), int(random.integers(180)), 0, 360, 1, -1)
        cv2.rectangle(bar, (centre[0], centre[1]), (centre[0] + 45, centre[1] + 14), 1, -1)
        bar[ellipse > 0] = 0
        pixels[ellipse > 0] = random.integers(150, 255, 3)
        pixels[bar > 0] = random.integers(0, 50, 3)
        photos[f"{folder.name}_{number}.png"] = pixels
        annotations += [{"image_id": number, "segmentation": compressed(mask)} for mask in (ellipse, bar)]
    return write(folder, photos, annotations)
