"""Translates a TensorFlow.js graph model to ONNX nodes: the operations of NanoDet, and no others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_zoo.onnx_graph import OnnxGraph
from polywand_zoo.tfjs.constants import fold_constants
from polywand_zoo.tfjs.layout import Padding, Tensor, arrange, concatenate, natural
from polywand_zoo.tfjs.model import GraphModel, GraphModelError, Node

NHWC_STORED_AS_NCHW = (0, 2, 3, 1)
HWIO_TO_OIHW = (3, 2, 0, 1)


def translate(model: GraphModel, graph: OnnxGraph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write a model's nodes into an ONNX graph and return the tensors of the model's outputs by name.

    inputs: what the model's placeholders stand for, by name.

    The model was traced with a batch of one. In every operation accepted here the batch stays the first axis, and
    nothing written down depends on its size, so the ONNX nodes work on batches of any size.
    """
    translation = _Translation(model, graph, inputs)
    for node in model.nodes:
        translation.add(node)
    return {name: translation.output(name) for name in model.outputs}


class _Translation:
    """What is known while the nodes are walked in order: the constants, and the tensors computed so far."""

    def __init__(self, model: GraphModel, graph: OnnxGraph, inputs: Mapping[str, Tensor]) -> None:
        self.graph = graph
        self.inputs = inputs
        self.constants = fold_constants(model)
        self.tensors: dict[str, Tensor] = {}
        self.readers: dict[str, list[Node]] = {}
        for node in model.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)

    def add(self, node: Node) -> None:
        """Translate one node, unless it is a constant or a bias that its convolution has taken already."""
        if node.name in self.constants or node.name in self.tensors:
            return
        operation = _OPERATIONS.get(node.op)
        if operation is None:
            raise node.refusal("this operation is not supported")
        self.tensors |= operation(self, node)

    def output(self, name: str) -> Tensor:
        """Return the tensor of one of the model's outputs."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.padding is not None:
            raise GraphModelError(f"no supported operation computes the output '{name}'")
        return tensor

    # What a node reads.

    def padded(self, node: Node, index: int = 0) -> Tensor:
        name = node.inputs[index]
        if name not in self.tensors:
            raise node.refusal(f"reads '{name}', which no node before it computes")
        return self.tensors[name]

    def tensor(self, node: Node, index: int = 0) -> Tensor:
        tensor = self.padded(node, index)
        if tensor.padding is not None:
            raise node.refusal("padding is supported in front of a convolution or a pooling only")
        return tensor

    def constant(self, node: Node, index: int) -> NDArray[Any]:
        name = node.inputs[index]
        if name not in self.constants:
            raise node.refusal(f"reads '{name}', which must be a constant")
        return self.constants[name]

    def integers(self, node: Node, index: int) -> list[int]:
        return [int(value) for value in self.constant(node, index)]

    def axis(self, node: Node, index: int, rank: int) -> int:
        axis = int(self.constant(node, index)) % rank
        if axis == 0:
            raise node.refusal("works along the batch axis, which is not supported")
        return axis

    # The operations: each returns the tensors that the node computes, by name.

    def placeholder(self, node: Node) -> dict[str, Tensor]:
        if node.name not in self.inputs:
            raise node.refusal("no input was given for it")
        return {node.name: self.inputs[node.name]}

    def identity(self, node: Node) -> dict[str, Tensor]:
        return {node.name: self.padded(node)}

    def transpose(self, node: Node) -> dict[str, Tensor]:
        order = self.integers(node, 1)
        if order[0] != 0:
            raise node.refusal("moves the batch axis, which is not supported")
        return {node.name: self.padded(node).transposed(order)}

    def pad(self, node: Node) -> dict[str, Tensor]:
        amounts = tuple((int(before), int(after)) for before, after in self.constant(node, 1))
        fill = float(self.constant(node, 2)) if node.op == "PadV2" else 0.0
        return {node.name: replace(self.tensor(node), padding=Padding(amounts, fill))}

    def convolution(self, node: Node) -> dict[str, Tensor]:
        if any(step != 1 for step in node.integers("dilations")):
            raise node.refusal("dilation is not supported")
        kernel = self.constant(node, 1)
        if kernel.shape[2] != self.padded(node).shape[3]:
            raise node.refusal("grouped convolution is not supported")
        window, height, width = _window(node, self.padded(node), kernel.shape[:2], fill=0.0)
        values = [self.stored_as_nchw(node), self.graph.weight(node.inputs[1], kernel.transpose(HWIO_TO_OIHW))]

        bias = self.bias_of(node)
        if bias is not None:
            values.append(self.graph.weight(bias.inputs[1], self.constant(bias, 1)))

        self.graph.node("Conv", values, node.name, **window)
        result = Tensor(node.name, (1, height, width, kernel.shape[3]), NHWC_STORED_AS_NCHW)
        return {node.name if bias is None else bias.name: result}

    def max_pool(self, node: Node) -> dict[str, Tensor]:
        source = self.padded(node)
        window, height, width = _window(node, source, node.integers("ksize")[1:3], fill=-math.inf)
        self.graph.node("MaxPool", [self.stored_as_nchw(node)], node.name, **window)
        return {node.name: Tensor(node.name, (1, height, width, source.shape[3]), NHWC_STORED_AS_NCHW)}

    def resize(self, node: Node) -> dict[str, Tensor]:
        if node.flag("align_corners") or not node.flag("half_pixel_centers"):
            raise node.refusal("only half-pixel centres are supported")
        _, height, width, channels = self.tensor(node).shape
        size = self.integers(node, 1)
        scales = np.array([1, 1, size[0] / height, size[1] / width], np.float32)
        if [math.floor(height * scales[2]), math.floor(width * scales[3])] != size:
            raise node.refusal(f"no scale leads from {height} x {width} to {size[0]} x {size[1]}")
        self.graph.node(
            "Resize",
            [self.stored_as_nchw(node), "", self.graph.constant(f"{node.name}/scales", scales)],
            node.name,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        return {node.name: Tensor(node.name, (1, *size, channels), NHWC_STORED_AS_NCHW)}

    def add_tensors(self, node: Node) -> dict[str, Tensor]:
        if any(name in self.constants for name in node.inputs):
            raise node.refusal("a constant can be added only as the bias of a convolution that nothing else reads")
        left = self.tensor(node, 0)
        right = arrange(self.graph, self.tensor(node, 1), left.axes)
        if left.shape != right.shape:
            raise node.refusal(f"adds shapes {left.shape} and {right.shape}, which must be equal")
        return {node.name: left.computed(self.graph.node("Add", [left.value, right.value], node.name))}

    def leaky_relu(self, node: Node) -> dict[str, Tensor]:
        tensor = self.tensor(node)
        value = self.graph.node("LeakyRelu", [tensor.value], node.name, alpha=node.number("alpha"))
        return {node.name: tensor.computed(value)}

    def sigmoid(self, node: Node) -> dict[str, Tensor]:
        tensor = self.tensor(node)
        return {node.name: tensor.computed(self.graph.node("Sigmoid", [tensor.value], node.name))}

    def concatenation(self, node: Node) -> dict[str, Tensor]:
        last = len(node.inputs) - 1
        tensors = [self.tensor(node, index) for index in range(last)]
        axis = self.axis(node, last, rank=len(tensors[0].shape))
        return {node.name: concatenate(self.graph, tensors, axis, node.name)}

    def split(self, node: Node) -> dict[str, Tensor]:
        tensor = self.tensor(node)
        sizes = self.integers(node, 1)
        axis = self.axis(node, 2, rank=len(tensor.shape))
        names = [node.name, *(f"{node.name}:{index}" for index in range(1, len(sizes)))]
        values = [tensor.value, self.graph.constant(f"{node.name}/sizes", np.array(sizes, np.int64))]
        self.graph.node("Split", values, *names, axis=tensor.axes[axis])

        before, after = tensor.shape[:axis], tensor.shape[axis + 1 :]
        return {
            name: Tensor(name, (*before, size, *after), tensor.axes) for name, size in zip(names, sizes, strict=True)
        }

    def reshape(self, node: Node) -> dict[str, Tensor]:
        tensor = self.tensor(node)
        tensor = arrange(self.graph, tensor, natural(len(tensor.shape)))
        batch, *sizes = self.integers(node, 1)
        if batch != 1 or sizes.count(-1) != 1:
            raise node.refusal(f"only targets like [1, …, -1, …] are supported, not {[batch, *sizes]}")
        rest = math.prod(tensor.shape) // -math.prod(sizes)
        shape = (1, *(rest if size == -1 else size for size in sizes))
        target = np.array([0, *sizes], np.int64)  # ONNX: 0 keeps the axis, here the batch
        values = [tensor.value, self.graph.constant(f"{node.name}/shape", target)]
        return {node.name: Tensor.stored(self.graph.node("Reshape", values, node.name), shape)}

    # Helpers of the operations.

    def stored_as_nchw(self, node: Node) -> str:
        return arrange(self.graph, self.padded(node), NHWC_STORED_AS_NCHW).value

    def bias_of(self, convolution: Node) -> Node | None:
        """Return the node that adds a constant per channel to a convolution, where nothing else reads the latter."""
        readers = self.readers.get(convolution.name, [])
        if len(readers) != 1 or readers[0].op != "Add" or readers[0].inputs[0] != convolution.name:
            return None
        bias = self.constants.get(readers[0].inputs[1])
        return readers[0] if bias is not None and bias.ndim == 1 else None


def _window(node: Node, source: Tensor, size: Sequence[int], fill: float) -> tuple[dict[str, Sequence[int]], int, int]:
    """Return a sliding window's ONNX attributes, with the source's padding as its own, and the result's size.

    size: (height, width) of the window.
    fill: what the padding must hold for ONNX's own padding of this operation to be the same.
    """
    if node.text("padding") != "VALID" or node.text("data_format") != "NHWC":
        raise node.refusal("only VALID padding and the NHWC format are supported")

    rows = columns = (0, 0)
    if source.padding is not None:
        batch, rows, columns, channels = source.padding.amounts
        if source.padding.fill != fill or any(batch + channels):
            raise node.refusal(f"reads a padding that is not {fill:g} around rows and columns")

    strides = node.integers("strides")[1:3]
    height = (source.shape[1] + sum(rows) - size[0]) // strides[0] + 1
    width = (source.shape[2] + sum(columns) - size[1]) // strides[1] + 1
    pads = [rows[0], columns[0], rows[1], columns[1]]
    return {"kernel_shape": size, "strides": strides, "pads": pads}, height, width


_OPERATIONS: dict[str, Callable[[_Translation, Node], dict[str, Tensor]]] = {
    "Add": _Translation.add_tensors,
    "ConcatV2": _Translation.concatenation,
    "Conv2D": _Translation.convolution,
    "Identity": _Translation.identity,
    "LeakyRelu": _Translation.leaky_relu,
    "MaxPool": _Translation.max_pool,
    "Pad": _Translation.pad,
    "PadV2": _Translation.pad,
    "Placeholder": _Translation.placeholder,
    "Reshape": _Translation.reshape,
    "ResizeBilinear": _Translation.resize,
    "Sigmoid": _Translation.sigmoid,
    "SplitV": _Translation.split,
    "Transpose": _Translation.transpose,
}
