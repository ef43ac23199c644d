"""OpenCV's GrabCut behind the interactor's tensors: a prompt and a crop become a signed map, no weights involved.

Runs wherever Triton's Python backend finds NumPy and OpenCV: in the embedded server, and in the stock container after
`pip install numpy opencv-python-headless`. Pixels are (x, y) with centres at integers.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 0, 1, 2, 3  # labels; the rest is padding

ITERATIONS = 4
# Radius of what a click marks for certain, relative to the crop's longer side: 3 pixels at 320.
CLICK_RADIUS = 0.009
# How far a click may reach by colour, relative to the crop's longer side, and how much colour it may cross on the way
# (CIE Lab; a just noticeable difference is about 2).
REACH = 0.35
REACH_COLOUR = 60.0
# Parts of an answer that nobody clicked on, and holes in it, are dropped when smaller than this share of its area.
SMALLEST_PART = 0.05
SMALLEST_HOLE = 0.01
# Pixels that either side must have before colours can be modelled.
SMALLEST_SAMPLE = 16
# The map: logits per pixel of distance from the outline, up to this distance. The sigmoid of 8 is 0.9997.
LOGITS_PER_PIXEL = 1.0
FAR = 8.0
OUTLINE_SIGMA = 1.0  # pixels; takes the stairs off the outline

SURE_OUTSIDE, SURE_INSIDE, MAYBE_OUTSIDE, MAYBE_INSIDE = cv2.GC_BGD, cv2.GC_FGD, cv2.GC_PR_BGD, cv2.GC_PR_FGD


class TritonPythonModel:
    """What Triton calls."""

    def execute(self, requests):
        """Answer each request by itself: shapes differ."""
        return [_answer(request) for request in requests]


def _answer(request):
    if request.is_cancelled():
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
    image, points, previous = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IMAGE", "POINTS", "PREV_MASK")
    )
    if previous.shape[2:] != image.shape[1:3]:
        error = f"PREV_MASK is {list(previous.shape[2:])} and IMAGE {list(image.shape[1:3])}: they must be equal"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(error, pb_utils.TritonError.INVALID_ARG))
    logits = segment(image[0], points[0], previous[0, 0])
    return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits[None, None])])


@dataclass(frozen=True)
class Prompt:
    """Pixels of the crop, (x, y). box: first and past-the-last column and row in it (x0, y0, x1, y1), or None."""

    positive: list[tuple[int, int]]
    negative: list[tuple[int, int]]
    box: tuple[int, int, int, int] | None


def segment(image, points, previous):
    """Return the signed map FP32 [H, W]: above 0 inside of the object, with the outline at 0.

    image: RGB UINT8 [H, W, 3]. points: FP32 [N, 3] (x, y, label). previous: the last probabilities, FP32 [H, W], or 0.
    """
    height, width = image.shape[:2]
    prompt = read_prompt(points, width, height)
    if prompt.box is None and not prompt.positive:
        return np.full((height, width), -FAR * LOGITS_PER_PIXEL, np.float32)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab).astype(np.float32) * (100 / 255, 1, 1)
    trimap = first_guess(lab, prompt, previous)
    mark_clicks(trimap, prompt)
    mask = tidy(cut(image, trimap), prompt)
    return signed_map(mask, prompt)


def read_prompt(points, width, height):
    """Sort the rows of `POINTS` by label; places outside of the crop move to its edge."""

    def pixels(label):
        rows = points[points[:, 2] == label]
        return [
            (int(np.clip(round(float(x)), 0, width - 1)), int(np.clip(round(float(y)), 0, height - 1)))
            for x, y, _ in rows
        ]

    first, last = pixels(BOX_TOP_LEFT), pixels(BOX_BOTTOM_RIGHT)
    box = (*first[0], last[0][0] + 1, last[0][1] + 1) if first and last else None
    return Prompt(pixels(POSITIVE), pixels(NEGATIVE), box)


def first_guess(lab, prompt, previous):
    """Make the trimap that GrabCut starts from, UINT8 [H, W]."""
    height, width = lab.shape[:2]
    trimap = np.full((height, width), SURE_OUTSIDE if prompt.box else MAYBE_OUTSIDE, np.uint8)
    inside = np.zeros((height, width), bool)
    if prompt.box:
        x0, y0, x1, y1 = prompt.box
        inside[y0:y1, x0:x1] = True
    elif previous.max(initial=0) > 0.5:
        inside = previous > 0.5
        for click in prompt.positive:
            if not inside[click[1], click[0]]:
                inside |= neighbourhood(lab, click)
    else:
        for click in prompt.positive:
            inside |= neighbourhood(lab, click)
    trimap[inside] = MAYBE_INSIDE
    return trimap


def neighbourhood(lab, click):
    """What lies near a click in the picture and in colour, bool [H, W]: where an object with a click in it may be."""
    height, width = lab.shape[:2]
    x, y = click
    radius = max(1, round(CLICK_RADIUS * max(height, width)))
    seed = lab[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].reshape(-1, 3).mean(axis=0)
    colour = np.linalg.norm(lab - seed, axis=2) / REACH_COLOUR
    rows, columns = np.mgrid[:height, :width]
    place = np.hypot(columns - x, rows - y) / (REACH * max(height, width))
    return colour + place < 1


def mark_clicks(trimap, prompt):
    """Clicks are certain, and the last word: a negative one beside a positive one takes its own disk only."""
    radius = max(1, round(CLICK_RADIUS * max(trimap.shape)))
    for clicks, value in ((prompt.positive, SURE_INSIDE), (prompt.negative, SURE_OUTSIDE)):
        for click in clicks:
            cv2.circle(trimap, click, radius, value, -1)
    for clicks, value in ((prompt.positive, SURE_INSIDE), (prompt.negative, SURE_OUTSIDE)):
        for x, y in clicks:
            trimap[y, x] = value


def cut(image, trimap):
    """Run GrabCut; bool [H, W]. Its colours need samples of both sides; where one is missing, the guess stands."""
    inside = (trimap == SURE_INSIDE) | (trimap == MAYBE_INSIDE)
    # Fewer samples than a mixture has components (five a side) make OpenCV raise.
    if min(np.count_nonzero(inside), np.count_nonzero(~inside)) < SMALLEST_SAMPLE:
        return inside
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(image, trimap, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # a side without variance, in older versions
        return inside
    return (trimap == SURE_INSIDE) | (trimap == MAYBE_INSIDE)


def tidy(mask, prompt):
    """Drop small parts and fill small holes, unless somebody clicked on them."""
    smallest = SMALLEST_PART * np.count_nonzero(mask)
    for value, clicks, least in (
        (True, prompt.positive, smallest),
        (False, prompt.negative, SMALLEST_HOLE / SMALLEST_PART * smallest),
    ):
        _, labels, statistics, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=4)
        small = statistics[:, cv2.CC_STAT_AREA] < least
        small[0] = False
        for x, y in clicks:
            small[labels[y, x]] = False
        mask = np.where(small[labels], not value, mask)
    return mask


def signed_map(mask, prompt):
    """Turn a mask into distances from its outline, smoothed: FP32 [H, W], positive inside. Clicks keep their side."""
    inside, outside = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (mask, ~mask)
    )
    # Half a pixel: the outline runs between pixels, and not through the centres of the outermost ones.
    distance = np.where(mask, np.minimum(inside, FAR) - 0.5, 0.5 - np.minimum(outside, FAR)).astype(np.float32)
    logits = cv2.GaussianBlur(distance, (0, 0), OUTLINE_SIGMA) * LOGITS_PER_PIXEL
    for clicks, sign in ((prompt.positive, 1), (prompt.negative, -1)):
        for x, y in clicks:
            logits[y, x] = sign * max(abs(float(logits[y, x])), 0.5)
    return logits
