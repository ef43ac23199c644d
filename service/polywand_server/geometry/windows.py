"""Windows: the part of an image that a request is confined to, and moves between its coordinates and the image's."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from polywand_contract.raster import column_runs, run_lengths
from polywand_server.errors import InvalidInputError
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.drawn import Drawn
from polywand_server.geometry.png import moved_png
from polywand_server.geometry.raster import encode_flips
from polywand_server.geometry.seeds import PolygonSeed, RleSeed, Seed, runs_of
from polywand_server.images import Picture
from polywand_server.images.picture import part_of


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image, in whole pixels: it spans left .. left + width by top .. top + height.

    image_width, image_height: of the whole image, in pixels.
    """

    left: int
    top: int
    width: int
    height: int
    image_width: int
    image_height: int

    @classmethod
    def around(cls, roi: Box, picture: Picture) -> "Window":
        """Make the smallest window that holds a box. Raises InvalidInputError: the box reaches outside the image."""
        if roi.x0 < 0 or roi.y0 < 0 or roi.x1 > picture.width or roi.y1 > picture.height:
            box = ", ".join(f"{edge:g}" for edge in (roi.x0, roi.y0, roi.x1, roi.y1))
            limit = f"the image spans 0..{picture.width} by 0..{picture.height}"
            raise InvalidInputError("roi", f"({box}) reaches outside: {limit}")
        left, top = math.floor(roi.x0), math.floor(roi.y0)
        width, height = math.ceil(roi.x1) - left, math.ceil(roi.y1) - top
        return cls(left, top, width, height, picture.width, picture.height)

    @property
    def box(self) -> Box:
        """Its box, in image pixels."""
        return Box(self.left, self.top, self.left + self.width, self.top + self.height)

    def cut(self, picture: Picture) -> Picture:
        """Make a picture of this part alone; takes milliseconds where its pyramid has to be computed."""
        return part_of(picture, self.left, self.top, self.width, self.height)

    def inward(self, box: Box) -> Box:
        """Move a box from image pixels to the window's."""
        return Box(box.x0 - self.left, box.y0 - self.top, box.x1 - self.left, box.y1 - self.top)

    def outward(self, box: Box) -> Box:
        """Move a box from the window's pixels to the image's."""
        return Box(box.x0 + self.left, box.y0 + self.top, box.x1 + self.left, box.y1 + self.top)

    def seed_inward(self, seed: Seed) -> Seed:
        """Move a seed from image pixels to the window's; what lies outside is cut off. Takes milliseconds.

        Raises:
            InvalidInputError: its run lengths do not fit the image.
        """
        if isinstance(seed, PolygonSeed):
            return PolygonSeed(tuple(ring - self._offset(np.float32) for ring in seed.rings), seed.part_sizes)
        runs = runs_of(seed, self.image_width, self.image_height)
        columns = runs.columns - self.left
        tops, bottoms = (np.clip(rows - self.top, 0, self.height) for rows in (runs.tops, runs.bottoms))
        is_inside = (columns >= 0) & (columns < self.width) & (tops < bottoms)
        starts = columns[is_inside] * self.height
        flips = np.concatenate([starts + tops[is_inside], starts + bottoms[is_inside]])
        return RleSeed(encode_flips(flips, self.width, self.height), self.width, self.height)

    def drawn_outward(self, drawn: Drawn) -> Drawn:
        """Move an outline from the window's pixels to the image's; its masks get the image's size."""
        image = self.image_width, self.image_height
        return replace(
            drawn,
            coordinates=(drawn.coordinates + self._offset(np.float64)).astype(np.float32),
            box=drawn.box and self.outward(drawn.box),
            rle=drawn.rle and self._rle_outward(drawn.rle),
            png=drawn.png and moved_png(drawn.png, (self.left, self.top), image),
        )

    def _rle_outward(self, counts: str) -> str:
        columns, tops, bottoms = column_runs(run_lengths(counts, self.width, self.height), self.height)
        starts = (columns + self.left) * self.image_height + self.top
        return encode_flips(np.concatenate([starts + tops, starts + bottoms]), self.image_width, self.image_height)

    def _offset(self, dtype: type[np.float32] | type[np.float64]) -> NDArray[np.float32 | np.float64]:
        return np.array((self.left, self.top), dtype)
