"""NumPy arrays to and from Triton's inference messages, or shared memory that the messages refer to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of one request's tensor. dtype: Triton's name ("UINT8"). shape: with the batch axis."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy type."""
        return _NUMPY_BY_TRITON[self.dtype]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return prod(self.shape) * self.numpy_dtype.itemsize


# By name; None for an output whose size is not known before: it is sent by gRPC.
TensorSpecs = Mapping[str, TensorSpec | None]


@dataclass(frozen=True, slots=True)
class SharedTensors:
    """A region of shared memory that Triton has registered, and the tensors in it, by name.

    inputs, outputs: views of the region. offsets: of all of them, in bytes from the region's start.
    """

    region: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    offsets: Mapping[str, int]


NOT_SHARED = SharedTensors("", {}, {}, {})


def encode_request(
    model: str,
    version: int,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    shared: SharedTensors = NOT_SHARED,
    request_id: str = "",
    priority: int = 0,
) -> pb.ModelInferRequest:
    """Build one inference request. Tensors are sent as raw bytes, each copied once, except those in shared memory.

    version: 0 lets Triton choose. inputs: to be sent. outputs: the names wanted.
    shared: inputs that are in shared memory already, and memory for outputs there; the other outputs are sent.
    priority: 1 is the most urgent, 0 the model's default.

    Raises:
        TypeError: an input's dtype is not supported by the protocol, or by this module.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=str(version) if version else "", id=request_id)
    for name, array in shared.inputs.items():
        _refer_to_shared(
            request.inputs.add(name=name, datatype=_triton_name(array.dtype), shape=array.shape), shared, array
        )
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=_triton_name(array.dtype), shape=array.shape)
    request.raw_input_contents.extend(array.tobytes() for array in inputs.values())
    for name in outputs:
        output = request.outputs.add(name=name)
        if name in shared.outputs:
            _refer_to_shared(output, shared, shared.outputs[name])
    if priority:
        request.parameters["priority"].uint64_param = priority
    return request


def decode_response(
    response: pb.ModelInferResponse, outputs: Sequence[str], shared: SharedTensors = NOT_SHARED
) -> dict[str, Array]:
    """Return the requested outputs by name: read-only views of the message, or of shared memory.

    Raises:
        ModelFailedError: an output is missing, has a type that NumPy lacks, or its bytes do not fill its shape.
    """
    tensors = dict(zip((tensor.name for tensor in response.outputs), _arrays(response, shared), strict=False))
    missing = [name for name in outputs if name not in tensors]
    if missing:
        raise ModelFailedError(f"model '{response.model_name}' answered without output {', '.join(missing)}")
    return {name: tensors[name] for name in outputs}


def _refer_to_shared(tensor: Any, shared: SharedTensors, array: Array) -> None:
    """Refer to a tensor in shared memory (Triton's extension `system_shared_memory` of the inference protocol)."""
    tensor.parameters["shared_memory_region"].string_param = shared.region
    tensor.parameters["shared_memory_offset"].int64_param = shared.offsets[tensor.name]
    tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes


def _arrays(response: pb.ModelInferResponse, shared: SharedTensors) -> list[Array]:
    # An output in shared memory has an empty entry here.
    if len(response.raw_output_contents) != len(response.outputs):
        raise ModelFailedError(f"model '{response.model_name}' answered without raw tensor contents")
    return [
        _array(response.model_name, tensor, _contents(tensor, raw, shared))
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


def _contents(tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes, shared: SharedTensors) -> bytes | memoryview:
    memory = shared.outputs.get(tensor.name)
    if memory is None:
        return raw
    dtype = _NUMPY_BY_TRITON.get(tensor.datatype)
    return memory.reshape(-1).data.cast("B").toreadonly()[: prod(tensor.shape) * (dtype.itemsize if dtype else 0)]


def _array(model: str, tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes | memoryview) -> Array:
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
