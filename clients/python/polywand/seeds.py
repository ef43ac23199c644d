"""Callers' seeds to the contract's `SeedMask`."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from polywand.errors import InvalidRequest
from polywand.results import Outline, Polygon
from polywand_contract.raster import encode_rle
from polywand_contract.v1 import annotation_pb2 as pb

SeedLike: TypeAlias = NDArray[np.bool_ | np.uint8] | Outline | Sequence[Polygon | ArrayLike]
"""A mask [H, W] of the image's size (nonzero is inside); the outline of an earlier prompt or of a detection, of which
the polygons are used; or polygons, each a `Polygon` or its exterior's vertices [N, 2] (x, y). The seed is the union of
the polygons, as in COCO files."""


def to_message(seed: SeedLike) -> pb.SeedMask:
    """Make the message of a seed.

    Raises InvalidRequest when an array is neither a mask nor vertices, and TypeError for other types.
    """
    if isinstance(seed, np.ndarray):
        return pb.SeedMask(rle=_mask(seed))
    if isinstance(seed, Outline):
        return pb.SeedMask(polygons=_polygons(seed.polygons))
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        return pb.SeedMask(polygons=_polygons(seed))
    raise TypeError(f"a seed is a mask, an Outline or a sequence of polygons, not {type(seed).__name__}")


def _mask(mask: NDArray[Any]) -> pb.RleMask:
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8) or not mask.size:
        raise _wrong(f"A seed mask is bool or uint8 [H, W], not {mask.dtype} {list(mask.shape)}.")
    height, width = mask.shape
    return pb.RleMask(width=width, height=height, counts=encode_rle(mask))


def _polygons(polygons: Iterable[Polygon | ArrayLike]) -> pb.PolygonSet:
    parts = [part if isinstance(part, Polygon) else Polygon(np.asarray(part, np.float32)) for part in polygons]
    return pb.PolygonSet(
        polygons=[pb.Polygon(exterior=_ring(part.exterior), holes=map(_ring, part.holes)) for part in parts]
    )


def _ring(vertices: NDArray[np.float32]) -> pb.Ring:
    if vertices.ndim != 2 or vertices.shape[1] != 2:
        raise _wrong(f"A seed polygon's vertices are [N, 2], not {list(vertices.shape)}.")
    return pb.Ring(coordinates=vertices.ravel())


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, grpc.StatusCode.INVALID_ARGUMENT)
