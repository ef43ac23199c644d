"""Models that let a test look into Triton: they write down what becomes of each request, and take as long as told."""

import json
from pathlib import Path

from tests.running import copy_newest
from tests.triton.models import add_model

# What both models share: a line in the journal when a request begins, is cancelled, or is done.
_JOURNAL = """
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils

PATIENCE_S = 60

class Journal:
    def initialize(self, args):
        self.path = json.loads(args["model_config"])["parameters"]["journal"]["string_value"]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def note(self, word):
        with open(self.path, "a") as journal:
            journal.write(word + "\\n")

    def dawdle(self, request):
        if request.is_cancelled():
            return  # before it began, as our other models ask too
        self.note("began")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not request.is_cancelled():
            time.sleep(0.01)
        self.note("cancelled" if request.is_cancelled() else "done")
"""

# An interactor that takes for the object what is bright, so that the client's image decides how large an answer is.
# One click takes 2 ms, as on a quick accelerator; with two clicks it takes a minute, unless the request is cancelled.
_SHADE = (
    _JOURNAL
    + """
class TritonPythonModel(Journal):
    def answer(self, request):
        image, points = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IMAGE", "POINTS"))
        if (points[0, :, 2] >= 0).sum() > 1:
            self.dawdle(request)
        time.sleep(0.002)
        logits = (image[:, :, :, 0].astype(np.float32) - 127)[:, None] / 16
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits)])
"""
)
_SHADE_CONFIG = """
backend: "python"
max_batch_size: 1
input [
  { name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] },
  { name: "POINTS" data_type: TYPE_FP32 dims: [ 8, 3 ] }
]
output [ { name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] } ]
"""
_SHADE_CARD = {"kind": "interactor", "display_name": "Shade", "crop": {"policy": "margin", "longest_side": 512}}

# A detector that takes a minute for every frame, unless the request is cancelled, and finds nothing.
_SNAIL = (
    _JOURNAL
    + """
class TritonPythonModel(Journal):
    def answer(self, request):
        self.dawdle(request)
        boxes, scores = np.zeros((1, 1, 4), np.float32), np.zeros((1, 1, 1), np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("BOXES", boxes), pb_utils.Tensor("SCORES", scores)])
"""
)
_SNAIL_CONFIG = """
backend: "python"
max_batch_size: 1
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 16, 16, 3 ] } ]
output [
  { name: "BOXES" data_type: TYPE_FP32 dims: [ 1, 4 ] },
  { name: "SCORES" data_type: TYPE_FP32 dims: [ 1, 1 ] }
]
"""
_SNAIL_CARD = {"kind": "detector", "display_name": "Snail", "labels": ["nothing"]}


def make_repository(root: Path) -> Path:
    """Lay out the shipped click network beside `shade` and `snail`, whose journals are `journal_of` their names."""
    copy_newest(root, "wand")
    for name, config, card, code in (
        ("shade", _SHADE_CONFIG, _SHADE_CARD, _SHADE),
        ("snail", _SNAIL_CONFIG, _SNAIL_CARD, _SNAIL),
    ):
        add_model(
            root, name, config + _parameters(polywand=json.dumps(card), journal=str(journal_of(root, name))), code
        )
        journal_of(root, name).touch()
    return root


def journal_of(repository: Path, model: str) -> Path:
    """Where a model writes a line "began", "cancelled" or "done" for each request that takes its time."""
    return repository.parent / f"{repository.name}-{model}-journal"


def count(journal: Path, word: str) -> int:
    """How many lines of a journal say so."""
    return journal.read_text().split().count(word)


def _parameters(**values: str) -> str:
    return "".join(
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}\n"
        for key, value in values.items()
    )
