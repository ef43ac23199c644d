"""The constants of a graph model, with those worked out that the graph computes from other constants."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_zoo.tfjs.model import GraphModel, Node


def fold_constants(model: GraphModel) -> dict[str, NDArray[Any]]:
    """Return the values of all nodes that are constant, by name.

    Beside the weights these are the targets of reshapes, which the exporter built as a constant plus a sparse vector
    of the axes to copy from the input; there are no such axes, so the vector is all default.
    """
    values = dict(model.weights)
    for node in model.nodes:
        if node.op == "SparseToDense":
            indices, shape, _, default = _operands(node, values)
            if indices.size:
                raise node.refusal("only an empty sparse tensor is supported")
            values[node.name] = np.full(shape, default)
        elif node.op == "AddV2":
            left, right = _operands(node, values)
            values[node.name] = left + right
        elif node.op == "Const" and node.name not in values:
            raise node.refusal("the weight files hold no value for it")
    return values


def _operands(node: Node, values: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    unknown = [name for name in node.inputs if name not in values]
    if unknown:
        raise node.refusal(f"'{unknown[0]}' is not a constant, and only constants are supported")
    return [values[name] for name in node.inputs]
