"""Drawn scenes, so that no photo has to be shipped: one object before a background, and a tool's prompt for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_zoo.points import Label

# The object's mean radius relative to the scene's shorter side: as large as crops around a box or a mask show it.
RADIUS = 0.28
WAVES = 5  # of its outline
TEXTURE = 7  # cells of the background and of the object along a side, smoothed
CONTRAST = 50  # grey levels between them, on average
NOISE = 12  # grey levels


@dataclass(frozen=True, slots=True)
class Scene:
    """image: [H, W, 3], uint8, RGB. mask: [H, W], bool, where the object is."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def draw(seed: int, size: tuple[int, int]) -> Scene:
    """Draw a scene of this height and width: a wavy blob of its own colours, softly edged, with noise over all."""
    random = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    across, down = columns - width * random.uniform(0.45, 0.55), rows - height * random.uniform(0.45, 0.55)
    angle = np.arctan2(down, across)
    radius = np.ones(size)
    for wave in range(2, WAVES + 1):
        radius += random.uniform(0.0, 0.35) / wave * np.cos(wave * angle + random.uniform(0, 2 * np.pi))
    mask = np.hypot(across, down) < radius * RADIUS * min(size)
    # Away from each other: dark before light, or light before dark.
    shade, hue = random.choice([-1, 1]), random.uniform(-40, 40, 3)
    behind, before = _texture(random, size) - shade * CONTRAST / 2, _texture(random, size) + shade * CONTRAST / 2 + hue
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)[..., None]
    image = soft * before + (1 - soft) * behind + random.normal(0, NOISE, (*size, 3))
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask)


def points(scene: Scene, prompt: Mapping[str, Any], rows: int) -> NDArray[np.float32]:
    """Point at a scene's object as a tool's `prompt` parameters require; POINTS as [rows, 3]."""
    inside = np.argwhere(scene.mask)[:, ::-1]  # x, y
    left, right = inside[inside[:, 0].argmin()], inside[inside[:, 0].argmax()]
    top, bottom = inside[inside[:, 1].argmin()], inside[inside[:, 1].argmax()]
    marks: list[tuple[float, float, Label]] = []
    if prompt["extreme_points"]:
        marks += [(*point, Label.EXTREME) for point in (left, top, right, bottom)]
    if prompt["min_positive_points"]:
        marks.append((*_deepest(scene.mask), Label.POSITIVE))
    if prompt["box"] == "required":
        marks.append((left[0], top[1], Label.BOX_TOP_LEFT))
        marks.append((right[0], bottom[1], Label.BOX_BOTTOM_RIGHT))
    tensor = np.zeros((rows, 3), np.float32)
    tensor[:, 2] = Label.PADDING
    tensor[: len(marks)] = marks
    return tensor


def _texture(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    cells = random.uniform(60, 190, (TEXTURE, TEXTURE, 3)).astype(np.float32)
    texture: NDArray[np.float32] = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC)
    return texture


def _deepest(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return x, y of the pixel that is farthest from the mask's edge."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(column), int(row)
