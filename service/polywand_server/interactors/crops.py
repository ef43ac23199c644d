"""Crop policies: which region of the image the network looks at, for a prompt and what is known of the mask."""

import math
from collections.abc import Sequence

import numpy as np

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region, snap
from polywand_server.images.resampling import Resampling
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Label, Prompt
from polywand_server.tools.specs import CropPolicy, MarginCrop, ProposalSpec, RoiCrop, WholeCrop, ZoomInCrop

# A mask of fewer input pixels than this says nothing about where the object is.
SMALLEST_MASK_PIXELS = 20
# No crop is smaller than this many image pixels on a side.
SMALLEST_CROP = 24


class Crops:
    """Chooses regions by a policy on one image.

    fixed_size: (height, width) of the network's input, or None for a network that takes any.
    """

    def __init__(self, policy: CropPolicy, width: int, height: int, fixed_size: tuple[int, int] | None) -> None:
        self._policy = policy
        self._width = width
        self._height = height
        self._fixed_size = fixed_size

    def first(self, prompt: Prompt, previous: Estimate | None, threshold: float) -> Region:
        """Choose the region of a prompt's first pass; previous: the estimate that the prompt extends."""
        return self.looks(prompt, previous, threshold)[0]

    def looks(self, prompt: Prompt, previous: Estimate | None, threshold: float) -> list[Region]:
        """Choose the regions in which a prompt's answer is looked for, one or more; proposals may add to them."""
        policy, box = self._policy, prompt.starting_box()
        if isinstance(policy, WholeCrop):
            return [self.whole()]
        if isinstance(policy, MarginCrop):
            return [self.whole() if box is None else self._around(box, policy)]
        if isinstance(policy, RoiCrop):
            return [self.whole() if previous is None else self._of_interest(prompt, previous, policy)]
        if previous is not None:
            mask = previous.probabilities
            closer = self.closer(prompt, mask, threshold)
            stays = not previous.is_seed and self._may_stay(mask, closer, prompt, threshold)
            return [mask.region if stays else closer]
        if box is not None:
            return [self.around_box(box)]
        # For clicks far apart, some are the same.
        return list(dict.fromkeys(self._around_clicks(prompt, look) for look in policy.first_looks))

    def wanted_proposals(self, prompt: Prompt, previous: Estimate | None) -> ProposalSpec | None:
        """Tell whose proposals are wanted: only where clicks alone start an object."""
        policy = self._policy
        starts = previous is None and prompt.starting_box() is None and prompt.count(Label.POSITIVE) > 0
        return policy.proposals if isinstance(policy, ZoomInCrop) and starts else None

    def proposed(self, wanted: ProposalSpec, proposals: Sequence[Box]) -> list[Region]:
        """Choose the regions around the best proposals; by descending score."""
        return [self.around_box(box) for box in proposals[: wanted.at_most]]

    def agreeing(
        self, wanted: ProposalSpec, proposals: Sequence[Box], found: ProbabilityMap, threshold: float
    ) -> Box | None:
        """Choose the proposal that what was found agrees with most, looked at or not; None where with none."""
        box = _mask_box(found, threshold, SMALLEST_MASK_PIXELS)
        if box is None or wanted.agree_from is None or not proposals:
            return None
        best = max(proposals, key=box.overlap)
        return best if box.overlap(best) >= wanted.agree_from else None

    def around_box(self, box: Box) -> Region:
        """Choose the region in which an object is looked for that a box is drawn around."""
        policy = self._policy
        assert isinstance(policy, ZoomInCrop)  # the callers have made sure
        return self._zoom(box, 1 + 2 * policy.box_margin, SMALLEST_CROP)

    def again(
        self, prompt: Prompt, previous: Estimate | None, found: ProbabilityMap, threshold: float
    ) -> Region | None:
        """Choose the region in which what was found is looked at once more; None when it will do."""
        policy = self._policy
        if not isinstance(policy, ZoomInCrop):
            return None
        below = policy.look_again_below
        if previous is None:  # any other crop than the one that was seen is worth a look
            below = 1.0 if policy.refine_first and prompt.starting_box() is None else 0.0
        if not below:
            return None
        region = self.closer(prompt, found, threshold)
        return region if region.overlap(found.region) < below else None

    def whole(self) -> Region:
        """The whole image."""
        if isinstance(self._policy, RoiCrop):
            side = min(self._policy.longest_side, max(self._width, self._height))
            return self._cornered(0, 0, self._width, self._height, side)
        return self._region(0, 0, self._width, self._height)

    def closer(self, prompt: Prompt, mask: ProbabilityMap, threshold: float) -> Region:
        """Choose the crop around the current mask that also holds the prompt's clicks and box."""
        policy, box = self._policy, _mask_box(mask, threshold, SMALLEST_MASK_PIXELS)
        if box is None or not isinstance(policy, ZoomInCrop):
            return self.whole()
        if prompt.box is not None:
            box = Box(
                min(box.x0, prompt.box.x0),
                min(box.y0, prompt.box.y0),
                max(box.x1, prompt.box.x1),
                max(box.y1, prompt.box.y1),
            )
        return self._zoom(box, policy.expansion, policy.min_fraction * min(self._width, self._height), prompt)

    def _may_stay(self, previous: ProbabilityMap, closer: Region, prompt: Prompt, threshold: float) -> bool:
        """Whether a crop that the network has seen already will do, where a closer one is not much better."""
        policy, region = self._policy, previous.region
        return (
            isinstance(policy, ZoomInCrop)
            and region != self.whole()
            and region.holds(prompt.clicks())
            and region.overlap(closer) > policy.keep_above
            and not self._is_cut(previous, threshold)
        )

    def _is_cut(self, mask: ProbabilityMap, threshold: float) -> bool:
        """Whether the mask runs out of its crop, where the image goes on."""
        region, inside = mask.region, mask.values > threshold
        return bool(
            (region.left > 0 and inside[:, 0].any())
            or (region.top > 0 and inside[0].any())
            or (region.left + region.width < self._width and inside[:, -1].any())
            or (region.top + region.height < self._height and inside[-1].any())
        )

    def _around_clicks(self, prompt: Prompt, look: float) -> Region:
        """The region around the clicks that start an object; look: its sides, relative to the image's longer one."""
        policy, clicks = self._policy, prompt.clicks()
        assert isinstance(policy, ZoomInCrop)  # the caller has made sure
        if look == 1 or not len(clicks):
            return self.whole()
        box = Box(*clicks.min(axis=0), *clicks.max(axis=0))
        side = max(look * max(self._width, self._height), SMALLEST_CROP)
        return self._zoom(box, 1 + 2 * policy.click_margin, side)

    def _around(self, box: Box, policy: MarginCrop) -> Region:
        """A margin may reach outside the image, where pixels read as black."""
        if policy.resampling is not Resampling.SMOOTH:
            first, last = (self._pixel(x, y) for x, y in ((box.x0, box.y0), (box.x1, box.y1)))
            box = Box(*first, last[0] + 1, last[1] + 1)
        x, y = ((side * policy.fraction + policy.pixels) for side in (box.x1 - box.x0, box.y1 - box.y0))
        left, right = math.floor(box.x0 - x), math.ceil(box.x1 + x)
        top, bottom = math.floor(box.y0 - y), math.ceil(box.y1 + y)
        if policy.pixels == 0:
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, self._width), min(bottom, self._height)
        if policy.resampling is Resampling.SMOOTH:
            return self._region(left, top, right, bottom)
        size = self._size(right - left, bottom - top)
        margin = 0 if policy.keep_margin else policy.pixels
        return Region(left, top, right - left, bottom - top, size, policy.resampling, margin)

    def _of_interest(self, prompt: Prompt, previous: Estimate, policy: RoiCrop) -> Region:
        """The region that RITM's and f-BRS's code looks at (its edges are of pixels, the last one included)."""
        mask = previous.probabilities
        box = _mask_box(mask, policy.inside_above, 1)
        if box is None or len(prompt.clicks()) < 2:
            return self.whole()
        clicked = [self._pixel(x, y) for x, y in prompt.positive_clicks()]
        xs, ys = [x for x, _ in clicked], [y for _, y in clicked]
        left, right = _expanded([box.x0, box.x1 - 1, *xs], policy)
        top, bottom = _expanded([box.y0, box.y1 - 1, *ys], policy)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, self._width), min(bottom, self._height)
        region = self._cornered(left, top, right, bottom, policy.zoomed_side)

        seen = mask.seen
        holds = all(
            seen.left <= x < seen.left + seen.width - 1 and seen.top <= y < seen.top + seen.height - 1
            for x, y in clicked
        )
        stays = holds and seen.overlap_by_axes(region) >= policy.keep_from
        return seen if stays and not previous.is_seed and seen != self.whole() else region

    def _pixel(self, x: float, y: float) -> tuple[int, int]:
        """Column and row of the image's pixel that a point lies in; the image's far edges belong to its last pixels."""
        return min(math.floor(x), self._width - 1), min(math.floor(y), self._height - 1)

    def _zoom(self, box: Box, expansion: float, smallest: float, prompt: Prompt | None = None) -> Region:
        policy = self._policy
        assert isinstance(policy, ZoomInCrop)  # the callers have made sure
        width, height = max((box.x1 - box.x0) * expansion, smallest), max((box.y1 - box.y0) * expansion, smallest)
        width, height = max(width, height / policy.max_aspect), max(height, width / policy.max_aspect)
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
        clicks = prompt.clicks() if prompt is not None else np.zeros((0, 2))
        if len(clicks):
            margin = policy.click_margin * max(width, height)
            (low_x, low_y), (high_x, high_y) = clicks.min(axis=0) - margin, clicks.max(axis=0) + margin
            left, top, right, bottom = min(left, low_x), min(top, low_y), max(right, high_x), max(bottom, high_y)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, self._width), min(bottom, self._height)
        if (right - left) * (bottom - top) > policy.whole_image_above * self._width * self._height:
            return self.whole()
        return self._region(math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))

    def _cornered(self, left: int, top: int, right: int, bottom: int, longest_side: int) -> Region:
        """Make the region between these edges, whose input has this longest side."""
        width, height = right - left, bottom - top
        scale = longest_side / max(width, height)
        size = self._fixed_size or (max(1, round(height * scale)), max(1, round(width * scale)))
        return Region(left, top, width, height, size, Resampling.CORNERS)

    def _region(self, left: int, top: int, right: int, bottom: int) -> Region:
        return snap(left, top, right, bottom, self._size(right - left, bottom - top))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the input for a crop of this size."""
        reduction = max(1.0, max(width, height) / self._policy.longest_side)
        return self._fixed_size or (max(1, round(height / reduction)), max(1, round(width / reduction)))


def _expanded(pixels: list[float], policy: RoiCrop) -> tuple[int, int]:
    """Both edges, along one axis, of the region around pixels."""
    first, last = min(pixels), max(pixels)
    side = max(policy.expansion * (last - first + 1), policy.min_side)
    centre = (first + last) / 2
    return round(centre - side / 2), round(centre + side / 2) + 1


def _mask_box(mask: ProbabilityMap, threshold: float, smallest: int) -> Box | None:
    """The box of what is above the threshold, in image pixels; None where fewer pixels than the smallest number are."""
    inside = mask.values > threshold
    if np.count_nonzero(inside) < smallest:
        return None
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    # Half an input pixel beyond the outermost centres lie the outermost edges.
    corners = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (x0, y0), (x1, y1) = mask.region.from_input(corners)
    return Box(float(x0), float(y0), float(x1), float(y1))
