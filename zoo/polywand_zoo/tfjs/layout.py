"""Tensors whose transposes and paddings are only noted down, to be applied by the operation that reads them.

A graph that came from PyTorch to TensorFlow swaps between NCHW and NHWC around every convolution, and pads in a node
of its own. Noting both down instead of writing them makes the swaps cancel out and lets a convolution use the padding
as its own: of NanoDet's 112 transposes and paddings, two transposes remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from polywand_zoo.onnx_graph import OnnxGraph


@dataclass(frozen=True, slots=True)
class Padding:
    """Cells that the source graph has put around a tensor.

    amounts: (before, after) of every axis.
    fill: what the cells hold.
    """

    amounts: tuple[tuple[int, int], ...]
    fill: float


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the source graph, and the ONNX value that stores it.

    value: the name of the ONNX value.
    shape: the sizes of the axes as the source orders them, without the padding; the first, the batch, counts as 1.
    axes: axes[i] is the stored value's axis that the source has as axis i.
    padding: what the source has put around the tensor and the stored value lacks.
    """

    value: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    padding: Padding | None = None

    @classmethod
    def stored(cls, value: str, shape: Sequence[int]) -> Tensor:
        """Return the tensor that an ONNX value stores in the source's own order."""
        return cls(value, tuple(shape), natural(len(shape)))

    def transposed(self, order: Sequence[int]) -> Tensor:
        """Return the tensor whose axis i is this one's axis order[i]."""
        padding = self.padding and replace(self.padding, amounts=tuple(self.padding.amounts[i] for i in order))
        return Tensor(self.value, tuple(self.shape[i] for i in order), tuple(self.axes[i] for i in order), padding)

    def computed(self, value: str) -> Tensor:
        """Return the tensor that an element-wise operation on this one stores in `value`."""
        return replace(self, value=value)


def natural(rank: int) -> tuple[int, ...]:
    """Return the axes of a value that is stored in the source's own order."""
    return tuple(range(rank))


def arrange(graph: OnnxGraph, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the tensor stored with the given axes, through a transpose where it is stored otherwise."""
    if tensor.axes == tuple(axes):
        return tensor
    order = [stored for _, stored in sorted(zip(axes, tensor.axes, strict=True))]
    name = f"{tensor.value}/transposed_{''.join(map(str, order))}"
    if name not in graph:
        graph.node("Transpose", [tensor.value], name, perm=order)
    return replace(tensor, value=name, axes=tuple(axes))


def concatenate(graph: OnnxGraph, tensors: Sequence[Tensor], axis: int, name: str) -> Tensor:
    """Join tensors along an axis of the source's order, stored as the first of them is."""
    first = tensors[0]
    values = [arrange(graph, tensor, first.axes).value for tensor in tensors]
    graph.node("Concat", values, name, axis=first.axes[axis])
    shape = list(first.shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return Tensor(name, tuple(shape), first.axes)
