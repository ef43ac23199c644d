"""Drawn outlines: shapes as plain arrays, which are small, quick to write, and can be sent between processes."""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from polywand_server.geometry.shapes import Shape

# Memory of an outline beside its vertices.
_DRAWN_BYTES = 512


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The outline of one object in image pixels (corners at integers).

    coordinates: float32 [N, 2] (x, y) of all vertices, ring after ring; the first of a ring is not repeated at its end.
    ring_sizes: int32 [R], vertices of each ring. part_sizes: int32 [P], rings of each part, its exterior first; the
        largest part is the first.
    area, rle, tolerance, iou: see `Shape`.
    """

    coordinates: NDArray[np.float32]
    ring_sizes: NDArray[np.int32]
    part_sizes: NDArray[np.int32]
    area: float
    rle: str | None
    tolerance: float
    iou: float

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        arrays = self.coordinates.nbytes + self.ring_sizes.nbytes + self.part_sizes.nbytes
        return _DRAWN_BYTES + arrays + (len(self.rle) if self.rle else 0)

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The tight box x0, y0, x1, y1 around all polygons; None when there are none."""
        if not len(self.coordinates):
            return None
        (x0, y0), (x1, y1) = self.coordinates.min(axis=0), self.coordinates.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)


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
        coordinates[~is_repeated].astype(np.float32),
        (sizes - 1).astype(np.int32),
        part_sizes.astype(np.int32),
        shape.area,
        shape.rle,
        shape.tolerance,
        shape.iou,
    )
