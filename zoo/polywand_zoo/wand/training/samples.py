"""Samples: what the network sees and what it should answer, each a function of a seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from polywand_zoo.wand.training import prompts, windows
from polywand_zoo.wand.training.augment import recolour
from polywand_zoo.wand.training.dataset import Pixels, shape_of
from polywand_zoo.wand.training.prompts import PREVIOUS, Prompt
from polywand_zoo.wand.training.scenes import Scene, Scenes

SMALLEST_TARGET = 60  # pixels of the input


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
    whole_share: of the clicks, those that see the whole photo.
    """

    def __init__(self, scenes: Scenes, modes: Mapping[str, float], whole_share: float) -> None:
        self._scenes = scenes
        self._modes = list(modes)
        self._odds = np.cumsum(list(modes.values())) / sum(modes.values())
        self._whole_share = whole_share

    def draw(self, size: int, random: Generator) -> Sample:
        """Draw a sample for an input of S x S pixels."""
        mode = self._modes[min(int(np.searchsorted(self._odds, random.random())), len(self._modes) - 1)]
        while True:
            sample = self._try(_turned(self._scenes.draw(random), random), mode, size, random)
            if sample is not None:
                return sample

    def _try(self, scene: Scene, mode: str, size: int, random: Generator) -> Sample | None:
        shape, box = shape_of(scene.target), windows.mask_box(scene.target)
        if mode in ("click", "late"):
            whole_share = self._whole_share if scene.target.mean() > 0.006 else 0
            window = windows.random_click_window(box, shape, whole_share, random)
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
            prompt = prompts.first_clicks(target, random)
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
