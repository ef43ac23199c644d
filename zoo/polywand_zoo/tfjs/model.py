"""A TensorFlow.js graph model as its files say it: the nodes in order, the weights by name."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GraphModelError(ValueError):
    """The files are damaged, or use something that this converter does not support."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the graph.

    name: also names its output; "name:1" is the second output of an operation that has several.
    op: TensorFlow's name of the operation.
    inputs: the names of what it reads.
    attributes: as TensorFlow writes them in JSON, to be read through the methods.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def refusal(self, reason: str) -> GraphModelError:
        """Return an error that says why this node cannot be converted."""
        return GraphModelError(f"{self.op} '{self.name}': {reason}")

    def flag(self, key: str) -> bool:
        """Return a boolean attribute."""
        return bool(self._attribute(key, "b"))

    def number(self, key: str) -> float:
        """Return a floating-point attribute."""
        return float(self._attribute(key, "f"))

    def text(self, key: str) -> str:
        """Return a string attribute; JSON holds it in base64."""
        return base64.b64decode(self._attribute(key, "s")).decode()

    def integers(self, key: str) -> tuple[int, ...]:
        """Return an attribute that is a list of integers; JSON holds them as strings."""
        return tuple(int(item) for item in self._attribute(key, "list").get("i", []))

    def _attribute(self, key: str, kind: str) -> Any:
        try:
            return self.attributes[key][kind]
        except KeyError:
            raise self.refusal(f"has no attribute '{key}'") from None


@dataclass(frozen=True, slots=True)
class GraphModel:
    """A graph model.

    nodes: in the order of the file, every one after those it reads.
    weights: the values of the `Const` nodes by name, in the type in which the file stores them (float16 or int32).
    outputs: the names of the graph's outputs.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]


def read_graph_model(path: Path) -> GraphModel:
    """Read a graph model from its JSON file and the weight files beside it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    missing = {"modelTopology", "signature", "weightsManifest"} - document.keys()
    if document.get("format") != "graph-model" or missing:
        raise GraphModelError(f"{path.name} is not a TensorFlow.js graph model with a signature")

    weights: dict[str, NDArray[Any]] = {}
    for group in document["weightsManifest"]:
        data = b"".join((path.parent / name).read_bytes() for name in group["paths"])
        weights |= _cut(data, group["weights"], source=", ".join(group["paths"]))

    return GraphModel(
        nodes=tuple(_node(entry) for entry in document["modelTopology"]["node"]),
        weights=weights,
        outputs=tuple(sorted(_name(output) for output in document["signature"]["outputs"])),
    )


def _node(entry: Mapping[str, Any]) -> Node:
    inputs = tuple(_name(reference) for reference in entry.get("input", []))
    return Node(entry["name"], entry["op"], inputs, entry.get("attr", {}))


def _name(reference: str) -> str:
    return reference.removesuffix(":0")


def _cut(data: bytes, entries: list[Mapping[str, Any]], source: str) -> dict[str, NDArray[Any]]:
    """Cut a group's bytes into the weights that its manifest lists one after the other."""
    stored_types = [_stored_type(entry) for entry in entries]
    counts = [math.prod(entry["shape"]) for entry in entries]
    expected = sum(count * stored.itemsize for count, stored in zip(counts, stored_types, strict=True))
    if len(data) != expected:
        raise GraphModelError(f"{source} should hold {expected} bytes of weights, but holds {len(data)}")

    weights = {}
    offset = 0
    for entry, count, stored in zip(entries, counts, stored_types, strict=True):
        weights[entry["name"]] = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
        offset += count * stored.itemsize
    return weights


def _stored_type(entry: Mapping[str, Any]) -> np.dtype[Any]:
    quantization = entry.get("quantization")
    match entry["dtype"], quantization and quantization["dtype"]:
        case "float32", "float16":
            return np.dtype("<f2")
        case "int32", None:
            return np.dtype("<i4")
        case declared, kept_as:
            raise GraphModelError(
                f"weight '{entry['name']}': {declared} kept as {kept_as or declared} is not supported"
            )
