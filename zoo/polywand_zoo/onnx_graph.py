"""An ONNX graph that grows node by node."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 17
IR_VERSION = 8  # the newest that Triton's older ONNX Runtime backends read
BATCH = "batch"


class OnnxGraph:
    """Collects the inputs, constants, nodes and outputs of one ONNX graph.

    Values go by their names, which the caller chooses; a name can be given once. Shapes are those of one item: the
    batch axis, which every input and output has in front, is added here.
    """

    def __init__(self) -> None:
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def input(self, name: str, element_type: int, shape: Sequence[int]) -> str:
        """Declare an input of the graph."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, [BATCH, *shape]))
        return self._claim(name)

    def output(self, name: str, value: str, element_type: int, shape: Sequence[int]) -> None:
        """Make a value an output of the graph, under a name of its own."""
        self._outputs.append(helper.make_tensor_value_info(name, element_type, [BATCH, *shape]))
        self.node("Identity", [value], name)

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant, stored as it is."""
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return self._claim(name)

    def weight(self, name: str, values: NDArray[np.float16]) -> str:
        """Add a constant that is stored in half precision under its name and read in single precision."""
        return self.node("Cast", [self.constant(name, values)], f"{name}/float32", to=onnx.TensorProto.FLOAT)

    def node(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its first output, which is the node's own name too."""
        self._nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        for name in outputs:
            self._claim(name)
        return outputs[0]

    def model(self, name: str, **metadata: str) -> onnx.ModelProto:
        """Return the graph as a model that ONNX's checker has accepted, shapes included."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(
            graph, producer_name="polywand", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _claim(self, name: str) -> str:
        if name in self._names:
            raise ValueError(f"the graph already holds a value '{name}'")
        self._names.add(name)
        return name
