"""Samples: what the network sees and what it should answer, each a function of a seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from polywand_zoo.wand.training import prompts, windows
from polywand_zoo.wand.training.augment import recolour
from polywand_zoo.wand.training.dataset import Pixels, shape_of
from polywand_zoo.wand.training.prompts import PREVIOUS, Pixel, Prompt
from polywand_zoo.wand.training.scenes import Scene, Scenes
from polywand_zoo.wand.training.windows import Box, Window

SMALLEST_TARGET = 60  # pixels of the input
SMALLEST_SHARE = 0.006  # of the whole photo, below which a target is not shown in the whole photo


@dataclass(frozen=True, slots=True)
class Sample:
    """image: RGB uint8 [S, S, 3]; target: uint8 [S, S] of 0 and 1; maps: uint8 [6, S, S], 0..255.

    prompt and maps change together, by `click`.
    """

    image: Pixels
    target: Pixels
    prompt: Prompt
    maps: Pixels
    mode: str
    group: str

    def click(self, click: tuple[int, int, bool]) -> None:
        """Add a click to the prompt."""
        self.prompt.clicks.append(click)
        prompts.draw_click(self.maps, click)


class Samples:
    """Draws samples.

    modes: the shares of `click`, `late`, `extreme`, `inside` and `box`.
    views: the shares of what the samples with clicks see: the `whole` photo, what is `near` a first click, a window
    around a `part` of the object, or around all of the `object`.
    """

    def __init__(self, scenes: Scenes, modes: Mapping[str, float], views: Mapping[str, float]) -> None:
        self._scenes = scenes
        self._modes = modes
        self._views = views

    def draw(self, size: int, random: Generator) -> Sample:
        """Draw a sample for an input of S x S pixels."""
        mode = _one_of(self._modes, random)
        while True:
            sample = self._try(_turned(self._scenes.draw(random), random), mode, size, random)
            if sample is not None:
                return sample

    def _try(self, scene: Scene, mode: str, size: int, random: Generator) -> Sample | None:
        shape, box = shape_of(scene.target), windows.mask_box(scene.target)
        first: Pixel | None = None
        if mode in ("click", "late"):
            window, first = self._view(scene, box, random)
        else:
            box = box if mode == "extreme" else prompts.loose(box, random)
            window = windows.random_box_window(box, shape, random)
        if min(window.shape) < 16:
            return None
        target = window.resized_mask(scene.target, size)
        if np.count_nonzero(target) < SMALLEST_TARGET:
            return None

        previous = None
        if mode == "click":
            first = prompts.first_point(target, random) if first is None else _seen(first, window, size)
            if not target[first[1], first[0]]:
                return None
            prompt = prompts.first_clicks(target, first, random)
        elif mode == "late":
            prompt = prompts.many_clicks(target, random)
            previous = prompts.earlier_answer(target, random)
            click = prompts.correction(target, (previous > 127).astype(np.uint8), random)
            prompt.clicks += [click] if click else []
        elif mode == "extreme":
            prompt = prompts.extreme_points(target, random)
        else:
            x, y = window.scale(size)
            inner = (
                (box[0] - window.left) * x,
                (box[1] - window.top) * y,
                (box[2] - window.left) * x,
                (box[3] - window.top) * y,
            )
            prompt = prompts.box_prompt(target, inner, float(mode == "inside"), random)
        maps = prompts.draw(prompt, size)
        if previous is not None:
            maps[PREVIOUS] = previous
        return Sample(recolour(window.resized(scene.image, size), random), target, prompt, maps, mode, scene.group)

    def _view(self, scene: Scene, box: Box, random: Generator) -> tuple[Window, Pixel | None]:
        """Choose a window for clicks on the object in this box; and the first click, in pixels of the scene, where the
        window follows from it.
        """
        shape = shape_of(scene.target)
        view = _one_of(self._views, random)
        if view == "whole" and scene.target.mean() > SMALLEST_SHARE:
            return windows.whole(shape), None
        if view not in ("near", "part"):
            return windows.random_object_window(box, shape, random), None
        first = prompts.first_point(scene.target, random)
        x, y = first[0] + 0.5, first[1] + 0.5
        if view == "near":
            return windows.random_near_window(x, y, shape, random), first
        return windows.random_part_window(x, y, box, shape, random), first


def _seen(pixel: Pixel, window: Window, size: int) -> Pixel:
    """Where a pixel of the scene is in a window's input of S x S pixels."""
    x, y = window.scale(size)
    return int((pixel[0] + 0.5 - window.left) * x), int((pixel[1] + 0.5 - window.top) * y)


def _one_of(shares: Mapping[str, float], random: Generator) -> str:
    names, odds = list(shares), np.cumsum(list(shares.values()))
    return names[min(int(np.searchsorted(odds, random.random() * odds[-1])), len(names) - 1)]


def _turned(scene: Scene, random: Generator) -> Scene:
    """Mirror every other scene, and lay a few on their side or on their head."""
    image, target = scene.image, scene.target
    if random.random() < 0.5:
        image, target = cv2.flip(image, 1), cv2.flip(target, 1)
    if random.random() < 0.04:
        image, target = cv2.flip(image, 0), cv2.flip(target, 0)
    if random.random() < 0.06:
        image, target = cv2.transpose(image), cv2.transpose(target)
    return Scene(image, np.ascontiguousarray(target), scene.group)
