"""NumPy arrays as they travel in Triton's inference messages, and back."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from polywand_server.errors import ModelFailedError

Array = NDArray[Any]

# Triton's BYTES and BF16 are missing on purpose: no tensor of Polywand's contract has them, and NumPy has no BF16.
_NUMPY_BY_TRITON = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
_TRITON_BY_NUMPY = {dtype: name for name, dtype in _NUMPY_BY_TRITON.items()}


def encode_request(
    model: str,
    version: int,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    request_id: str = "",
    priority: int = 0,
) -> pb.ModelInferRequest:
    """Build one inference request; tensors go as raw bytes, each copied once.

    version: 0 lets Triton choose. priority: 1 is the most urgent, 0 the model's default.
    TypeError: an input's dtype is one that the protocol, or this module, does not carry.
    """
    request = pb.ModelInferRequest(
        model_name=model,
        model_version=str(version) if version else "",
        id=request_id,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=_triton_name(array.dtype), shape=array.shape)
            for name, array in inputs.items()
        ],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )
    request.raw_input_contents.extend(array.tobytes() for array in inputs.values())
    if priority:
        request.parameters["priority"].uint64_param = priority
    return request


def decode_response(response: pb.ModelInferResponse, outputs: Sequence[str]) -> dict[str, Array]:
    """Return the outputs asked for, by name, as read-only views of the message.

    ModelFailedError: an output is missing, of a type that NumPy lacks, or its bytes do not fill its shape.
    """
    tensors = dict(zip((tensor.name for tensor in response.outputs), _arrays(response), strict=False))
    missing = [name for name in outputs if name not in tensors]
    if missing:
        raise ModelFailedError(f"model '{response.model_name}' answered without output {', '.join(missing)}")
    return {name: tensors[name] for name in outputs}


def _arrays(response: pb.ModelInferResponse) -> list[Array]:
    if len(response.raw_output_contents) != len(response.outputs):
        raise ModelFailedError(f"model '{response.model_name}' answered without raw tensor contents")
    return [
        _array(response.model_name, tensor, raw)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


def _array(model: str, tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> Array:
    dtype = _NUMPY_BY_TRITON.get(tensor.datatype)
    if dtype is None:
        raise ModelFailedError(f"model '{model}' answered {tensor.name} as {tensor.datatype}, which is not supported")
    if len(raw) != prod(tensor.shape) * dtype.itemsize:
        # Seen with NumPy 2 in the environment of Triton 2.51's Python backend: shapes are right, contents empty.
        raise ModelFailedError(
            f"model '{model}' answered {tensor.name} {list(tensor.shape)} {tensor.datatype} with {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(tensor.shape)


def _triton_name(dtype: np.dtype[Any]) -> str:
    name = _TRITON_BY_NUMPY.get(dtype)
    if name is None:
        raise TypeError(f"no Triton tensor has NumPy's {dtype}")
    return name
