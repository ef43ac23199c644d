"""Interactors for tests, in Python: what they answer tells what the service sent them."""

from pathlib import Path

from tests.triton.models import add_model

PREAMBLE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def tensor(self, request, name):
        return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

    def disk(self, shape, centre, radius):
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        return (radius - np.hypot(columns - centre[0], rows - centre[1])).astype(np.float32)[None, None]
"""

# LOGITS: a disk around the first point. Its radius is 8 pixels times the number of inferences, as STATE counts them.
COUNTER = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        count = self.tensor(request, "STATE") + 1
        logits = self.disk(image.shape[1:3], points[0, 0, :2], 8 * count[0, 0])
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits), pb_utils.Tensor("STATE_OUT", count)])
"""
)

# LOGITS: the previous mask as it is, and a disk of 8 pixels around every point.
KEEPER = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        logits = (self.tensor(request, "PREV_MASK") - 0.5) * 10
        for x, y, label in points[0]:
            if label in (0, 1):
                disk = self.disk(image.shape[1:3], (x, y), 8)
                logits = np.maximum(logits, disk) if label == 1 else np.minimum(logits, -disk)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits.astype(np.float32))])
"""
)

# LOGITS: the disk of 8 pixels around the first point. It takes its time, or until a file `go` is in the folder; others
# there tell that it has begun, and that it was cancelled.
SLOW = (
    PREAMBLE
    + """
    def initialize(self, args):
        import pathlib
        self.folder = pathlib.Path(args["model_repository"])

    def answer(self, request):
        import time
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        (self.folder / "begun").touch()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (self.folder / "go").exists():
            if request.is_cancelled():
                (self.folder / "cancelled").touch()
                break
            time.sleep(0.01)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", self.disk(image.shape[1:3], points[0, 0, :2], 8))])
"""
)

# LOGITS: nothing that is a number.
BROKEN = (
    PREAMBLE
    + """
    def answer(self, request):
        image = self.tensor(request, "IMAGE")
        logits = np.full((1, 1, *image.shape[1:3]), np.nan, np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits)])
"""
)

# LOGITS: 10 right of the first point, and -6 left of it. STATE counts the inferences of each half of the batch.
LEANING = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        count = self.tensor(request, "STATE") + 1
        logits = np.where(np.arange(image.shape[2]) > points[:, 0, :1], 10, -6)[:, None, None]
        logits = np.repeat(logits, image.shape[1], axis=2) - 3 * (count.reshape(-1, 1, 1, 1) - 1)
        logits = np.where(image[:, None, ..., 0] > 200, -100, logits).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits), pb_utils.Tensor("STATE_OUT", count)])
"""
)

# LOGITS: a disk of 40 input pixels around the last click, or in the middle; the brighter the crop, the surer it is. It
# takes its time, so that a drag is quicker.
DAZZLED = (
    PREAMBLE
    + """
    def answer(self, request):
        import time
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        time.sleep(0.05)
        clicks = [(127.5, 127.5), *points[0, np.isin(points[0, :, 2], (0, 1)), :2]]
        disk = self.disk(image.shape[1:3], clicks[-1], 40)
        logits = np.where(disk > 0, 0.1 + 6 * image.mean() / 255, -10).astype(np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits)])
"""
)

CONFIG = """
backend: "python"
max_batch_size: {batch}
input [
  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }},
  {{ name: "POINTS" data_type: TYPE_FP32 dims: [ 16, 3 ] }}{inputs}
]
output [ {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, {size}, {size} ] }}{outputs} ]
parameters {{ key: "polywand" value: {{ string_value: '{{'
  '"kind": "interactor", "display_name": "{name}", "prompt": {prompt}, "crop": {crop},'
  '"flip": {flip}'
'}}' }} }}
"""
WHOLE = '{"policy": "whole"}'
LOOKS = '{"policy": "zoom_in", "first_looks": [0.5, 1.0], "look_again_below": 0.7}'
STATE = ', { name: "STATE" data_type: TYPE_FP32 dims: [ 1 ] }'
STATE_OUT = ', { name: "STATE_OUT" data_type: TYPE_FP32 dims: [ 1 ] }'
PREV_MASK = ', { name: "PREV_MASK" data_type: TYPE_FP32 dims: [ 1, %s, %s ] }'


def make_interactors(root: Path) -> Path:
    """Lay out all of them as a model repository."""
    add_interactor(root, "counter", COUNTER, inputs=STATE, outputs=STATE_OUT)
    add_interactor(root, "keeper", KEEPER, inputs=PREV_MASK % (256, 256))
    add_interactor(root, "keeper_of_any_size", KEEPER, size=-1, inputs=PREV_MASK % (-1, -1))
    add_interactor(root, "slow", SLOW)
    add_interactor(root, "broken", BROKEN)
    add_interactor(root, "leaning", LEANING, inputs=STATE, outputs=STATE_OUT)
    add_interactor(root, "leaning_flipped", LEANING, inputs=STATE, outputs=STATE_OUT, flip="true")
    return root


def add_interactor(
    root: Path,
    name: str,
    code: str,
    *,
    size: int = 256,
    inputs: str = "",
    outputs: str = "",
    crop: str = WHOLE,
    flip: str = "false",
    batch: int = 2,
    prompt: str = '{"box": "optional"}',
) -> None:
    """Add version 1 of one."""
    fields = {"size": size, "inputs": inputs, "outputs": outputs, "crop": crop, "flip": flip, "prompt": prompt}
    add_model(root, name, CONFIG.format(name=name, batch=batch, **fields), code)
