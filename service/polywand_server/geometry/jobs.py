"""Outlines and seeds in a child: for masks that take long to trace, and seeds that take long to fill."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_server.geometry.boxes import Box
from polywand_server.geometry.drawn import Drawn, drawn
from polywand_server.geometry.seeds import Seed, seed_map, seed_shape
from polywand_server.geometry.shapes import OutputOptions, make_shape
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_server.workers.answers import Answer
from polywand_server.workers.child import Conversation


def draw(
    _: Conversation,
    probabilities: ProbabilityMap,
    threshold: float,
    options: OutputOptions,
    size: tuple[int, int],
    keep: NDArray[np.float64],
    field: str,
) -> Answer:
    """Make a shape of a map; the arguments are those of `make_shape`. size: width, height of the image."""
    return _written(drawn(make_shape(probabilities, threshold, options, *size, keep, field)))


def draw_seed(_: Conversation, seed: Seed, options: OutputOptions, size: tuple[int, int]) -> Answer:
    """Make a shape of a seed; the arguments are those of `seed_shape`. size: width, height of the image."""
    return _written(drawn(seed_shape(seed, options, *size)))


def _written(made: Drawn) -> Answer:
    names = ("area", "rle", "tolerance", "iou", "confidence")
    box = None if made.box is None else (made.box.x0, made.box.y0, made.box.x1, made.box.y1)
    facts = {"box": box} | {name: getattr(made, name) for name in names}
    png = np.frombuffer(made.png or b"", np.uint8)
    return Answer(facts, (made.coordinates, made.ring_sizes, made.part_sizes, png))


def read_drawn(answer: Answer) -> Drawn:
    """Read the answer of `draw` or `draw_seed`."""
    coordinates, ring_sizes, part_sizes, png = answer.arrays
    facts = answer.facts
    box: Any = facts["box"]
    rle: Any = facts["rle"]
    return Drawn(
        coordinates=coordinates.reshape(-1, 2),
        ring_sizes=ring_sizes,
        part_sizes=part_sizes,
        box=None if box is None else Box(*map(float, box)),
        area=float(facts["area"]),
        rle=None if rle is None else str(rle),
        png=png.tobytes() or None,
        tolerance=float(facts["tolerance"]),
        iou=float(facts["iou"]),
        confidence=float(facts["confidence"]),
    )


def draw_seed_map(_: Conversation, seed: Seed, size: tuple[int, int]) -> Answer:
    """Make a map of a seed. size: width, height of the image."""
    made = seed_map(seed, *size)
    region = made.region
    return Answer({"region": (region.left, region.top, region.width, region.height, region.size)}, (made.values,))


def read_map(answer: Answer) -> ProbabilityMap:
    """Read the answer of `draw_seed_map`."""
    left, top, width, height, (rows, columns) = answer.facts["region"]
    (values,) = answer.arrays
    return ProbabilityMap(Region(left, top, width, height, (rows, columns)), values)
