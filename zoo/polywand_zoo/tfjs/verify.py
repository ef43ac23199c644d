"""Proof that a conversion has kept the weights: compares the finished ONNX model with the source's files."""

import numpy as np
import onnx
from onnx import numpy_helper

from polywand_zoo.tfjs.model import GraphModel, GraphModelError

OIHW_TO_HWIO = (2, 3, 1, 0)


def check_weights(source: GraphModel, converted: onnx.ModelProto) -> int:
    """Check that every float16 weight of the source stands in the ONNX model bit for bit; return how many there are.

    Single numbers do not count: they are parameters of operations, such as the value to pad with.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    weights = {name: array for name, array in source.weights.items() if array.dtype == np.float16 and array.ndim}
    for name, expected in weights.items():
        found = stored.get(name)
        if found is None:
            raise GraphModelError(f"weight '{name}' is missing in the ONNX model")
        if found.ndim == 4:
            found = found.transpose(OIHW_TO_HWIO)
        if (found.dtype, found.shape, found.tobytes()) != (expected.dtype, expected.shape, expected.tobytes()):
            raise GraphModelError(f"weight '{name}' differs in the ONNX model")
    return len(weights)
