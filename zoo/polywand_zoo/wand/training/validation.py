"""Validation during training: a few objects, a few clicks, the service's crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.network import INPUT_SIZE
from polywand_zoo.wand.training import windows
from polywand_zoo.wand.training.dataset import Dataset, Pixels, Thing, shape_of
from polywand_zoo.wand.training.precision import mixed_precision
from polywand_zoo.wand.training.prompts import PREVIOUS, Prompt, depths, draw, without
from polywand_zoo.wand.training.windows import Window

SETBACK = 0.03  # of IoU, by a click that should have helped

Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Click:
    """A click in pixels of the photo."""

    x: int
    y: int
    positive: bool


class Predictor:
    """Answers prompts on one photo, RGB uint8 [h, w, 3], with a network in evaluation mode."""

    def __init__(self, network: FineNetwork, photo: Pixels) -> None:
        self._network = network
        self._photo = photo

    def clicked(self, clicks: Sequence[Click], previous: Probabilities | None) -> Probabilities:
        """Answer clicks: the probability of each pixel [h, w]; previous: the answer to all but the last."""
        if previous is not None:
            return self._pass(self._closer(clicks, previous), clicks, previous)
        whole = windows.whole(shape_of(self._photo))
        first = self._pass(whole, clicks, None)
        closer = self._closer(clicks, first)
        return first if closer == whole else self._pass(closer, clicks, first)

    def boxed(self, box: windows.Box, inside: Sequence[Click] = (), extremes: Sequence[Click] = ()) -> Probabilities:
        """Answer a box with or without points inside, or extreme points with the box around them."""
        window = windows.around(box, shape_of(self._photo), 1 + 2 * windows.BOX_MARGIN, windows.SMALLEST)
        prompt = Prompt(self._clicks(window, inside), [click[:2] for click in self._clicks(window, extremes)])
        if not extremes:
            x, y = window.scale(INPUT_SIZE)
            left, top = window.left, window.top
            prompt.box = (box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y
        return self._infer(window, prompt, None)

    def _closer(self, clicks: Sequence[Click], answer: Probabilities) -> Window:
        mask, shape = answer > 0.5, shape_of(self._photo)
        if np.count_nonzero(mask) < 20:
            return windows.whole(shape)
        points = np.array([(click.x + 0.5, click.y + 0.5) for click in clicks])
        smallest = windows.MIN_FRACTION * min(shape)
        return windows.around(windows.mask_box(mask), shape, windows.EXPANSION, smallest, points)

    def _pass(self, window: Window, clicks: Sequence[Click], previous: Probabilities | None) -> Probabilities:
        return self._infer(window, Prompt(self._clicks(window, clicks)), previous)

    def _clicks(self, window: Window, clicks: Sequence[Click]) -> list[tuple[int, int, bool]]:
        x, y = window.scale(INPUT_SIZE)
        return [
            (int((click.x + 0.5 - window.left) * x), int((click.y + 0.5 - window.top) * y), click.positive)
            for click in clicks
        ]

    def _infer(self, window: Window, prompt: Prompt, previous: Probabilities | None) -> Probabilities:
        maps = draw(prompt, INPUT_SIZE)
        if previous is not None:
            before = cv2.resize(window.of(previous), (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_LINEAR)
            maps[PREVIOUS] = np.round(before * 255)
        image = torch.from_numpy(window.resized(self._photo, INPUT_SIZE)).permute(2, 0, 1)[None].float()
        with torch.inference_mode(), mixed_precision():
            logits = self._network(image, torch.from_numpy(maps)[None].float() / 255)
        answer = logits.float().sigmoid()[0, 0].numpy()
        height, width = window.shape
        full = np.zeros(shape_of(self._photo), np.float32)
        full[window.top : window.bottom, window.left : window.right] = cv2.resize(answer, (width, height))
        return full


def measure(network: FineNetwork, dataset: Dataset, things: Sequence[Thing], clicks: int) -> dict[str, list[float]]:
    """Prompt for things in every way and list the IoU, one for each thing or click."""
    results: dict[str, list[float]] = {}
    for thing in things:
        target = thing.pixels()
        predictor = Predictor(network, dataset.photos[thing.photo])
        for name, value in [*_by_clicks(predictor, target, clicks), *_by_boxes(predictor, target)]:
            results.setdefault(name, []).append(value)
    return results


def _by_clicks(predictor: Predictor, target: Pixels, count: int) -> list[tuple[str, float]]:
    given: list[Click] = []
    found: list[tuple[str, float]] = []
    answer, before = None, 0.0
    for number in range(1, count + 1):
        mask = np.zeros_like(target) if answer is None else (answer > 0.5).astype(np.uint8)
        given.append(_next_click(target, mask, given))
        answer = predictor.clicked(given, answer)
        mask = (answer > 0.5).astype(np.uint8)
        quality = iou(mask, target)
        found.append((f"clicks_{number}", quality))
        found.append(("obeyed", float(all(mask[click.y, click.x] == click.positive for click in given))))
        if number > 1:
            found.append(("setbacks", float(quality < before - SETBACK)))
        before = quality
    return found


def _by_boxes(predictor: Predictor, target: Pixels) -> list[tuple[str, float]]:
    rows, columns = np.nonzero(target)
    box = windows.mask_box(target)
    ends = [int(index) for index in (columns.argmin(), rows.argmin(), columns.argmax(), rows.argmax())]
    extremes = [Click(int(columns[index]), int(rows[index]), True) for index in ends]
    inside = _next_click(target, np.zeros_like(target), [])
    answers = {
        "box": predictor.boxed(box),
        "extreme": predictor.boxed(box, extremes=extremes),
        "inside": predictor.boxed(box, inside=[inside]),
    }
    return [(name, iou((answer > 0.5).astype(np.uint8), target)) for name, answer in answers.items()]


def _next_click(target: Pixels, mask: Pixels, given: Sequence[Click]) -> Click:
    missing, excess = depths(without(target, mask)), depths(without(mask, target))
    for click in given:
        missing[click.y, click.x] = excess[click.y, click.x] = 0
    positive = bool(missing.max() > excess.max())
    depth = missing if positive else excess
    row, column = divmod(int(depth.argmax()), depth.shape[1])
    return Click(column, row, positive)


def iou(mask: Pixels, target: Pixels) -> float:
    """Intersection over union of two masks [h, w] of 0 and 1."""
    return float(np.count_nonzero(mask & target) / max(1, np.count_nonzero(mask | target)))
