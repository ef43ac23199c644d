"""The crop policy "roi": the regions of interest of RITM's and f-BRS's code.

In that code the edges of a region are pixels, and the last one belongs to the region.
"""

from dataclasses import dataclass
from typing import ClassVar

from polywand_server.images.regions import Region
from polywand_server.images.resampling import Resampling
from polywand_server.interactors.crops.policy import CropPolicy
from polywand_server.interactors.crops.space import CropSpace, mask_box
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.tools.specs import RoiCrop


@dataclass(frozen=True, slots=True)
class RegionOfInterest(CropPolicy):
    """The whole image for the first click, then the surroundings of the mask and the positive clicks."""

    follows_mask: ClassVar[bool] = True

    spec: RoiCrop

    def candidates(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> list[Region]:
        """See CropPolicy."""
        return [self._whole(space) if previous is None else self._around_mask(space, prompt, previous)]

    def _whole(self, space: CropSpace) -> Region:
        side = min(self.spec.longest_side, max(space.width, space.height))
        return _region(space, 0, 0, space.width, space.height, side)

    def _around_mask(self, space: CropSpace, prompt: Prompt, previous: Estimate) -> Region:
        spec, mask = self.spec, previous.probabilities
        box = mask_box(mask, spec.inside_above, 1)
        if box is None or len(prompt.clicks()) < 2:
            return self._whole(space)
        clicked = [space.pixel(x, y) for x, y in prompt.positive_clicks()]
        left, right = self._expanded([box.x0, box.x1 - 1, *(x for x, _ in clicked)])
        top, bottom = self._expanded([box.y0, box.y1 - 1, *(y for _, y in clicked)])
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, space.width), min(bottom, space.height)
        region = _region(space, left, top, right, bottom, spec.zoomed_side)
        return mask.seen if self._stays(space, previous, clicked, region) else region

    def _expanded(self, pixels: list[float]) -> tuple[int, int]:
        """Find both edges, along one axis, of the region around pixels."""
        first, last = min(pixels), max(pixels)
        side = max(self.spec.expansion * (last - first + 1), self.spec.min_side)
        centre = (first + last) / 2
        return round(centre - side / 2), round(centre + side / 2) + 1

    def _stays(self, space: CropSpace, previous: Estimate, clicked: list[tuple[int, int]], region: Region) -> bool:
        """Whether the region that the network saw before is kept, instead of a new one."""
        seen = previous.probabilities.seen
        holds_clicks = all(
            seen.left <= x < seen.left + seen.width - 1 and seen.top <= y < seen.top + seen.height - 1
            for x, y in clicked
        )
        overlaps = seen.overlap_by_axes(region) >= self.spec.keep_from
        return holds_clicks and overlaps and not previous.is_seed and seen != self._whole(space)


def _region(space: CropSpace, left: int, top: int, right: int, bottom: int, longest_side: int) -> Region:
    """Make the region within these edges; longest_side: of the network's input, exactly."""
    width, height = right - left, bottom - top
    scale = longest_side / max(width, height)
    size = space.fixed_size or (max(1, round(height * scale)), max(1, round(width * scale)))
    return Region(left, top, width, height, size, Resampling.CORNERS)
