"""Seed masks: good ones, costly ones, and run lengths and rings that are none."""

import math
import random
from collections.abc import Sequence

import numpy as np

from polywand_contract.raster import encode_rle
from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz import values
from tests.faults.fuzz.sizes import Sizes, up_to

Vertices = Sequence[tuple[float, float]]
FAR = 1e6  # the furthest that a coordinate of a seed may be


def make_seed(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    """A seed for an image of this size; about half of them are good."""
    makers = (_blobs, _many_parts, _malformed_runs, _wrong_runs, _crossing, _many_rings, _tiny, _far, _odd_rings)
    return rng.choice(makers)(rng, width, height, sizes)


def make_parts(rng: random.Random, side: int) -> pb.SeedMask:
    """A mask of a square image with many parts or holes: dots, a board, a comb, noise, a plate of holes."""
    y, x = np.mgrid[0:side, 0:side]
    noise = np.frombuffer(rng.randbytes(side * side), np.uint8).reshape(side, side)
    step = rng.randint(2, 4)
    masks = (
        (x % step == 0) & (y % step == 0),
        (x // step + y // step) % 2 == 0,
        (x % step == 0) | (y == 0),
        noise < rng.choice((5, 90, 160, 250)),
        (x % step != 0) | (y % step != 0),
    )
    return _rle(rng.choice(masks))


def _rle(mask: np.ndarray) -> pb.SeedMask:
    return pb.SeedMask(rle=pb.RleMask(width=mask.shape[1], height=mask.shape[0], counts=encode_rle(mask)))


def _polygons(*rings: Vertices, holes: Sequence[Vertices] = ()) -> pb.SeedMask:
    seed = pb.SeedMask()
    for ring in rings:
        seed.polygons.polygons.add().exterior.coordinates.extend(number for vertex in ring for number in vertex)
    if seed.polygons.polygons:
        for hole in holes:
            seed.polygons.polygons[0].holes.add().coordinates.extend(number for vertex in hole for number in vertex)
    return seed


def _blobs(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    y, x = np.mgrid[0:height, 0:width]
    mask = np.zeros((height, width), np.bool_)
    for _ in range(rng.randint(1, 4)):
        radius = rng.uniform(0.1, 0.6) * max(width, height)
        mask ^= (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2 <= radius**2
    return _rle(mask)


def _many_parts(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    if min(width, height) < 2:
        return _blobs(rng, width, height, sizes)
    y, x = np.mgrid[0:height, 0:width]
    step = rng.randint(2, 5)
    return _rle(rng.choice(((x % step == 0) & (y % step == 0), (x + y) % step == 0, (x % step != 0) | (y == 0))))


def _malformed_runs(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    """Characters that are no counts, numbers without an end, and runs beyond every integer."""
    length = up_to(rng, sizes.rle_bytes)
    endless = "o" * length  # each says that more follow
    texts = (
        "".join(chr(rng.randrange(1, 128)) for _ in range(min(length, 1000))),
        "".join(chr(rng.randrange(48, 112)) for _ in range(length)),
        *(endless, endless + "0", "o" * 12 + "O", "0" * length, "P" * length, "@" * length),
        *("", "\u20ac", "\0", values.text(rng)),
    )
    return pb.SeedMask(rle=pb.RleMask(width=width, height=height, counts=rng.choice(texts)))


def _wrong_runs(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    """Counts of another size, or one character of good ones changed."""
    seed = _blobs(rng, width, height, sizes)
    if rng.random() < 0.5:
        seed.rle.width, seed.rle.height = rng.choice(values.UNSIGNED), rng.choice(values.UNSIGNED)
    else:
        place = rng.randrange(len(seed.rle.counts))
        counts = seed.rle.counts
        seed.rle.counts = counts[:place] + chr(rng.randrange(48, 112)) + counts[place + 1 :]
    return seed


def _crossing(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    count = max(3, up_to(rng, sizes.vertices))
    if rng.random() < 0.3:  # a star whose edges all cross
        turns = [number * math.pi * (1 - 1 / count) for number in range(count)]
        return _polygons([(width / 2 * (1 + math.cos(turn)), height / 2 * (1 + math.sin(turn))) for turn in turns])
    return _polygons([(rng.uniform(-5, width + 5), rng.uniform(-5, height + 5)) for _ in range(count)])


def _many_rings(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    count = up_to(rng, min(sizes.rings, sizes.vertices // 3))
    rings = [[(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(3)] for _ in range(count)]
    return _polygons(*rings) if rng.random() < 0.5 else _polygons(rings[0], holes=rings[1:])


def _tiny(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    """Of next to no area, or of none: about one point, on one line, or one pixel exactly."""
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    size = rng.choice((0, 1e-30, 1e-6, 1e-3, 0.1))
    return _polygons(
        rng.choice(
            (
                [(x, y), (x + size, y), (x, y + size)],
                [(x, y)] * 4,
                [(0, 0), (width / 2, height / 2), (width, height)],
                [(int(x), int(y)), (int(x) + 1, int(y)), (int(x) + 1, int(y) + 1), (int(x), int(y) + 1)],
            )
        )
    )


def _far(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    """Far outside, or from there across the image and back."""
    reach = rng.choice((FAR, FAR, 1e5, FAR * 1.001, 1e30))
    count = max(3, up_to(rng, min(sizes.vertices, 60)))
    if rng.random() < 0.3:
        return _polygons([(reach, reach), (reach - 1, reach), (reach, reach - 1)])
    return _polygons([(rng.choice((-reach, reach)), rng.uniform(-reach, reach)) for _ in range(count)])


def _odd_rings(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.SeedMask:
    """Rings with too few vertices, half a vertex, a number that is none; none at all; holes without an exterior."""
    good = [(0.0, 0.0), (float(width), 0.0), (0.0, float(height))]
    seed = rng.choice((_polygons(), _polygons([]), _polygons(good[:2]), _polygons(good), _polygons(good, good)))
    seed.polygons.SetInParent()
    for polygon in seed.polygons.polygons:
        if rng.random() < 0.3:
            polygon.exterior.coordinates.append(rng.choice(values.FLOATS))
        if rng.random() < 0.3:
            polygon.holes.add().coordinates.extend([0, 0, 1, 1, 0, 1])
            polygon.ClearField("exterior")
        if rng.random() < 0.3 and polygon.exterior.coordinates:
            polygon.exterior.coordinates[0] = rng.choice(values.FLOATS)
    return seed
