"""Turns part of an ONNX graph to half precision: graphics processors compute that two to eight times as fast."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

# Inputs that stay in single precision in a node of halves: an operator's name to their indices.
ALWAYS_SINGLE = {"Resize": frozenset({1, 2})}


def compute_in_half(model: onnx.ModelProto, belongs: Callable[[onnx.NodeProto], bool]) -> onnx.ModelProto:
    """Return a model in which the chosen nodes compute in half precision; their inputs and outputs are converted.

    Inputs and outputs of the model keep their types.
    """
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    return _HalfGraph(graph, belongs).rewritten(model)


class _HalfGraph:
    def __init__(self, graph: onnx.GraphProto, belongs: Callable[[onnx.NodeProto], bool]) -> None:
        self._graph = graph
        self._wanted = belongs
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        described = [*graph.input, *graph.output, *graph.value_info]
        self._single = {value.name for value in described if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._single |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        self._made_half = {name for node in graph.node if self._belongs(node) for name in node.output} & self._single
        self._read_as_single = {name for node in graph.node if not self._belongs(node) for name in node.input}
        self._read_as_single |= {value.name for value in graph.output}
        self._converted: set[str] = set()
        self._half_weights: list[onnx.TensorProto] = []

    def rewritten(self, model: onnx.ModelProto) -> onnx.ModelProto:
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            nodes.extend(self._half(node) if self._belongs(node) else [node])
        used = {name for node in nodes for name in node.input}
        weights = [tensor for tensor in [*self._graph.initializer, *self._half_weights] if tensor.name in used]
        result = onnx.ModelProto()
        result.CopyFrom(model)
        for field, content in (("node", nodes), ("initializer", weights), ("value_info", [])):
            result.graph.ClearField(field)
            getattr(result.graph, field).extend(content)
        return result

    def _belongs(self, node: onnx.NodeProto) -> bool:
        """Constants stay single, since some are read as such; what reads one in half precision converts it."""
        return node.op_type != "Constant" and self._wanted(node)

    def _half(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Write a node anew, with conversions of what it reads in front and of what others read of it behind."""
        half = onnx.NodeProto()
        half.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in self._single and index not in ALWAYS_SINGLE.get(node.op_type, ()):
                yield from self._conversion(name)
                half.input[index] = _half_name(name)
        for index, name in enumerate(node.output):
            if name in self._made_half:
                half.output[index] = _half_name(name)
        for attribute in half.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name))
            elif attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        yield half
        for name in node.output:
            if name in self._made_half and name in self._read_as_single:
                yield helper.make_node("Cast", [_half_name(name)], [name], f"{name}/single", to=TensorProto.FLOAT)

    def _conversion(self, name: str) -> Iterator[onnx.NodeProto]:
        """Provide the half of a value that the nodes in single precision make, once."""
        if name in self._made_half or name in self._converted:
            return
        self._converted.add(name)
        if name in self._weights:
            self._half_weights.append(_half_tensor(self._weights[name], _half_name(name)))
        else:
            yield helper.make_node("Cast", [name], [_half_name(name)], _half_name(name), to=TensorProto.FLOAT16)


def _half_name(name: str) -> str:
    return f"{name}/half"


def _half_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the comparison with PyTorch finds
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
