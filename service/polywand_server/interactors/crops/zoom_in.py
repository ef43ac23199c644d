"""The crop policy "zoom_in"."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_server.interactors.crops.policy import CropPolicy
from polywand_server.interactors.crops.space import CropSpace, mask_box
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Label, Prompt
from polywand_server.tools.specs import ProposalSpec, ZoomInCrop

# A mask of fewer input pixels than this says nothing about where the object is.
SMALLEST_MASK_PIXELS = 20
# A crop around clicks or a box is at least so many image pixels wide and high.
SMALLEST_CROP = 24


@dataclass(frozen=True, slots=True)
class ZoomIn(CropPolicy):
    """The surroundings of the first click, then those of the current mask; `ZoomInCrop` explains the options."""

    follows_mask: ClassVar[bool] = True

    spec: ZoomInCrop

    @property
    def proposals(self) -> ProposalSpec | None:
        """See CropPolicy."""
        return self.spec.proposals

    def candidates(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> list[Region]:
        """See CropPolicy."""
        if previous is not None:
            return [self._after(space, prompt, previous)]
        box = prompt.starting_box()
        if box is not None:
            return [self.around_box(space, box)]
        regions = [self._around_clicks(space, prompt, share) for share in self.spec.first_looks]
        return list(dict.fromkeys(regions))  # for clicks far apart, some are the same

    def proposal_crops(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> "ZoomInProposals | None":
        """See CropPolicy. Boxes are wanted only where clicks alone start an object."""
        starts = previous is None and prompt.starting_box() is None and prompt.count(Label.POSITIVE) > 0
        if self.spec.proposals is None or not starts:
            return None
        return ZoomInProposals(self, self.spec.proposals, space)

    def refined(
        self, space: CropSpace, prompt: Prompt, previous: Estimate | None, found: ProbabilityMap
    ) -> Region | None:
        """See CropPolicy."""
        below = self.spec.look_again_below
        if previous is None:  # the first answer is refined wherever that takes another crop
            below = 1.0 if self.spec.refine_first and prompt.starting_box() is None else 0.0
        if not below:
            return None
        region = self.around_mask(space, prompt, found)
        return region if region.overlap(found.region) < below else None

    def around_box(self, space: CropSpace, box: Box) -> Region:
        """Choose the crop around a box that an object starts from."""
        sides = self._sides(box, 1 + 2 * self.spec.box_margin, SMALLEST_CROP)
        return self._region(space, _centred(box, sides))

    def around_mask(self, space: CropSpace, prompt: Prompt, mask: ProbabilityMap) -> Region:
        """Choose the crop around a mask that also holds the prompt's clicks and its box."""
        spec, box = self.spec, mask_box(mask, space.threshold, SMALLEST_MASK_PIXELS)
        if box is None:
            return space.whole(spec.longest_side)
        if prompt.box is not None:
            box = box.union(prompt.box)
        sides = self._sides(box, spec.expansion, spec.min_fraction * min(space.width, space.height))
        box = _centred(box, sides)
        clicks = prompt.clicks()
        if len(clicks):
            margin = spec.click_margin * max(sides)
            (x0, y0), (x1, y1) = clicks.min(axis=0) - margin, clicks.max(axis=0) + margin
            box = box.union(Box(x0, y0, x1, y1))
        return self._region(space, box)

    def _after(self, space: CropSpace, prompt: Prompt, previous: Estimate) -> Region:
        """Choose the crop of a prompt that extends another: the one before, or a closer one."""
        mask = previous.probabilities
        closer = self.around_mask(space, prompt, mask)
        may_stay = (
            not previous.is_seed
            and mask.region != space.whole(self.spec.longest_side)
            and mask.region.holds(prompt.clicks())
            and mask.region.overlap(closer) > self.spec.keep_above
            and not _is_cut(space, mask)
        )
        return mask.region if may_stay else closer

    def _around_clicks(self, space: CropSpace, prompt: Prompt, share: float) -> Region:
        """Choose the crop around the clicks that start an object; share: its sides over the image's longer side."""
        clicks = prompt.clicks()
        if share == 1 or not len(clicks):
            return space.whole(self.spec.longest_side)
        (x0, y0), (x1, y1) = clicks.min(axis=0), clicks.max(axis=0)
        box = Box(x0, y0, x1, y1)
        smallest = max(share * max(space.width, space.height), SMALLEST_CROP)
        return self._region(space, _centred(box, self._sides(box, 1 + 2 * self.spec.click_margin, smallest)))

    def _sides(self, box: Box, expansion: float, smallest: float) -> tuple[float, float]:
        """Compute the (width, height) of an expanded box; smallest: of each, in image pixels."""
        max_aspect = self.spec.max_aspect
        width, height = max((box.x1 - box.x0) * expansion, smallest), max((box.y1 - box.y0) * expansion, smallest)
        return max(width, height / max_aspect), max(height, width / max_aspect)

    def _region(self, space: CropSpace, box: Box) -> Region:
        """Make the region around a box, within the image."""
        left, top, right, bottom = max(box.x0, 0), max(box.y0, 0), min(box.x1, space.width), min(box.y1, space.height)
        if (right - left) * (bottom - top) > self.spec.whole_image_above * space.width * space.height:
            return space.whole(self.spec.longest_side)
        edges = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
        return space.region(*edges, self.spec.longest_side)


@dataclass(frozen=True, slots=True)
class ZoomInProposals:
    """See ProposalCrops."""

    policy: ZoomIn
    spec: ProposalSpec
    space: CropSpace

    def candidates(self, boxes: Sequence[Box]) -> list[Region]:
        """See ProposalCrops."""
        return [self.around(box) for box in boxes[: self.spec.at_most]]

    def agreeing(self, boxes: Sequence[Box], found: ProbabilityMap) -> Box | None:
        """See ProposalCrops. A box counts whether or not a crop was made around it."""
        box = mask_box(found, self.space.threshold, SMALLEST_MASK_PIXELS)
        if box is None or self.spec.agree_from is None or not boxes:
            return None
        best = max(boxes, key=box.overlap)
        return best if box.overlap(best) >= self.spec.agree_from else None

    def around(self, box: Box) -> Region:
        """See ProposalCrops."""
        return self.policy.around_box(self.space, box)


def _centred(box: Box, sides: tuple[float, float]) -> Box:
    """Make the box of this (width, height) with the same centre as another."""
    width, height = sides
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _is_cut(space: CropSpace, mask: ProbabilityMap) -> bool:
    """Whether the mask reaches an edge of its crop that is not an edge of the image."""
    region, inside = mask.region, mask.values > space.threshold
    return bool(
        (region.left > 0 and inside[:, 0].any())
        or (region.top > 0 and inside[0].any())
        or (region.left + region.width < space.width and inside[:, -1].any())
        or (region.top + region.height < space.height and inside[-1].any())
    )
