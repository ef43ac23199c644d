"""Models that misbehave on purpose, and tiny ONNX ones, laid out as a Triton model repository."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# X [-1, 3] -> Y, the same. The first number says how to behave.
PUPPET = """
import os, signal, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
        order = int(x.flat[0])
        if order == 1:
            raise ValueError("strings cut")
        if order == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if order == 3:
            return pb_utils.InferenceResponse([])
        deadline = time.monotonic() + order / 1000
        while time.monotonic() < deadline and not request.is_cancelled():
            time.sleep(0.01)
        return pb_utils.InferenceResponse([pb_utils.Tensor("Y", x)])
"""
RAISES, DIES, ANSWERS_NOTHING = 1, 2, 3  # from 10: milliseconds to take, unless the request is cancelled

PUPPET_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]
parameters { key: "polywand" value: { string_value: '{"kind": "puppet"}' } }
"""

# One at a time, the more urgent first.
QUEUE_CONFIG = (
    PUPPET_CONFIG.replace("max_batch_size: 4", "max_batch_size: 1")
    + """
dynamic_batching { priority_levels: 2 default_priority_level: 2 }
"""
)

# INDEX [2] -> the weights there; an index that does not exist fails when it runs.
PICK_CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "INDEX" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 50000 }
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""

# IMAGE [8, 8, 3] -> the weighted sum of a pixel's channels [1, 8, 8], as normalisation inside of a graph would be.
MIX_CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 8, 8, 3 ] } ]
output [ { name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] } ]
"""
NICE = """
parameters { key: "nice" value: { string_value: "7" } }
"""
OPENVINO = """
optimization { execution_accelerators { cpu_execution_accelerator: [
  { name: "openvino" parameters { key: "precision" value: "%s" } }
] } }
"""

WEIGHTS = np.array([0.5, 2.0, -1.0], np.float16)


def make_repository(root: Path) -> Path:
    """Lay out all models."""
    add_model(root, "puppet", PUPPET_CONFIG, PUPPET)
    add_model(root, "queue", QUEUE_CONFIG, PUPPET)
    add_model(root, "doomed", PUPPET_CONFIG, "import nothing_of_that_name")
    add_model(root, "pick", PICK_CONFIG, pick_network())
    add_model(root, "never_loaded", PUPPET_CONFIG, PUPPET)
    add_model(root, "mix", MIX_CONFIG, mix_network())
    add_model(root, "mix_nice", MIX_CONFIG + NICE, mix_network())
    for precision in ("f32", "bf16", "auto", "f64"):
        add_model(root, f"mix_openvino_{precision}", MIX_CONFIG + OPENVINO % precision, mix_network())
    refusing = mix_network()
    helper.set_model_props(refusing, {"bfloat16": "off"})
    add_model(root, "mix_openvino_refusing", MIX_CONFIG + OPENVINO % "auto", refusing)
    return root


def add_model(root: Path, name: str, config: str, model: str | onnx.ModelProto) -> None:
    """Add version 1 of a model: Python code, or a network."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config)
    if isinstance(model, str):
        (folder / "model.py").write_text(model)
    else:
        onnx.save(model, folder / "model.onnx")


def mix_network() -> onnx.ModelProto:
    """Weights in half precision and a cast, as exported networks store them."""
    nodes = [
        helper.make_node("Cast", ["IMAGE"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["half"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "weights"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["LOGITS"], perm=[0, 3, 1, 2]),
    ]
    image = helper.make_tensor_value_info("IMAGE", TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 1, 8, 8])
    return _network(nodes, [image], [logits], {"half": WEIGHTS[:, None]})


def pick_network() -> onnx.ModelProto:
    """Return a Gather."""
    nodes = [helper.make_node("Gather", ["weights", "INDEX"], ["Y"])]
    index = helper.make_tensor_value_info("INDEX", TensorProto.INT64, ["batch", "n"])
    picked = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", "n"])
    return _network(nodes, [index], [picked], {"weights": WEIGHTS.astype(np.float32)})


def _network(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(network)
    return network
