"""Crop policies, as the `polywand` parameters of a model name them: which window the network sees for a prompt."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polywand import Box, Point
from polywand_zoo.evaluation.boxes import overlap
from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.windows import Belief, Window, around

# A mask of fewer input pixels does not say where the object is.
FEWEST_PIXELS = 20
# A window that starts an object is at least so many image pixels wide and high.
SMALLEST_START = 24


class UnknownPolicyError(ValueError):
    """A policy, or an option of one, that is not reproduced here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The image that windows are chosen on, and the network that they are for.

    width, height: image pixels. fixed_size: (height, width) of the network's input, None where it takes any.
    threshold: from which a probability belongs to the mask.
    """

    width: int
    height: int
    fixed_size: tuple[int, int] | None
    threshold: float


class Policy(Protocol):
    """Chooses windows. previous: what was believed before the last point, None where an object starts."""

    def looks(
        self, frame: Frame, prompt: Prompt, previous: Belief | None, proposals: Sequence[Box] = ()
    ) -> list[Window]:
        """The windows in which a prompt's answer is looked for; the surest answer stands.

        proposals: where a detector sees something on the image, the surest first.
        """

    def again(self, frame: Frame, prompt: Prompt, previous: Belief | None, found: Belief) -> Window | None:
        """The window in which that answer is looked at once more, or None when it will do."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Always the whole image."""

    longest_side: int = 800

    def looks(
        self, frame: Frame, prompt: Prompt, previous: Belief | None, proposals: Sequence[Box] = ()
    ) -> list[Window]:
        """See Policy."""
        return [_whole(frame, self.longest_side)]

    def again(self, frame: Frame, prompt: Prompt, previous: Belief | None, found: Belief) -> Window | None:
        """See Policy."""
        return None


@dataclass(frozen=True, slots=True)
class Margin:
    """The box, or the extreme points' box, and a margin on each side: a fraction of the box, and pixels.

    A margin in pixels may reach outside of the image; one of a fraction alone ends there.
    """

    fraction: float = 0.0
    pixels: int = 0
    longest_side: int = 512

    def looks(
        self, frame: Frame, prompt: Prompt, previous: Belief | None, proposals: Sequence[Box] = ()
    ) -> list[Window]:
        """See Policy."""
        box = prompt.starting_box()
        if box is None:
            return [_whole(frame, self.longest_side)]
        x, y = (box.x1 - box.x0) * self.fraction + self.pixels, (box.y1 - box.y0) * self.fraction + self.pixels
        grown = Box(box.x0 - x, box.y0 - y, box.x1 + x, box.y1 + y)
        return [around(*(grown if self.pixels else _clipped(grown, frame)), frame.fixed_size, self.longest_side)]

    def again(self, frame: Frame, prompt: Prompt, previous: Belief | None, found: Belief) -> Window | None:
        """See Policy."""
        return None


@dataclass(frozen=True, slots=True)
class Proposals:
    """Which detector is asked where an object may be that starts by clicks alone.

    model: the detector's name. score: that its boxes reach at least. at_most: so many of those that hold the clicks.
    agree_from: the intersection over union with the answer's own box from which a proposal becomes part of the prompt.
    """

    model: str
    score: float = 0.3
    at_most: int = 2
    agree_from: float | None = None


@dataclass(frozen=True, slots=True)
class ZoomIn:
    """What is around the first click, then what is around the current mask; the options are those of the service."""

    first_looks: Sequence[float] = (1.0,)
    expansion: float = 1.4
    keep_above: float = 0.5
    min_fraction: float = 0.25
    max_aspect: float = 1.7
    click_margin: float = 0.06
    whole_image_above: float = 0.85
    refine_first: bool = False
    look_again_below: float = 0.0
    box_margin: float = 0.18
    longest_side: int = 512
    proposals: Proposals | None = None

    def looks(
        self, frame: Frame, prompt: Prompt, previous: Belief | None, proposals: Sequence[Box] = ()
    ) -> list[Window]:
        """See Policy."""
        if previous is not None:
            closest = self._around_mask(frame, prompt, previous)
            return [previous.window if self._stays(frame, prompt, previous, closest) else closest]
        box = prompt.starting_box()
        if box is not None:
            return [self._around_box(frame, box)]
        near = [self._around_clicks(frame, prompt, look) for look in self.first_looks]
        most = self.proposals.at_most if self.proposals is not None else 0
        proposed = [self._around_box(frame, held) for held in _held(prompt, proposals)[:most]]
        return list(dict.fromkeys(near + proposed))

    def again(self, frame: Frame, prompt: Prompt, previous: Belief | None, found: Belief) -> Window | None:
        """See Policy."""
        below = self.look_again_below
        if previous is None:
            below = 1.0 if self.refine_first and prompt.starting_box() is None else 0.0
        window = self._around_mask(frame, prompt, found)
        return window if window.iou(found.window) < below else None

    def agreeing(self, frame: Frame, prompt: Prompt, found: Belief, proposals: Sequence[Box]) -> Box | None:
        """The proposal that an answer agrees with most, if with any: then that box is asked for."""
        box, held = _mask_box(found, frame.threshold), _held(prompt, proposals)
        if self.proposals is None or self.proposals.agree_from is None or box is None or not held:
            return None
        best = max(held, key=lambda proposal: overlap(box, proposal))
        return best if overlap(box, best) >= self.proposals.agree_from else None

    def _around_box(self, frame: Frame, box: Box) -> Window:
        """The window around a box that an object starts from."""
        return self._window(frame, self._grown(box, 1 + 2 * self.box_margin, SMALLEST_START))

    def _around_clicks(self, frame: Frame, prompt: Prompt, look: float) -> Window:
        """The window around the clicks that start an object; look: its sides, of the image's longer one."""
        clicks = prompt.clicks()
        if look == 1 or not len(clicks):
            return _whole(frame, self.longest_side)
        box = Box(*clicks.min(axis=0), *clicks.max(axis=0))
        side = max(look * max(frame.width, frame.height), SMALLEST_START)
        return self._window(frame, self._grown(box, 1 + 2 * self.click_margin, side))

    def _around_mask(self, frame: Frame, prompt: Prompt, belief: Belief) -> Window:
        """The window around the current mask that also holds the prompt's box and its clicks."""
        box = _mask_box(belief, frame.threshold)
        if box is None:
            return _whole(frame, self.longest_side)
        if (given := prompt.box) is not None:
            box = Box(min(box.x0, given.x0), min(box.y0, given.y0), max(box.x1, given.x1), max(box.y1, given.y1))
        grown = self._grown(box, self.expansion, self.min_fraction * min(frame.width, frame.height))
        clicks = prompt.clicks()
        if len(clicks):
            margin = self.click_margin * max(grown.x1 - grown.x0, grown.y1 - grown.y0)
            (x0, y0), (x1, y1) = clicks.min(axis=0) - margin, clicks.max(axis=0) + margin
            grown = Box(min(grown.x0, x0), min(grown.y0, y0), max(grown.x1, x1), max(grown.y1, y1))
        return self._window(frame, grown)

    def _stays(self, frame: Frame, prompt: Prompt, previous: Belief, closest: Window) -> bool:
        """Whether the window may stay where it was."""
        window = previous.window
        return (
            window != _whole(frame, self.longest_side)
            and window.holds(prompt.clicks())
            and window.iou(closest) > self.keep_above
            and not _runs_out(previous, frame)
        )

    def _grown(self, box: Box, expansion: float, smallest: float) -> Box:
        width, height = max((box.x1 - box.x0) * expansion, smallest), max((box.y1 - box.y0) * expansion, smallest)
        width, height = max(width, height / self.max_aspect), max(height, width / self.max_aspect)
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    def _window(self, frame: Frame, box: Box) -> Window:
        inner = _clipped(box, frame)
        if (inner.x1 - inner.x0) * (inner.y1 - inner.y0) > self.whole_image_above * frame.width * frame.height:
            return _whole(frame, self.longest_side)
        return around(*inner, frame.fixed_size, self.longest_side)


POLICIES: dict[str, type[Whole] | type[Margin] | type[ZoomIn]] = {
    "whole": Whole,
    "margin": Margin,
    "zoom_in": ZoomIn,
}


def read_policy(crop: Mapping[str, Any]) -> Policy:
    """Make the policy of the parameter `crop`.

    Raises:
        UnknownPolicyError: it, or one of its options, is not known here.
    """
    name = crop.get("policy")
    if name not in POLICIES:
        raise UnknownPolicyError(f"the crop policy {name!r}")
    policy = POLICIES[name]
    options = {option: value for option, value in crop.items() if option != "policy"}
    unknown = set(options) - {field.name for field in dataclasses.fields(policy)}
    if unknown:
        raise UnknownPolicyError(f"the option {min(unknown)!r} of the crop policy {name!r}")
    if options.get("proposals") is not None:
        options["proposals"] = _read_proposals(options["proposals"], name)
    return policy(**options)


def _read_proposals(said: Mapping[str, Any], policy: str) -> Proposals:
    unknown = set(said) - {field.name for field in dataclasses.fields(Proposals)}
    if unknown:
        raise UnknownPolicyError(f"the option 'proposals.{min(unknown)}' of the crop policy {policy!r}")
    return Proposals(**said)


def _whole(frame: Frame, longest_side: int) -> Window:
    return around(0, 0, frame.width, frame.height, frame.fixed_size, longest_side)


def _held(prompt: Prompt, proposals: Sequence[Box]) -> list[Box]:
    """The proposals that hold all positive clicks."""
    clicks = [point for point in prompt.points if point.label == "positive"]
    return [box for box in proposals if all(_holds(box, click) for click in clicks)]


def _holds(box: Box, point: Point) -> bool:
    return box.x0 <= point.x <= box.x1 and box.y0 <= point.y <= box.y1


def _clipped(box: Box, frame: Frame) -> Box:
    return Box(max(box.x0, 0), max(box.y0, 0), min(box.x1, frame.width), min(box.y1, frame.height))


def _mask_box(belief: Belief, threshold: float) -> Box | None:
    """The box of what is above the threshold, from edge to edge of the input's pixels."""
    inside = belief.probabilities > threshold
    if np.count_nonzero(inside) < FEWEST_PIXELS:
        return None
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    edges = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (x0, y0), (x1, y1) = belief.window.to_image(edges)
    return Box(float(x0), float(y0), float(x1), float(y1))


def _runs_out(belief: Belief, frame: Frame) -> bool:
    """Whether the mask reaches an edge of its window where the image goes on."""
    window, inside = belief.window, belief.probabilities > frame.threshold
    return bool(
        (window.left > 0 and inside[:, 0].any())
        or (window.top > 0 and inside[0].any())
        or (window.right < frame.width and inside[:, -1].any())
        or (window.bottom < frame.height and inside[-1].any())
    )
