"""Sizes: how large the costly parts of cases may become."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Upper ends, reached by few cases.

    message_bytes: of a message, about, whatever is repeated in it. entries: of one repeated field or map. vertices: of
    all rings of one seed. rings: of one seed. seed_side: of an image under a seed of many parts, in pixels. rle_bytes:
    of one seed's run lengths. promised_pixels: of a file whose header promises more than its bytes hold. scans: of one
    JPEG. text_bomb_bytes: of one compressed text in a PNG. depth: of nested groups. objects: of one image. outlines: of
    one frame, an inference each.
    """

    message_bytes: int
    entries: int
    vertices: int
    rings: int
    seed_side: int
    rle_bytes: int
    promised_pixels: int
    scans: int
    text_bomb_bytes: int
    depth: int
    objects: int
    outlines: int


SMALL = Sizes(
    message_bytes=1_000_000,
    entries=2_000,
    vertices=200,
    rings=60,
    seed_side=64,
    rle_bytes=5_000,
    promised_pixels=2_000_000,
    scans=20,
    text_bomb_bytes=1_000_000,
    depth=2_000,
    objects=60,
    outlines=3,
)
# At the limits of the contract and of the service's settings, and somewhat beyond.
LARGE = Sizes(
    message_bytes=8_000_000,
    entries=200_000,
    vertices=21_000,
    rings=7_000,
    seed_side=1_024,
    rle_bytes=1_100_000,
    promised_pixels=100_000_000,
    scans=1_500,
    text_bomb_bytes=64_000_000,
    depth=50_000,
    objects=1_100,
    outlines=1_000,
)
NAMED = {"small": SMALL, "large": LARGE}


def copies(rng: random.Random, sizes: Sizes, nbytes: int) -> int:
    """How often something of so many bytes is to be repeated: at least once."""
    return up_to(rng, max(1, min(sizes.entries, sizes.message_bytes // max(1, nbytes))))


def up_to(rng: random.Random, most: int) -> int:
    """A number from 1 to `most`; small ones as often as large ones (evenly over its logarithm)."""
    return max(1, min(most, round(most ** rng.random())))
