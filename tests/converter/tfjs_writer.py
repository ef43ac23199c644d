"""Writes small TensorFlow.js graph models, as tensorflowjs_converter does with half-precision weights."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GraphWriter:
    """Collects nodes and constants, and saves them as `model.json` and `weights.bin`."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.manifest: list[dict[str, Any]] = []
        self.data = b""

    def placeholder(self, name: str, shape: tuple[int, ...]) -> str:
        dims = [{"size": str(size)} for size in shape]
        self.nodes.append({"name": name, "op": "Placeholder", "attr": {"shape": {"shape": {"dim": dims}}}})
        return name

    def constant(self, name: str, values: Any) -> str:
        """Add a constant: floats are kept as float16, integers as int32."""
        array: NDArray[Any] = np.asarray(values)
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        if array.dtype.kind == "f":
            entry |= {"dtype": "float32", "quantization": {"dtype": "float16", "original_dtype": "float32"}}
        else:
            entry |= {"dtype": "int32"}
        self.nodes.append({"name": name, "op": "Const", "attr": {}})
        self.manifest.append(entry)
        self.data += array.astype("<f2" if "quantization" in entry else "<i4").tobytes()
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        encoded = {key: _encode(value) for key, value in attributes.items()}
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": encoded})
        return name

    def save(self, folder: Path, *outputs: str) -> Path:
        document = {
            "format": "graph-model",
            "modelTopology": {"node": self.nodes},
            "signature": {"outputs": {f"{name}:0": {"name": f"{name}:0"} for name in outputs}},
            "weightsManifest": [{"paths": ["weights.bin"], "weights": self.manifest}],
        }
        (folder / "weights.bin").write_bytes(self.data)
        path = folder / "model.json"
        path.write_text(json.dumps(document))
        return path


def _encode(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"b": value}
        case float():
            return {"f": value}
        case str():
            return {"s": base64.b64encode(value.encode()).decode()}
        case _:
            return {"list": {"i": [str(item) for item in value]}}
