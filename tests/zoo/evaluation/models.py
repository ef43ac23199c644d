"""A model repository for these tests: the shipped tools, and networks that find what is red."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from tests.running import REPOSITORY

# The sum of red minus green over 5 x 5 pixels, so many of which are enough.
BLUR, ENOUGH, SCALE = 5, 40.0, 0.05

CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: 4
input [
  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }},
  {{ name: "POINTS" data_type: TYPE_FP32 dims: [ 16, 3 ] }},
  {{ name: "PREV_MASK" data_type: TYPE_FP32 dims: [ 1, {size}, {size} ] }}{state}
]
output [ {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, {size}, {size} ] }} ]
parameters {{ key: "polywand" value: {{ string_value: '{spec}' }} }}
"""
STATE = ', { name: "STATE" data_type: TYPE_FP32 dims: [ 1 ] }'


def make_repository(root: Path) -> Path:
    """Lay out the shipped tools, and a network that finds red for each of four crops."""
    for name in ("wand", "grabcut", "nanodet"):
        shutil.copytree(REPOSITORY / name, root / name)
    add_model(root, "red_whole", crop={"policy": "whole", "longest_side": 144})
    add_model(
        root,
        "red_margin",
        size=128,
        crop={"policy": "margin", "fraction": 0.1, "pixels": 20},
        prompt={"min_positive_points": 0, "extreme_points": 4},
    )
    add_model(root, "red_roi", crop={"policy": "roi", "longest_side": 144, "zoomed_side": 100, "min_side": 40})
    add_model(
        root,
        "red_cubic",
        size=128,
        crop={"policy": "margin", "pixels": 20, "keep_margin": False, "resampling": "cubic"},
        prompt={"min_positive_points": 0, "extreme_points": 4},
    )
    return root


def make_proposing(root: Path, proposals: dict[str, Any]) -> Path:
    """Lay out the shipped wand, whose first clicks have crops around these proposals and near the click."""
    shutil.copytree(REPOSITORY / "wand", root / "wand")
    path = root / "wand" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    said = json.loads(config.parameters["polywand"].string_value)
    said["tools"]["wand_click"]["crop"] |= {"first_looks": [0.5], "proposals": proposals}
    config.parameters["polywand"].string_value = json.dumps(said)
    path.write_text(text_format.MessageToString(config))
    return root


def add_model(root: Path, name: str, *, size: int = -1, state: str = "", **spec: Any) -> Path:
    """Add version 1 of a network that finds what is red; returns the model's folder."""
    folder = root / name
    (folder / "1").mkdir(parents=True)
    said = json.dumps({"kind": "interactor", "display_name": name, **spec})
    (folder / "config.pbtxt").write_text(CONFIG.format(name=name, size=size, state=state, spec=said))
    onnx.save(_finds_red(), folder / "1" / "model.onnx")
    return folder


def _finds_red() -> onnx.ModelProto:
    weights = np.zeros((1, 3, BLUR, BLUR), np.float32)
    weights[0, 0], weights[0, 1] = SCALE / BLUR**2, -SCALE / BLUR**2
    size = ["height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["IMAGE"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["planes", "weights", "bias"], ["redness"], pads=[BLUR // 2] * 4),
            helper.make_node("Add", ["redness", "PREV_MASK"], ["LOGITS"]),
        ],
        "finds_red",
        [
            helper.make_tensor_value_info("IMAGE", TensorProto.UINT8, ["batch", *size, 3]),
            helper.make_tensor_value_info("POINTS", TensorProto.FLOAT, ["batch", 16, 3]),
            helper.make_tensor_value_info("PREV_MASK", TensorProto.FLOAT, ["batch", 1, *size]),
        ],
        [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 1, *size])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-SCALE * ENOUGH], np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
