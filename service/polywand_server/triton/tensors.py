"""NumPy arrays as they travel in Triton's inference messages or beside them in shared memory, and back."""

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
class TensorForm:
    """What a tensor will be, before there is one. dtype: Triton's name ("UINT8"). shape: with the batch axis."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy type."""
        return _NUMPY_BY_TRITON[self.dtype]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return prod(self.shape) * self.numpy_dtype.itemsize


@dataclass(frozen=True, slots=True)
class Placed:
    """A region of shared memory that Triton has registered, and the arrays in it, by tensor.

    inputs, outputs: views of the region. offsets: of every one of them, in bytes from the region's start.
    """

    region: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    offsets: Mapping[str, int]


NOWHERE = Placed("", {}, {}, {})


def encode_request(
    model: str,
    version: int,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    placed: Placed = NOWHERE,
    request_id: str = "",
    priority: int = 0,
) -> pb.ModelInferRequest:
    """Build one inference request; tensors go as raw bytes, each copied once, but for those in shared memory.

    version: 0 lets Triton choose. inputs: to be sent. outputs: all that are wanted.
    placed: inputs that lie in shared memory already, and where Triton is to write outputs; the other outputs are sent.
    priority: 1 is the most urgent, 0 the model's default.
    TypeError: an input's dtype is one that the protocol, or this module, does not carry.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=str(version) if version else "", id=request_id)
    for name, array in placed.inputs.items():
        _place(request.inputs.add(name=name, datatype=_triton_name(array.dtype), shape=array.shape), placed, array)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=_triton_name(array.dtype), shape=array.shape)
    request.raw_input_contents.extend(array.tobytes() for array in inputs.values())
    for name in outputs:
        output = request.outputs.add(name=name)
        if name in placed.outputs:
            _place(output, placed, placed.outputs[name])
    if priority:
        request.parameters["priority"].uint64_param = priority
    return request


def decode_response(
    response: pb.ModelInferResponse, outputs: Sequence[str], placed: Placed = NOWHERE
) -> dict[str, Array]:
    """Return the outputs asked for, by name: read-only views of the message, or views of shared memory.

    ModelFailedError: an output is missing, of a type that NumPy lacks, or its bytes do not fill its shape.
    """
    tensors = dict(zip((tensor.name for tensor in response.outputs), _arrays(response, placed), strict=False))
    missing = [name for name in outputs if name not in tensors]
    if missing:
        raise ModelFailedError(f"model '{response.model_name}' answered without output {', '.join(missing)}")
    return {name: tensors[name] for name in outputs}


def _place(tensor: Any, placed: Placed, array: Array) -> None:
    """Say where a tensor lies (Triton's extension `system_shared_memory` of the inference protocol)."""
    tensor.parameters["shared_memory_region"].string_param = placed.region
    tensor.parameters["shared_memory_offset"].int64_param = placed.offsets[tensor.name]
    tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes


def _arrays(response: pb.ModelInferResponse, placed: Placed) -> list[Array]:
    # What Triton wrote to shared memory has an empty place here.
    if len(response.raw_output_contents) != len(response.outputs):
        raise ModelFailedError(f"model '{response.model_name}' answered without raw tensor contents")
    return [
        _array(response.model_name, tensor, _contents(tensor, raw, placed))
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


def _contents(tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes, placed: Placed) -> bytes | memoryview:
    room = placed.outputs.get(tensor.name)
    if room is None:
        return raw
    dtype = _NUMPY_BY_TRITON.get(tensor.datatype)
    return room.reshape(-1).data.cast("B").toreadonly()[: prod(tensor.shape) * (dtype.itemsize if dtype else 0)]


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
