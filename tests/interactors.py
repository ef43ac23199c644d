"""Puppets: models in Python that take a few milliseconds, and whose answers tell what the service sent them."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.running import wait_for
from tests.triton.models import add_model

GATE_SECONDS = 20

# While a file MODEL-gate lies beside the repository, an inference waits until as many bytes are in it as inferences
# have begun; it writes a byte to MODEL-begun when it begins, and to MODEL-cancelled when it is cancelled meanwhile.
PREAMBLE = """
import pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"])
        names = (f"{folder.name}-{word}" for word in ("gate", "begun", "cancelled"))
        self.gate, self.begun, self.cancelled = (folder.parent.parent / name for name in names)

    def execute(self, requests):
        return [self.answer_in_turn(request) for request in requests]

    def answer_in_turn(self, request):
        if self.gate.exists():
            self.wait(request, self.add_byte(self.begun))
        return self.answer(request)

    def wait(self, request, number):
        ends = time.monotonic() + 60
        while time.monotonic() < ends and self.is_held(number):
            if request.is_cancelled():
                self.add_byte(self.cancelled)
                return
            time.sleep(0.005)

    def is_held(self, number):
        try:
            return self.gate.stat().st_size < number
        except FileNotFoundError:
            return False

    def add_byte(self, path):
        with open(path, "ab") as file:
            file.write(b".")
        return path.stat().st_size

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

# LOGITS: the disk of 8 pixels around the first point.
DISK = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
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

# LOGITS: a disk of 40 input pixels around the last click, or in the middle; the brighter the crop, the surer it is.
DAZZLED = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
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
output [ {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ {answers}, {size}, {size} ] }}{outputs} ]
parameters {{ key: "polywand" value: {{ string_value: '{card}' }} }}
"""
WHOLE = '{"policy": "whole"}'
STATE = ', { name: "STATE" data_type: TYPE_FP32 dims: [ 1 ] }'
STATE_OUT = ', { name: "STATE_OUT" data_type: TYPE_FP32 dims: [ 1 ] }'
SCORES = ', { name: "SCORES" data_type: TYPE_FP32 dims: [ %s ] }'
PREV_MASK = ', { name: "PREV_MASK" data_type: TYPE_FP32 dims: [ 1, %s, %s ] }'


def add_interactor(
    root: Path,
    name: str,
    code: str,
    *,
    size: int = 256,
    inputs: str = "",
    outputs: str = "",
    answers: int = 1,
    crop: str = WHOLE,
    flip: str = "false",
    batch: int = 1,
    prompt: str = '{"box": "optional"}',
    tools: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Add version 1 of one.

    answers: to each prompt. tools: of a model that is several, what of crop, flip and prompt is different, by name.
    """
    common = {"crop": crop, "flip": flip, "prompt": prompt}
    cards = {tool: card(tool, **common | said) for tool, said in (tools or {}).items()}
    text = json.dumps({"tools": cards} if tools else card(name, **common))
    fields = {"size": size, "inputs": inputs, "outputs": outputs, "answers": answers}
    add_model(root, name, CONFIG.format(card=text, batch=batch, **fields), code)


def card(name: str, *, crop: str, flip: str, prompt: str) -> dict[str, object]:
    """What a model's configuration says of a tool; options are JSON."""
    options = {"prompt": prompt, "crop": crop, "flip": flip}
    return {"kind": "interactor", "display_name": name} | {key: json.loads(text) for key, text in options.items()}


class Gate:
    """Holds the inferences of a puppet until they are let through; leaving the block lets all go on.

    With it a test decides what comes first: an inference is under way for as long as the test wants.
    """

    def __init__(self, repository: Path, model: str) -> None:
        names = (f"{model}-{word}" for word in ("gate", "begun", "cancelled"))
        self._gate, self._begun, self._cancelled = (repository.parent / name for name in names)

    def __enter__(self) -> "Gate":
        for path in (self._begun, self._cancelled, self._gate):
            path.write_bytes(b"")
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.unlink()

    @property
    def begun(self) -> int:
        """How many inferences have begun behind the gate."""
        return self._begun.stat().st_size

    def wait_until_begun(self, count: int = 1) -> None:
        """Wait until so many inferences have begun."""
        wait_for(lambda: self.begun >= count, GATE_SECONDS)

    def wait_until_cancelled(self) -> None:
        """Wait until an inference was cancelled."""
        wait_for(lambda: self._cancelled.stat().st_size > 0, GATE_SECONDS)

    def let_through(self, count: int = 1) -> None:
        """Let so many more inferences go on."""
        with self._gate.open("ab") as gate:
            gate.write(b"." * count)
