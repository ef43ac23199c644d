"""NanoDet-g 416: from its TensorFlow.js files to a detector under Polywand's contract.

The source's own graph ends in scores per class and in distributions of distances per cell of three grids. What its
users write around it is put inside here: colour order and normalisation in front, boxes behind.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from polywand_zoo.onnx_graph import OnnxGraph
from polywand_zoo.tfjs import (
    GraphModel,
    GraphModelError,
    Tensor,
    arrange,
    check_weights,
    concatenate,
    natural,
    read_graph_model,
    translate,
)

INPUT_SIZE = 416
CLASSES = 80
SIDES = 4  # left, top, right, bottom
BINS = 11  # a side's distance is a distribution over 0, 1, … 10 strides
STRIDES = (8, 16, 32)
CELLS = sum((INPUT_SIZE // stride) ** 2 for stride in STRIDES)

BGR_MEAN = (103.53, 116.28, 123.675)
BGR_DEVIATION = (57.375, 57.12, 58.395)

SOURCE_INPUT = "input_1"
SCORE_OUTPUTS = ("Identity", "Identity_1", "Identity_2")  # in the order of STRIDES
DISTANCE_OUTPUTS = ("Identity_3", "Identity_4", "Identity_5")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion has written and verified.

    size: of the file, in bytes.
    operations: how many nodes of each ONNX operation there are.
    exact_weights: how many weight arrays stand in the file bit for bit as in the source.
    """

    size: int
    operations: Mapping[str, int]
    exact_weights: int


def convert(source: Path, target: Path) -> Conversion:
    """Convert the graph model `source` (its JSON file) to the ONNX file `target`, which appears whole or not at all."""
    graph_model = read_graph_model(source)
    model = build(graph_model)
    exact_weights = check_weights(graph_model, model)

    data = model.SerializeToString(deterministic=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.tmp")
    partial.write_bytes(data)
    os.replace(partial, target)

    operations = Counter(node.op_type for node in model.graph.node)
    return Conversion(len(data), dict(sorted(operations.items())), exact_weights)


def build(source: GraphModel) -> onnx.ModelProto:
    """Return the detector as a checked ONNX model.

    IMAGE: UINT8 [batch, 416, 416, 3], RGB, letterboxed.
    BOXES: FP32 [batch, 3549, 4], x1 y1 x2 y2 in input pixels, where the image spans 0 to 416; not clipped.
    SCORES: FP32 [batch, 3549, 80], each class's probability. Nothing is suppressed.
    """
    graph = OnnxGraph()
    image = graph.input("IMAGE", TensorProto.UINT8, [INPUT_SIZE, INPUT_SIZE, 3])
    outputs = translate(source, graph, {SOURCE_INPUT: _normalised(graph, image)})

    distances = _over_all_cells(graph, outputs, DISTANCE_OUTPUTS, SIDES * BINS, "distances")
    scores = _over_all_cells(graph, outputs, SCORE_OUTPUTS, CLASSES, "scores")
    graph.output("BOXES", _boxes(graph, distances), TensorProto.FLOAT, [CELLS, SIDES])
    graph.output("SCORES", scores, TensorProto.FLOAT, [CELLS, CLASSES])
    return graph.model("nanodet-g-416", license="Apache-2.0", source="https://github.com/RangiLyu/nanodet")


def _normalised(graph: OnnxGraph, image: str) -> Tensor:
    """Return an RGB image [416, 416, 3] as NanoDet's input: BGR planes with zero mean and unit deviation."""
    planes = graph.node("Transpose", [image], "rgb_planes", perm=[0, 3, 1, 2])
    backwards = graph.constant("rgb_to_bgr", np.array([2, 1, 0], np.int64))
    planes = graph.node("Gather", [planes, backwards], "bgr_planes", axis=1)
    planes = graph.node("Cast", [planes], "bgr_levels", to=TensorProto.FLOAT)
    centred = graph.node("Sub", [planes, graph.constant("bgr_mean", _per_channel(BGR_MEAN))], "centred")
    scaled = graph.node("Div", [centred, graph.constant("bgr_deviation", _per_channel(BGR_DEVIATION))], "normalised")
    return Tensor.stored(scaled, (1, 3, INPUT_SIZE, INPUT_SIZE))


def _per_channel(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def _over_all_cells(
    graph: OnnxGraph, outputs: Mapping[str, Tensor], names: tuple[str, ...], channels: int, title: str
) -> str:
    """Join the outputs of the three grids, each [cells of the grid, channels], to one [CELLS, channels]."""
    grids = []
    for name, stride in zip(names, STRIDES, strict=True):
        expected = (1, (INPUT_SIZE // stride) ** 2, channels)
        if name not in outputs or outputs[name].shape != expected:
            raise GraphModelError(f"this is not NanoDet-g 416: its output '{name}' should have the shape {expected}")
        grids.append(outputs[name])
    return arrange(graph, concatenate(graph, grids, axis=1, name=title), natural(3)).value


def _boxes(graph: OnnxGraph, distances: str) -> str:
    """Return boxes [CELLS, 4]: from each cell's centre, every side's expected distance outwards.

    The expectation is written as a product and a sum, not as a matrix product: OpenVINO in bfloat16 keeps in single
    precision whatever follows the last convolution or matrix product, and boxes need that.
    """
    sides = graph.constant("sides_and_bins", np.array([0, CELLS, SIDES, BINS], np.int64))  # 0 keeps the batch
    logits = graph.node("Reshape", [distances, sides], "distance_logits")
    probabilities = graph.node("Softmax", [logits], "distance_probabilities", axis=-1)

    bins = graph.constant("bins", np.arange(BINS, dtype=np.float32))
    last_axis = graph.constant("last_axis", np.array([-1], np.int64))
    weighted = graph.node("Mul", [probabilities, bins], "weighted_bins")
    expected = graph.node("ReduceSum", [weighted, last_axis], "expected_bins", keepdims=0)

    centres, outwards = _grids()
    offsets = graph.node("Mul", [expected, graph.constant("outwards", outwards)], "offsets")
    return graph.node("Add", [offsets, graph.constant("centres", centres)], "boxes")


def _grids() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return of every cell, grid by grid and row by row, the centre and the unit of distance.

    centres [CELLS, 4]: x y x y of the cell's centre in input pixels.
    outwards [CELLS, 4]: the stride in pixels, negative to the left and to the top.
    """
    centres, outwards = [], []
    for stride in STRIDES:
        cells = INPUT_SIZE // stride
        ticks = (np.arange(cells, dtype=np.float32) + 0.5) * stride
        x, y = (axis.ravel() for axis in np.meshgrid(ticks, ticks))
        centres.append(np.stack([x, y, x, y], axis=1))
        outwards.append(np.tile(np.array([-stride, -stride, stride, stride], np.float32), (cells * cells, 1)))
    return np.concatenate(centres), np.concatenate(outwards)
