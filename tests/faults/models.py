"""Models for tests of faults: quick ones, and ones that note in a journal what becomes of each request."""

import json
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from tests.interactors import PREAMBLE
from tests.running import REPOSITORY
from tests.triton.models import add_model

QUICK_SIDE = 64

# An interactor that takes 2 ms: LOGITS are a disk around the last positive click, or in the middle.
_QUICK = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")[0]
        clicks = [(32, 32), *points[points[:, 2] == 1, :2]]
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", self.disk(image.shape[1:3], clicks[-1], 12))])
"""
)
_QUICK_CONFIG = f"""
backend: "python"
max_batch_size: 1
input [
  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ {QUICK_SIDE}, {QUICK_SIDE}, 3 ] }},
  {{ name: "POINTS" data_type: TYPE_FP32 dims: [ 8, 3 ] }}
]
output [ {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, {QUICK_SIDE}, {QUICK_SIDE} ] }} ]
"""
_QUICK_CARD = {
    "kind": "interactor",
    "display_name": "Quick",
    "prompt": {"box": "optional"},
    "crop": {"policy": "whole"},
}

# Like it, but it takes 20 ms and none of the processor: where turns are counted, each is as long as the other.
_STEADY = _QUICK.replace(
    "        image, points", "        import time\n        time.sleep(0.02)\n        image, points"
)
_STEADY_CARD = _QUICK_CARD | {"display_name": "Steady"}

# What `shade` and `snail` share: a line in the journal when a request begins, is cancelled, or is done.
_JOURNAL = """
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils

PATIENCE_S = 60
# Then the next request begins. Those that were cancelled together with this one have to be known as cancelled by then.
PAUSE_S = 0.3

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
        time.sleep(PAUSE_S)
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


# Stand in for the networks of `wand` and `nanodet`. A disk around the last click or corner; one box.
_WAND = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        disks = [self.disk(image.shape[1:3], self.centre(some), 60) for some in points]
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", np.concatenate(disks))])

    def centre(self, points):
        return [(192, 192), *points[points[:, 2] >= 0, :2]][-1]
"""
)
_NANODET = (
    PREAMBLE
    + """
    def answer(self, request):
        count = len(self.tensor(request, "IMAGE"))
        boxes, scores = np.zeros((count, 3549, 4), np.float32), np.zeros((count, 3549, 80), np.float32)
        boxes[:, 0], scores[:, 0, 15] = (80, 80, 240, 240), 0.9
        return pb_utils.InferenceResponse([pb_utils.Tensor("BOXES", boxes), pb_utils.Tensor("SCORES", scores)])
"""
)

# A network that is loaded in a moment, in a model file like those that are shipped: IMAGE and POINTS -> one disk.
TINY, TINY_TOOL = "tiny", "tiny_click"
_TINY_SIDE = 64
TINY_CONFIG = """
backend: "onnxruntime"
max_batch_size: 1
version_policy { latest { num_versions: 2 } }
input [
  { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 64, 64, 3 ] },
  { name: "POINTS" data_type: TYPE_FP32 dims: [ 8, 3 ] }
]
output [ { name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, 64, 64 ] } ]
instance_group [ { count: 1 } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters { key: "polywand" value: { string_value: '{"tools": {'
  '"tiny_click": {"kind": "interactor", "display_name": "Tiny", "threshold": 0.5, "crop": {"policy": "whole"}},'
  '"wand_box": {"kind": "interactor", "display_name": "As detections are outlined by default",'
  '             "prompt": {"box": "optional"}, "crop": {"policy": "whole"}}'
'}}' } }
"""
# A detector like it: one box in the middle.
SPOTTER = "spotter"
_SPOTTER_CONFIG = """
backend: "onnxruntime"
max_batch_size: 1
version_policy { latest { num_versions: 2 } }
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 64, 64, 3 ] } ]
output [
  { name: "BOXES" data_type: TYPE_FP32 dims: [ 1, 4 ] },
  { name: "SCORES" data_type: TYPE_FP32 dims: [ 1, 1 ] }
]
instance_group [ { count: 1 } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters { key: "polywand" value: { string_value:
  '{"kind": "detector", "display_name": "Spotter", "labels": ["middle"]}'
} }
"""


def make_repository(root: Path) -> Path:
    """Lay out `quick` and `steady` beside `shade` and `snail`, whose journals are `journal_of` their names."""
    for name, card, code in (("quick", _QUICK_CARD, _QUICK), ("steady", _STEADY_CARD, _STEADY)):
        add_model(root, name, _QUICK_CONFIG + _parameters(polywand=json.dumps(card)), code)
    for name, config, card, code in (
        ("shade", _SHADE_CONFIG, _SHADE_CARD, _SHADE),
        ("snail", _SNAIL_CONFIG, _SNAIL_CARD, _SNAIL),
    ):
        add_model(
            root, name, config + _parameters(polywand=json.dumps(card), journal=str(journal_of(root, name))), code
        )
        journal_of(root, name).touch()
    return root


def add_stand_ins(root: Path) -> Path:
    """Lay out `wand` and `nanodet` as they are shipped, but for their networks, which here take some ms."""
    for name, code in (("wand", _WAND), ("nanodet", _NANODET)):
        shipped = (REPOSITORY / name / "config.pbtxt").read_text()
        config = text_format.Parse(shipped, model_config_pb2.ModelConfig())
        config.backend = "python"
        config.ClearField("optimization")
        add_model(root, name, text_format.MessageToString(config), code)
    return root


def add_tiny(root: Path) -> Path:
    """Add version 1 of the tiny network, whose tools are `tiny_click` and `wand_box`; return its folder."""
    side = np.arange(_TINY_SIDE, dtype=np.float32)
    disk = 12 - np.hypot(side - 32, side[:, None] - 32)[None, None]
    add_model(root, TINY, TINY_CONFIG, _constant({"IMAGE": "UINT8", "POINTS": "FLOAT"}, {"LOGITS": disk}))
    return root / TINY


def add_spotter(root: Path) -> Path:
    """Add version 1 of the tiny detector; return its folder."""
    answer = {"BOXES": np.array([[[16, 16, 48, 48]]], np.float32), "SCORES": np.array([[[0.9]]], np.float32)}
    add_model(root, SPOTTER, _SPOTTER_CONFIG, _constant({"IMAGE": "UINT8"}, answer))
    return root / SPOTTER


def _constant(inputs: dict[str, str], outputs: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a network that reads all its inputs and always answers the same; names and types, names and values."""
    nodes, weights = [], {"zero": np.zeros((), np.float32)}
    for name in inputs:
        nodes += [
            helper.make_node("Cast", [name], [f"{name} as float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", [f"{name} as float"], [f"most of {name}"], keepdims=0),
        ]
    nodes += [
        helper.make_node("Sum", [f"most of {name}" for name in inputs], ["most"]),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
    ]
    for name, value in outputs.items():
        weights[f"{name} itself"] = value
        nodes.append(helper.make_node("Add", [f"{name} itself", "nothing"], [name]))
    network = helper.make_model(
        helper.make_graph(
            nodes,
            "constant",
            [
                _info(name, kind, ["batch", "a", "b", 3] if kind == "UINT8" else ["batch", "n", 3])
                for name, kind in inputs.items()
            ],
            [_info(name, "FLOAT", value.shape) for name, value in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(network)
    return network


def _info(name: str, kind: str, shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


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
