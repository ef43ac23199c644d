"""Drawn outlines: shapes as plain arrays, which are small, quick to write, and can be sent between processes."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.geometry.boxes import Box
from polywand_server.geometry.shapes import Shape

# Memory of an outline beside its vertices.
_DRAWN_BYTES = 512


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The outline of one object in image pixels (corners at integers).

    coordinates: float32 [N, 2] (x, y) of all vertices, ring after ring; the first of a ring is not repeated at its end.
    ring_sizes: int32 [R], vertices of each ring. part_sizes: int32 [P], rings of each part, its exterior first; the
        largest part is the first.
    box, area, rle, png, tolerance, iou, confidence: see `Shape`.
    """

    coordinates: NDArray[np.float32]
    ring_sizes: NDArray[np.int32]
    part_sizes: NDArray[np.int32]
    box: Box | None
    area: float
    rle: str | None
    png: bytes | None
    tolerance: float
    iou: float
    confidence: float

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = self.coordinates.nbytes + self.ring_sizes.nbytes + self.part_sizes.nbytes
        return _DRAWN_BYTES + arrays + len(self.rle or "") + len(self.png or b"")


def drawn(shape: Shape) -> Drawn:
    """Convert a shape to arrays."""
    parts = shapely.get_parts(shape.polygons)
    rings = shapely.get_rings(parts)
    part_sizes = 1 + shapely.get_num_interior_rings(parts)
    sizes = shapely.get_num_coordinates(rings)
    coordinates = shapely.get_coordinates(rings)
    is_repeated = np.zeros(len(coordinates), np.bool_)
    is_repeated[np.cumsum(sizes) - 1] = True
    return Drawn(
        coordinates=coordinates[~is_repeated].astype(np.float32),
        ring_sizes=(sizes - 1).astype(np.int32),
        part_sizes=part_sizes.astype(np.int32),
        box=shape.box,
        area=shape.area,
        rle=shape.rle,
        png=shape.png,
        tolerance=shape.tolerance,
        iou=shape.iou,
        confidence=shape.confidence,
    )
