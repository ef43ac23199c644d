"""From a seed and a number to a case, always the same."""

import random

from tests.faults.fuzz.case import Case
from tests.faults.fuzz.messages import hostile_messages
from tests.faults.fuzz.pictures import hostile_pictures
from tests.faults.fuzz.sizes import Sizes
from tests.faults.fuzz.streams import hostile_stream
from tests.faults.fuzz.wire import hostile_bytes

GENERATORS = (hostile_messages, hostile_bytes, hostile_pictures, hostile_stream)
WEIGHTS = (30, 30, 25, 15)


def make_case(seed: int, number: int, sizes: Sizes) -> Case:
    """Make case `number` of a seed; it depends on nothing else but the sizes, and on Pillow's encoders."""
    rng = random.Random(f"{seed}:{number}")  # seeded by the text's SHA-512, the same in every process
    return rng.choices(GENERATORS, WEIGHTS)[0](rng, sizes)
