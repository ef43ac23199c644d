"""Runs a TensorFlow.js graph model in NumPy, each operation as TensorFlow defines it.

Shares no code with the converter: it reads the files itself, keeps every tensor in the source's own layout, pads and
transposes where the graph says so, and computes in double precision.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]


def run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """Return the model's outputs by name."""
    document = json.loads(path.read_text())
    values = _constants(path.parent, document["weightsManifest"]) | feeds
    for node in document["modelTopology"]["node"]:
        name, inputs = node["name"], [values[item] for item in node.get("input", [])]
        if name not in values:
            result = _compute(node["op"], inputs, node.get("attr", {}))
            parts = result if isinstance(result, list) else [result]
            values |= {f"{name}:{index}" if index else name: part for index, part in enumerate(parts)}
    names = [name.removesuffix(":0") for name in document["signature"]["outputs"]]
    return {name: values[name] for name in names}


def _constants(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, Array]:
    values: dict[str, Array] = {}
    for group in manifest:
        data = b"".join((folder / name).read_bytes() for name in group["paths"])
        for entry in group["weights"]:
            stored = np.dtype("<f2" if "quantization" in entry else "<i4")
            count = int(np.prod(entry["shape"], dtype=int))
            values[entry["name"]] = np.frombuffer(data[: count * stored.itemsize], stored).reshape(entry["shape"])
            data = data[count * stored.itemsize :]
    return {name: array.astype(np.float64 if array.dtype.kind == "f" else int) for name, array in values.items()}


def _compute(op: str, inputs: list[Array], attributes: dict[str, Any]) -> Any:
    if op in WITHOUT_ATTRIBUTES:
        return WITHOUT_ATTRIBUTES[op](*inputs)
    return WITH_ATTRIBUTES[op](attributes, *inputs)


def _conv2d(attributes: dict[str, Any], image: Array, kernel: Array) -> Array:
    return np.tensordot(_windows(attributes, image, kernel.shape[:2]), kernel, axes=([4, 5, 3], [0, 1, 2]))


def _max_pool(attributes: dict[str, Any], image: Array) -> Any:
    return _windows(attributes, image, _pair(attributes, "ksize")).max(axis=(4, 5))


def _leaky_relu(attributes: dict[str, Any], x: Array) -> Array:
    return np.where(x > 0, x, x * attributes["alpha"]["f"])


def _resize_bilinear(attributes: dict[str, Any], image: Array, size: Array) -> Any:
    assert attributes["half_pixel_centers"]["b"]
    rows, columns = (_blend(old, new) for old, new in zip(image.shape[1:3], size, strict=True))
    return np.einsum("ih,nhwc,jw->nijc", rows, image, columns)


WITH_ATTRIBUTES: dict[str, Callable[..., Any]] = {
    "Conv2D": _conv2d,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize_bilinear,
}

WITHOUT_ATTRIBUTES: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "AddV2": np.add,
    "ConcatV2": lambda *parts_and_axis: np.concatenate(parts_and_axis[:-1], parts_and_axis[-1]),
    "Identity": lambda x: x,
    "Pad": np.pad,
    "PadV2": lambda x, amounts, fill: np.pad(x, amounts, constant_values=fill),
    "Reshape": np.reshape,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SparseToDense": lambda indices, shape, values, default: np.full(shape, default),
    "SplitV": lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "Transpose": np.transpose,
}


def _windows(attributes: dict[str, Any], image: Array, size: tuple[int, ...]) -> Array:
    """Return all positions of a sliding window over [n, h, w, c] as [n, rows, columns, c, *size]."""
    assert base64.b64decode(attributes["padding"]["s"]) == b"VALID"
    down, right = _pair(attributes, "strides")
    by_row = sliding_window_view(image, size[0], axis=1)[:, ::down]
    return sliding_window_view(by_row, size[1], axis=2)[:, :, ::right]


def _blend(old: int, new: int) -> Array:
    """Return the matrix [new, old] of linear interpolation between half-pixel centres."""
    matrix = np.zeros((new, old))
    for row in range(new):
        position = np.clip((row + 0.5) * old / new - 0.5, 0, old - 1)
        low = int(position)
        high = min(low + 1, old - 1)
        matrix[row, low] += 1 - (position - low)
        matrix[row, high] += position - low
    return matrix


def _pair(attributes: dict[str, Any], key: str) -> tuple[int, int]:
    _, height, width, _ = (int(item) for item in attributes[key]["list"]["i"])
    return height, width
