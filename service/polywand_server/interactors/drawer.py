"""Drawing: outlines of maps and maps of seeds, in a thread if that takes milliseconds, else in a child."""

import numpy as np
from numpy.typing import NDArray

from polywand_server.config import MEBIBYTE
from polywand_server.geometry.drawn import Drawn, drawn
from polywand_server.geometry.jobs import draw, draw_seed, draw_seed_map, read_drawn, read_map
from polywand_server.geometry.outlines import count_crossings
from polywand_server.geometry.seeds import Seed, is_exact, is_quick, seed_cost, seed_map, seed_shape
from polywand_server.geometry.shapes import Form, OutputOptions, make_shape
from polywand_server.images.regions import ProbabilityMap
from polywand_server.lanes import Lane
from polywand_server.workers.pool import Limits, Workers

# Vertices of an outline that is drawn in a thread, in about 10 ms; an ordinary click has a few hundred.
FEW_VERTICES = 2**12
# `seed_cost` of a seed that is filled in a thread, in about 10 ms.
SMALL_SEED = 4_000_000
# Pixels of a PNG mask that is written in a thread, in about 10 ms.
SMALL_PNG_PIXELS = 2**24
DRAWING_BYTES = 768 * MEBIBYTE
SEED_MAP_BYTES = 1024 * MEBIBYTE


class Drawer:
    """Draws for one kind of work. lane: its threads. cpu_seconds: limit of a child."""

    def __init__(self, lane: Lane, workers: Workers, cpu_seconds: int) -> None:
        self._lane = lane
        self._workers = workers
        self._cpu_seconds = cpu_seconds

    async def shape(
        self,
        probabilities: ProbabilityMap,
        threshold: float,
        options: OutputOptions,
        size: tuple[int, int],
        keep: NDArray[np.float64],
        field: str,
    ) -> Drawn:
        """Draw the outline of a map; the arguments are those of `make_shape`. size: width, height of the image.

        field: of the request, for errors.

        Raises:
            TooLargeError: the outline has too many vertices or rings, or takes too long.
        """

        def draw_if_small() -> Drawn | None:
            if _has_large_png(options, size) or count_crossings(probabilities, threshold, *size) > FEW_VERTICES:
                return None
            return drawn(make_shape(probabilities, threshold, options, *size, keep, field))

        made = await self._lane.compute(draw_if_small)
        if made is not None:
            return made
        limits = Limits(DRAWING_BYTES, self._cpu_seconds, field, "drawing the outline")
        answer, _ = await self._workers.run(limits, draw, probabilities, threshold, options, size, keep, field)
        return read_drawn(answer)

    async def seed_shape(
        self, seed: Seed, filled: ProbabilityMap, threshold: float, options: OutputOptions, size: tuple[int, int]
    ) -> Drawn:
        """Draw the outline of a seed, unchanged by any network. filled: its map. size: width, height of the image.

        threshold: of the map, where the seed cannot be drawn pixel by pixel.

        Raises:
            InvalidInputError, TooLargeError
        """
        if not await self._lane.compute(lambda: is_exact(seed, *size)):
            return await self.shape(filled, threshold, options, size, np.zeros((0, 2)), "prompt.seed")

        def draw_if_quick() -> Drawn | None:
            is_small = is_quick(seed, *size) and not _has_large_png(options, size)
            return drawn(seed_shape(seed, options, *size)) if is_small else None

        made = await self._lane.compute(draw_if_quick)
        if made is not None:
            return made
        limits = Limits(DRAWING_BYTES, self._cpu_seconds, "prompt.seed", "drawing the seed")
        answer, _ = await self._workers.run(limits, draw_seed, seed, options, size)
        return read_drawn(answer)

    async def seed_map(self, seed: Seed, size: tuple[int, int]) -> ProbabilityMap:
        """Fill a seed's map. size: width, height of the image.

        Raises:
            InvalidInputError, TooLargeError
        """

        def fill_if_small() -> ProbabilityMap | None:
            return seed_map(seed, *size) if seed_cost(seed, *size) <= SMALL_SEED else None

        filled = await self._lane.compute(fill_if_small)
        if filled is not None:
            return filled
        limits = Limits(SEED_MAP_BYTES, self._cpu_seconds, "prompt.seed", "filling the seed")
        answer, _ = await self._workers.run(limits, draw_seed_map, seed, size)
        return read_map(answer)


def _has_large_png(options: OutputOptions, size: tuple[int, int]) -> bool:
    """Whether an answer contains a PNG mask that takes long to write. size: width, height of the image."""
    return Form.PNG in options.forms and size[0] * size[1] > SMALL_PNG_PIXELS
