"""The contact sheet: the objects that a tool did worst on, with the clicks, its outline and the true one."""

from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand import Point, decode_rle
from polywand.overlay import CLICKS, encode
from polywand_zoo.evaluation.objects import Mask, Photo, load
from polywand_zoo.evaluation.simulation import tight_box
from polywand_zoo.evaluation.trials import Outcome, Trial

RGB = NDArray[np.uint8]
Colour = tuple[int, int, int]

TILE, CAPTION, GAP = 320, 40, 8  # pixels
COLUMNS = 4
SURROUNDINGS = 0.25  # of the box that holds all, on each side
TRUE, FOUND, WHITE, PAPER, INK = (60, 220, 90), (235, 40, 160), (255, 255, 255), (255, 255, 255), (36, 41, 47)
TITLE_HEIGHT = 34
FONT = cv2.FONT_HERSHEY_SIMPLEX
SHIFT = 4  # OpenCV draws in sixteenths of a pixel


def worst(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """The outcomes whose shown answer overlaps the truth least, worst first."""
    shown = [
        (outcome.shown.iou, position, outcome) for position, outcome in enumerate(outcomes) if outcome.shown is not None
    ]
    return [outcome for _, _, outcome in sorted(shown)[:count]]


def draw_sheet(name: str, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write these outcomes of one tool as a PNG, side by side."""
    tiles = [_tile(outcome) for outcome in outcomes]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = columns * (TILE + GAP) + GAP, TITLE_HEIGHT + rows * (TILE + CAPTION + GAP) + GAP
    sheet = np.full((height, width, 3), PAPER, np.uint8)
    _write(sheet, f"{name}: worst of all", (GAP, 15), 0.45)
    _write(sheet, "green: truth, pink: answer", (GAP, 30), 0.4)
    for number, tile in enumerate(tiles):
        top = TITLE_HEIGHT + number // columns * (TILE + CAPTION + GAP)
        left = GAP + number % columns * (TILE + GAP)
        sheet[top : top + TILE + CAPTION, left : left + TILE] = tile
    path.write_bytes(encode(sheet, path.suffix))


def _tile(outcome: Outcome) -> RGB:
    """Draw the surroundings of an object, both outlines, the prompt and a caption."""
    photo, trial = load(outcome.subject), outcome.shown
    assert trial is not None  # only such outcomes are drawn
    assert trial.mask is not None  # what is shown is kept
    found = decode_rle(trial.mask, photo.width, photo.height)
    x0, y0, x1, y1 = _view(photo, found, trial)
    scale = TILE / max(x1 - x0, y1 - y0)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    view: RGB = cv2.resize(photo.pixels[y0:y1, x0:x1], size, interpolation=shrinks)
    for mask, colour in ((photo.truth.inside, TRUE), (found, FOUND)):
        _outline(view, mask[y0:y1, x0:x1], colour)
    _draw_prompt(view, trial, np.array((x0, y0)), np.array(size) / (x1 - x0, y1 - y0))
    tile = np.full((TILE + CAPTION, TILE, 3), PAPER, np.uint8)
    top, left = (TILE - view.shape[0]) // 2, (TILE - view.shape[1]) // 2
    tile[top : top + view.shape[0], left : left + view.shape[1]] = view
    subject = outcome.subject
    _write(tile, f"{subject.image.name}, {subject.name} {subject.group}".strip(), (0, TILE + 14), 0.38)
    _write(tile, _figures(outcome, trial), (0, TILE + 30), 0.38)
    return tile


def _figures(outcome: Outcome, trial: Trial) -> str:
    if not outcome.clicks:
        return f"IoU {trial.iou:.2f}"
    return f"IoU {outcome.clicks[0].iou:.2f} after 1, {trial.iou:.2f} after {len(trial.prompt.points)}, " + (
        f"{outcome.clicks[-1].iou:.2f} after {len(outcome.clicks)}"
    )


def _view(photo: Photo, found: Mask, trial: Trial) -> tuple[int, int, int, int]:
    """Edges of a square that holds the object, and some of what is around; wider where clicks or the answer are."""
    boxes = [tight_box(photo.truth)]
    boxes += [type(boxes[0])(point.x, point.y, point.x, point.y) for point in trial.prompt.points]
    if found.any():
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        boxes.append(type(boxes[0])(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    edges = np.array(boxes)
    (x0, y0), (x1, y1) = edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)
    side = (1 + 2 * SURROUNDINGS) * max(x1 - x0, y1 - y0, 16)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return (
        *(max(0, int(x - side / 2)), max(0, int(y - side / 2))),
        *(min(photo.width, int(x + side / 2) + 1), min(photo.height, int(y + side / 2) + 1)),
    )


def _outline(view: RGB, mask: Mask, colour: Colour) -> None:
    """Draw where a mask ends, resized as the view is."""
    size = view.shape[1], view.shape[0]
    resized = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    lines, _ = cv2.findContours(resized, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, lines, -1, colour, 2, cv2.LINE_AA)


def _draw_prompt(view: RGB, trial: Trial, origin: NDArray[np.int64], scale: NDArray[np.float64]) -> None:
    def to_view(x: float, y: float) -> tuple[int, int]:
        # Corners at integers there, pixel centres here.
        at = ((np.array((x, y)) - origin) * scale - 0.5) * (1 << SHIFT)
        return round(float(at[0])), round(float(at[1]))

    if (box := trial.prompt.box) is not None:
        cv2.rectangle(view, to_view(box.x0, box.y0), to_view(box.x1, box.y1), WHITE, 1, cv2.LINE_AA, SHIFT)
    for number, point in enumerate(trial.prompt.points, 1):
        _draw_click(view, point, to_view(point.x, point.y), number)


def _draw_click(view: RGB, point: Point, at: tuple[int, int], number: int) -> None:
    cv2.circle(view, at, 7 << SHIFT, WHITE, cv2.FILLED, cv2.LINE_AA, SHIFT)
    cv2.circle(view, at, 6 << SHIFT, CLICKS[point.label], cv2.FILLED, cv2.LINE_AA, SHIFT)
    (width, height), _ = cv2.getTextSize(str(number), FONT, 0.32, 1)
    origin = (at[0] >> SHIFT) - width // 2, (at[1] >> SHIFT) + height // 2
    cv2.putText(view, str(number), origin, FONT, 0.32, WHITE, 1, cv2.LINE_AA)


def _write(canvas: RGB, text: str, at: tuple[int, int], scale: float) -> None:
    # OpenCV's letters are ASCII.
    letters = normalize("NFKD", text).encode("ascii", "ignore").decode()
    cv2.putText(canvas, letters, at, FONT, scale, INK, 1, cv2.LINE_AA)
