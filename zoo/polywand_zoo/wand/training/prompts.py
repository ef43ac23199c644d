"""Prompts as annotators give them, drawn at random from the true outline."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from polywand_zoo.wand.network import DISK_RADIUS, INPUT_SIZE
from polywand_zoo.wand.prompts import FINE_MAP_NAMES, diamond
from polywand_zoo.wand.training.dataset import Pixels
from polywand_zoo.wand.training.windows import Box

POSITIVE, NEGATIVE, EXTREME, BOX, PREVIOUS, DIAMOND = range(len(FINE_MAP_NAMES))

MOST_CLICKS = 12  # drawn for an object that has had clicks before

Pixel = tuple[int, int]  # x, y


@dataclass(slots=True)
class Prompt:
    """The points and the box of a prompt so far, in pixels of the network's input.

    box: its edges, or None; extreme points bring the box around them.
    """

    clicks: list[tuple[int, int, bool]] = field(default_factory=list)
    extremes: list[Pixel] = field(default_factory=list)
    box: Box | None = None


def disk_radius(size: int) -> int:
    """The radius of a point's disk, which scales with the input."""
    return round(DISK_RADIUS * size / INPUT_SIZE)


def draw(prompt: Prompt, size: int) -> Pixels:
    """Draw a prompt's maps [6, S, S], 0..255, in the order of `FINE_MAP_NAMES`; the previous mask is left empty."""
    maps = np.zeros((len(FINE_MAP_NAMES), size, size), np.uint8)
    for click in prompt.clicks:
        draw_click(maps, click)
    for point in prompt.extremes:
        cv2.circle(maps[EXTREME], point, disk_radius(size), 255, -1)
    box = prompt.box
    if prompt.extremes:
        points = np.array(prompt.extremes, np.float32)
        maps[DIAMOND] = np.round(diamond(points, size) * 255)
        (x0, y0), (x1, y1) = points.min(axis=0) + 0.5, points.max(axis=0) + 0.5
        box = (float(x0), float(y0), float(x1), float(y1))
    if box is not None:
        left, top, right, bottom = (min(max(round(edge), 0), size) for edge in box)
        maps[BOX, top:bottom, left:right] = 255
    return maps


def draw_click(maps: Pixels, click: tuple[int, int, bool]) -> None:
    """Add a click to maps [6, S, S]."""
    x, y, positive = click
    cv2.circle(maps[POSITIVE if positive else NEGATIVE], (x, y), disk_radius(maps.shape[-1]), 255, -1)


def first_point(target: Pixels, random: Generator) -> Pixel:
    """Choose the first click on an object [h, w]: mostly well inside."""
    depth = depths(target)
    well_inside = random.uniform(0.8, 1) if random.random() < 0.8 else 0.2
    return _any(depth >= well_inside * depth.max(), random)


def first_clicks(target: Pixels, first: Pixel, random: Generator) -> Prompt:
    """A first click, and now and then some more, inside and outside."""
    prompt = Prompt([(*first, True)])
    _add_clicks(prompt, target, depths(target), _geometric(0.2, 5, random), _geometric(0.2, 5, random), random)
    return prompt


def many_clicks(target: Pixels, random: Generator) -> Prompt:
    """The clicks on an object that has had an answer before."""
    prompt = Prompt()
    positive = int(random.integers(1, MOST_CLICKS // 2 + 1))
    negative = int(random.integers(0, MOST_CLICKS // 2 + 1))
    _add_clicks(prompt, target, depths(target), positive, negative, random)
    return prompt


def extreme_points(target: Pixels, random: Generator) -> Prompt:
    """The leftmost, topmost, rightmost and bottommost points, with the inaccuracy of a click."""
    rows, columns = np.nonzero(target)
    size = target.shape[0]
    miss = int(random.choice([0, 0, 1, 2, 4]))
    points = []
    for values, edge in ((columns, columns.min()), (rows, rows.min()), (columns, columns.max()), (rows, rows.max())):
        on_edge = np.flatnonzero(values == edge)
        index = on_edge[random.integers(len(on_edge))]
        x, y = (int(v) + int(random.integers(-miss, miss + 1)) for v in (columns[index], rows[index]))
        points.append((min(max(x, 0), size - 1), min(max(y, 0), size - 1)))
    return Prompt(extremes=points)


def box_prompt(target: Pixels, box: Box, inside: float, random: Generator) -> Prompt:
    """A box, with a point inside as often as `inside` says."""
    prompt = Prompt(box=box)
    if random.random() < inside:
        depth = depths(target)
        least = random.uniform(0.9, 1) if random.random() < 0.6 else random.uniform(0.35, 0.9)
        prompt.clicks.append((*_any(depth >= least * depth.max(), random), True))
    return prompt


def loose(box: Box, random: Generator) -> Box:
    """A box with the inaccuracy of a hand; exact every other time."""
    if random.random() < 0.5:
        return box
    slack = random.uniform(0, 0.06)
    width, height = box[2] - box[0], box[3] - box[1]
    off = random.uniform(-0.5 * slack, slack, 4) * (width, height, width, height)
    return box[0] - off[0], box[1] - off[1], box[2] + off[2], box[3] + off[3]


def correction(target: Pixels, answer: Pixels, random: Generator) -> tuple[int, int, bool] | None:
    """The next click: mostly in the middle of the largest error; None where there is hardly one.

    target, answer: [S, S] of 0 and 1.
    """
    missing, excess = depths(without(target, answer)), depths(without(answer, target))
    deepest = missing.max(), excess.max()
    if max(deepest) < 1.5 and random.random() < 0.7:
        return None
    positive = deepest[0] > deepest[1]
    if random.random() < 0.1 and min(deepest) > 0:
        positive = not positive
    depth = missing if positive else excess
    if depth.max() <= 0:
        return None
    least = 0.999 if random.random() < 0.6 else random.uniform(0.4, 0.99)
    return (*_any(depth >= least * depth.max(), random), bool(positive))


def earlier_answer(target: Pixels, random: Generator) -> Pixels:
    """A probability map as it may stand before a late click, 0..255: the outline with some typical error."""
    size = target.shape[0]
    mask = target.copy()
    if random.random() < 0.07:
        mask[:] = 0
    for _ in range(random.integers(1, 4)):
        kind = random.integers(5)
        if kind == 0:
            reach = int(random.integers(1, max(2, size // 24)))
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
            mask = (cv2.dilate if random.random() < 0.5 else cv2.erode)(mask, kernel)
        elif kind in (1, 2):  # something beside it is in, or a part of it is out
            at = _any(_edge(target), random)
            axes = tuple(int(v) for v in np.exp(random.uniform(np.log(0.02), np.log(0.25), 2)) * size)
            cv2.ellipse(mask, at, axes, random.uniform(0, 180), 0, 360, int(kind == 1), -1)
        elif kind == 3:
            coarse = int(random.integers(12, 40))
            soft = cv2.resize(
                cv2.resize(mask * np.uint8(255), (coarse, coarse), interpolation=cv2.INTER_AREA), (size, size)
            )
            mask = (soft > 127).astype(np.uint8)
        else:
            angle = random.uniform(0, 2 * np.pi)
            x, y = _any(target > 0, random)
            far = 3 * size * np.array([np.cos(angle), np.sin(angle)])
            side = np.array([-far[1], far[0]])
            corner = np.array([x, y]) + random.uniform(0, 0.1) * far / 3
            half = np.array([corner + side, corner + side + far, corner - side + far, corner - side])
            cv2.fillPoly(mask, [np.round(half).astype(np.int32)], 0)
    soft = cv2.GaussianBlur(mask * np.float32(255), (0, 0), random.uniform(0.5, 4))
    faded: Pixels = (soft * random.uniform(0.75, 1)).astype(np.uint8)
    return faded


def roughened(answer: Pixels, random: Generator) -> Pixels:
    """An answer [S, S], 0..255, as it may be fed back: of a coarser crop, or lost."""
    chance = random.random()
    if chance < 0.06:
        return np.zeros_like(answer)
    return coarsened(answer, random) if chance < 0.26 else answer


def coarsened(answer: Pixels, random: Generator) -> Pixels:
    """An answer [S, S] as it was on a crop two to four times as large."""
    size = answer.shape[0]
    coarse = size // int(random.integers(2, 5))
    smaller = cv2.resize(answer, (coarse, coarse), interpolation=cv2.INTER_AREA)
    enlarged: Pixels = cv2.resize(smaller, (size, size))
    return enlarged


def without(mask: Pixels, other: Pixels) -> Pixels:
    """What of a mask [h, w] of 0 and 1 lies outside another."""
    return mask & (other ^ np.uint8(1))


def depths(mask: Pixels) -> NDArray[np.float32]:
    """Each pixel's distance to the outside of a mask [h, w], which the border belongs to."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distances: NDArray[np.float32] = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    return distances


def _add_clicks(
    prompt: Prompt, target: Pixels, depth: NDArray[np.float32], positive: int, negative: int, random: Generator
) -> None:
    inside = depth > min(3, depth.max() / 2)
    prompt.clicks += [(*_any(inside, random), True) for _ in range(positive)]
    if not negative:
        return
    away = depths(without(np.ones_like(target), target))
    near = (away > 3) & (away < 0.12 * len(target))
    for _ in range(negative):
        where = near if random.random() < 0.65 else away > 5
        if where.any():
            prompt.clicks.append((*_any(where, random), False))


def _edge(mask: Pixels) -> NDArray[np.bool_]:
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return edge if edge.any() else np.ones_like(edge)


def _any(where: NDArray[np.bool_], random: Generator) -> Pixel:
    """Any of the pixels that are true; there has to be one."""
    found = np.flatnonzero(where)
    row, column = divmod(int(found[random.integers(len(found))]), where.shape[1])
    return column, row


def _geometric(chance: float, most: int, random: Generator) -> int:
    count = 0
    while count < most and random.random() < chance:
        count += 1
    return count
