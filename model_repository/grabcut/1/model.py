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
    """Pixels of the crop. box: first and last column and row inside of it (x0, y0, x1, y1); may be empty."""

    positive: list
    negative: list
    box: tuple | None


def segment(image, points, previous):
    """Return the signed map FP32 [H, W]: above 0 inside of the object, with the outline at 0.

    image: RGB UINT8 [H, W, 3]. points: FP32 [N, 3] (x, y, label). previous: the last probabilities, FP32 [H, W], or 0.
    """
    height, width = image.shape[:2]
    prompt = read_prompt(points, width, height)
    if prompt.box is None and not prompt.positive:
        return np.full((height, width), -FAR * LOGITS_PER_PIXEL, np.float32)
    radius = max(1, round(CLICK_RADIUS * max(height, width)))
    trimap = first_guess(image, prompt, previous)
    mark_clicks(trimap, prompt, radius)
    mask = cut(image, trimap)
    mask = tidy(mask, prompt)
    return signed_map(mask, prompt)
