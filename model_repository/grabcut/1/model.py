"""OpenCV's GrabCut behind the interactor's tensors: a prompt and a crop become a signed map, no weights involved.

It runs wherever Triton's Python backend finds NumPy and OpenCV: in the embedded server, and in the stock container
after `pip install numpy opencv-python-headless`. Pixels are (x, y), with centres at integers; masks are bool [H, W].

Sizes are relative to the crop's longer side, colours in OpenCV's 8-bit CIE Lab. The figures were chosen on 90 objects
of photos, by simulated clicks into the middle of the largest error.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3  # labels of points; all others are skipped

START_ITERATIONS = 3  # more change little, and take 30 to 150 ms each
CORRECTION_ITERATIONS = 1  # the colours are known, and little is free to change
DENOISE_SIGMA = 1.0  # pixels
# A click marks, for certain, what is of its colour and joined to it within this distance ...
BRUSH, BRUSH_COLOUR = 0.05, 20
CORE = 2  # ... and this many pixels around it in any case.
# It suggests what is of its colour and joined to it anywhere, and what is this near to it.
REACH, REACH_COLOUR = 0.06, 16
# A click that corrects an answer changes it only so far around.
CORRECTION = 0.27
# Parts of an answer, and holes in it, that nobody clicked on are dropped when smaller than this share of it.
SMALLEST_PART, SMALLEST_HOLE = 0.05, 0.01
# The map: one logit per pixel of distance from the outline, up to here. The sigmoid of 8 is 0.9997.
FAR = 8.0
OUTLINE_SIGMA = 1.0  # pixels; takes the stairs off the outline


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args):
        """Give the processor to the other models too: GrabCut gains little from OpenCV's threads."""
        cv2.setNumThreads(1)

    def execute(self, requests):
        """Answer each request by itself, as their crops differ in size, and through its own sender.

        Should Triton give up on this process while it computes, no other request can get the answer.
        """
        for request in requests:
            sender = request.get_response_sender()
            sender.send(answer(request), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


@dataclass(frozen=True)
class Prompt:
    """What points say, in whole pixels of the crop.

    positive, negative: (x, y). box: mask of its inside, or None.
    """

    positive: list
    negative: list
    box: np.ndarray | None

    def clicks(self):
        """Yield every click with whether it is positive and the clicks of the other kind."""
        yield from ((click, True, self.negative) for click in self.positive)
        yield from ((click, False, self.positive) for click in self.negative)


def answer(request):
    """Return the response to one request."""
    if request.is_cancelled():
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
    image, points, previous = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0] for name in ("IMAGE", "POINTS", "PREV_MASK")
    )
    if previous.shape[1:] != image.shape[:2]:
        error = f"PREV_MASK is {list(previous.shape[1:])} and IMAGE {list(image.shape[:2])}: their sizes must be equal"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(error, pb_utils.TritonError.INVALID_ARG))
    return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", segment(image, points, previous[0])[None, None])])


def segment(image, points, previous):
    """Return the signed map FP32 [H, W]: above 0 inside of the object, 0 on its outline.

    image: RGB UINT8 [H, W, 3]. points: FP32 [N, 3] (x, y, label). previous: the last probabilities, FP32 [H, W], or 0.
    """
    prompt = read_prompt(points, image.shape[:2])
    if prompt.box is None and not prompt.positive:
        return np.full(image.shape[:2], -FAR, np.float32)
    colours = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), 5)
    inside = previous >= 0.5
    iterations = CORRECTION_ITERATIONS if inside.any() else START_ITERATIONS
    mask = cut(image, guess(colours, prompt, inside), iterations)
    return signed_map(tidy(mask, prompt), prompt)


def read_prompt(points, shape):
    """Sort points by label; those of clicks outside of the crop are skipped, boxes are clipped to it."""
    height, width = shape
    points = points[np.isfinite(points).all(axis=1)]
    labels = np.rint(points[:, 2])
    # A click on the far edge of the crop lies half a pixel beyond the centres of the last pixels, and is theirs.
    inside = ((points[:, :2] >= -0.5) & (points[:, :2] <= (width - 0.5, height - 0.5))).all(axis=1)
    nearest = np.floor(points[:, :2] + 0.5).clip(0, (width - 1, height - 1))

    def clicks(label):
        return [(int(x), int(y)) for x, y in nearest[inside & (labels == label)]]

    corners = [points[labels == label, :2] for label in (TOP_LEFT, BOTTOM_RIGHT)]
    box = None
    if all(len(corner) for corner in corners):
        left, top = np.ceil(corners[0][-1]).clip(0, (width, height)).astype(int)
        right, bottom = np.floor(corners[1][-1] + 1).clip(0, (width, height)).astype(int)
        box = np.zeros(shape, bool)
        box[top:bottom, left:right] = True
    return Prompt(clicks(POSITIVE), clicks(NEGATIVE), box)


def guess(colours, prompt, previous):
    """Return GrabCut's start, UINT8 [H, W]: what is surely or probably inside or outside.

    colours: Lab UINT8 [H, W, 3]. previous: mask of the last answer, all False when there is none.
    """
    size = max(previous.shape)
    has_previous = bool(previous.any())
    inside = previous.copy() if has_previous or prompt.box is None else prompt.box.copy()
    free = np.zeros_like(inside)
    for click, positive, _ in prompt.clicks():
        if inside[click[::-1]] == positive:
            continue
        wrong = inside != positive
        inside[(like(colours, click, REACH_COLOUR, wrong) | disc(inside.shape, click, REACH * size)) & wrong] = positive
        free |= disc(inside.shape, click, CORRECTION * size)
    trimap = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    if has_previous and free.any():
        trimap[previous & ~free] = cv2.GC_FGD
        trimap[~previous & ~free] = cv2.GC_BGD
    if prompt.box is not None:
        trimap[~prompt.box] = cv2.GC_BGD
    mark_clicks(trimap, colours, prompt)
    return trimap


def mark_clicks(trimap, colours, prompt):
    """Mark what clicks say for certain; a brush ends half-way to the next click of the other kind."""
    radius = BRUSH * max(trimap.shape)
    for click, positive, others in prompt.clicks():
        nearest = min((np.hypot(click[0] - x, click[1] - y) for x, y in others), default=np.inf)
        brush = disc(trimap.shape, click, min(radius, nearest / 2))
        trimap[like(colours, click, BRUSH_COLOUR, brush)] = cv2.GC_FGD if positive else cv2.GC_BGD
    for click, positive, others in prompt.clicks():
        nearest = min((np.hypot(click[0] - x, click[1] - y) for x, y in others), default=np.inf)
        trimap[disc(trimap.shape, click, min(CORE, nearest / 2))] = cv2.GC_FGD if positive else cv2.GC_BGD


def cut(image, trimap, iterations):
    """Return GrabCut's mask. Where it has nothing to tell apart, the start is the answer."""
    inside = is_inside(trimap)
    if inside.all():  # the box holds the whole crop: what touches its edge is probably not the object
        edge = np.ones_like(inside)
        edge[1:-1, 1:-1] = False
        trimap[edge & (trimap == cv2.GC_PR_FGD)] = cv2.GC_PR_BGD
        inside = is_inside(trimap)
    if inside.all() or not inside.any():
        return inside
    smooth = cv2.GaussianBlur(image, (0, 0), DENOISE_SIGMA)
    cv2.setRNGSeed(0)  # it clusters colours from random beginnings; equal prompts shall have equal answers
    cv2.grabCut(smooth, trimap, None, np.zeros((1, 65)), np.zeros((1, 65)), iterations, cv2.GC_INIT_WITH_MASK)
    return is_inside(trimap)


def tidy(mask, prompt):
    """Drop small parts and small holes. By clicks alone, only parts that were clicked on are the object."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count > 1:
        areas = statistics[:, cv2.CC_STAT_AREA]
        keep = np.zeros(count, bool)
        if prompt.box is not None:
            keep = areas >= SMALLEST_PART * areas[1:].max()
        keep[[parts[y, x] for x, y in prompt.positive]] = True
        keep[0] = False
        mask = keep[parts]
    count, holes, statistics, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    fill = statistics[:, cv2.CC_STAT_AREA] < SMALLEST_HOLE * mask.sum()
    fill[[holes[y, x] for x, y in prompt.negative]] = False
    fill[[0, *holes[0], *holes[-1], *holes[:, 0], *holes[:, -1]]] = False  # what reaches the crop's edge is no hole
    return mask | fill[holes]


def signed_map(mask, prompt):
    """Return the distance of each pixel from the mask's outline in pixels, above 0 inside, FP32 [H, W], up to FAR."""
    inner, outer = (cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5) for side in (mask, ~mask))
    # A pixel beside the outline is half a pixel from it. Without any outline, distanceTransform returns huge values.
    distance = np.where(mask, inner - 0.5, 0.5 - outer).clip(-FAR, FAR).astype(np.float32)
    smooth = cv2.GaussianBlur(distance, (0, 0), OUTLINE_SIGMA)
    for click, positive, _ in prompt.clicks():
        x, y = click
        smooth[y, x] = max(smooth[y, x], 0.5) if positive else min(smooth[y, x], -0.5)
    return smooth


def is_inside(trimap):
    """Return the mask of what is surely or probably inside."""
    return (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)


def like(colours, click, tolerance, within):
    """Return the mask of pixels of the click's colour that are joined to it within a mask."""
    height, width = within.shape
    blocked = np.ones((height + 2, width + 2), np.uint8)
    blocked[1:-1, 1:-1] = ~within
    if within[click[::-1]]:
        flags = cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (2 << 8) | 4
        cv2.floodFill(colours, blocked, click, 0, (tolerance,) * 3, (tolerance,) * 3, flags)
    return blocked[1:-1, 1:-1] == 2


def disc(shape, centre, radius):
    """Return the mask of the pixels within a radius."""
    x, y = np.arange(shape[1]) - centre[0], np.arange(shape[0])[:, None] - centre[1]
    return x * x + y * y <= radius * radius
