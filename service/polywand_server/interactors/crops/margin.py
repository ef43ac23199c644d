"""The crop policy "margin"."""

import math
from dataclasses import dataclass

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import Region
from polywand_server.images.resampling import Resampling
from polywand_server.interactors.crops.policy import CropPolicy
from polywand_server.interactors.crops.space import CropSpace
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.tools.specs import MarginCrop


@dataclass(frozen=True, slots=True)
class Margin(CropPolicy):
    """The box that an object starts from and a margin around it; the whole image where there is no box."""

    spec: MarginCrop

    def candidates(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> list[Region]:
        """See CropPolicy."""
        box = prompt.starting_box()
        return [space.whole(self.spec.longest_side) if box is None else self._around(space, box)]

    def _around(self, space: CropSpace, box: Box) -> Region:
        """Choose the crop around a box; a margin in pixels may reach outside the image, where pixels read as black."""
        spec = self.spec
        if spec.resampling is not Resampling.SMOOTH:
            first, last = space.pixel(box.x0, box.y0), space.pixel(box.x1, box.y1)
            box = Box(first[0], first[1], last[0] + 1, last[1] + 1)
        x, y = (side * spec.fraction + spec.pixels for side in (box.x1 - box.x0, box.y1 - box.y0))
        left, right = math.floor(box.x0 - x), math.ceil(box.x1 + x)
        top, bottom = math.floor(box.y0 - y), math.ceil(box.y1 + y)
        if spec.pixels == 0:
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, space.width), min(bottom, space.height)
        if spec.resampling is Resampling.SMOOTH:
            return space.region(left, top, right, bottom, spec.longest_side)
        size = space.input_size(right - left, bottom - top, spec.longest_side)
        margin = 0 if spec.keep_margin else spec.pixels
        return Region(left, top, right - left, bottom - top, size, spec.resampling, margin)
