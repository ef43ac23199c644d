"""From a PyTorch module to an ONNX model, as all of the zoo's networks are exported."""

import io
import warnings
from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn

from polywand_zoo.onnx_graph import BATCH, IR_VERSION, OPSET

Axes = Mapping[str, Mapping[int, str]]  # of a tensor by name: axis to the name of its variable size


class ExportError(RuntimeError):
    """The exported graph does not compute what the network computes."""


def trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    outputs: str | tuple[str, ...],
    *,
    variable: Axes | None = None,
) -> onnx.ModelProto:
    """Return a module as an ONNX model whose inputs and outputs have a batch axis of any size in front.

    variable: the other axes whose size is not fixed to the example's.
    """
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    axes = {name: {0: BATCH, **(variable or {}).get(name, {})} for name in (*names, *outputs)}
    file = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch would rather have its newer exporter used, which needs another package and writes a longer graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            inputs,
            file,  # type: ignore[arg-type]  # the older exporter accepts a buffer, too
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(file.getvalue())
    model.ir_version = IR_VERSION
    return model
