"""Crop policies: which region of the image the network looks at, for a prompt and what is known of the mask."""

import math

import numpy as np

from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Box, Prompt
from polywand_server.regions import ProbabilityMap, Region, snap
from polywand_server.specs import MarginCrop, WholeCrop, ZoomInCrop

# A mask of fewer input pixels than this says nothing about where the object is.
SMALLEST_MASK_PIXELS = 20
# No crop is smaller than this many image pixels on a side.
SMALLEST_CROP = 24


class Crops:
    """Chooses regions by a policy on one image.

    fixed_size: (height, width) of the network's input, or None for a network that takes any.
    """

    def __init__(
        self, policy: WholeCrop | MarginCrop | ZoomInCrop, width: int, height: int, fixed_size: tuple[int, int] | None
    ) -> None:
        self._policy = policy
        self._width = width
        self._height = height
        self._fixed_size = fixed_size

    def first(self, prompt: Prompt, previous: Estimate | None, threshold: float) -> Region:
        """Choose the region of a prompt's first pass; previous: the estimate that the prompt extends."""
        policy, box = self._policy, prompt.starting_box()
        if isinstance(policy, WholeCrop):
            return self.whole()
        if isinstance(policy, MarginCrop):
            return self.whole() if box is None else self._around(box, policy.fraction, policy.pixels)
        if previous is not None:
            mask = previous.probabilities
            closer = self.closer(prompt, mask, threshold)
            stays = not previous.is_seed and self._may_stay(mask, closer, prompt, threshold)
            return mask.region if stays else closer
        return self.whole() if box is None else self._zoom(box, 1 + 2 * policy.box_margin, SMALLEST_CROP)

    def refining(self, prompt: Prompt, first: ProbabilityMap, threshold: float) -> Region | None:
        """Choose the region of the second pass of an object's first answer; None when one pass is enough."""
        policy = self._policy
        if not isinstance(policy, ZoomInCrop) or not policy.refine_first or prompt.starting_box() is not None:
            return None
        region = self.closer(prompt, first, threshold)
        return None if region == first.region else region

    def whole(self) -> Region:
        """The whole image."""
        return self._region(0, 0, self._width, self._height)

    def closer(self, prompt: Prompt, mask: ProbabilityMap, threshold: float) -> Region:
        """Choose the crop around the current mask that also holds the prompt's clicks and box."""
        policy, box = self._policy, _mask_box(mask, threshold)
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

    def _around(self, box: Box, fraction: float, pixels: float) -> Region:
        """A margin may reach outside the image, where pixels read as black."""
        x, y = (box.x1 - box.x0) * fraction + pixels, (box.y1 - box.y0) * fraction + pixels
        left, right = math.floor(box.x0 - x), math.ceil(box.x1 + x)
        top, bottom = math.floor(box.y0 - y), math.ceil(box.y1 + y)
        if pixels == 0:
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, self._width), min(bottom, self._height)
        return self._region(left, top, right, bottom)

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

    def _region(self, left: int, top: int, right: int, bottom: int) -> Region:
        width, height = right - left, bottom - top
        if self._fixed_size is not None:
            return snap(left, top, right, bottom, self._fixed_size)
        reduction = max(1.0, max(width, height) / self._policy.longest_side)
        size = max(1, round(height / reduction)), max(1, round(width / reduction))
        return snap(left, top, right, bottom, size)


def _mask_box(mask: ProbabilityMap, threshold: float) -> Box | None:
    """The box of what is above the threshold, in image pixels."""
    inside = mask.values > threshold
    if np.count_nonzero(inside) < SMALLEST_MASK_PIXELS:
        return None
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    # Half an input pixel beyond the outermost centres lie the outermost edges.
    corners = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (x0, y0), (x1, y1) = mask.region.from_input(corners)
    return Box(float(x0), float(y0), float(x1), float(y1))
