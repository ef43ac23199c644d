"""Export of a wand checkpoint to an interactor under Polywand's contract."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from polywand_zoo.onnx_export import ExportError, trace
from polywand_zoo.points import Label
from polywand_zoo.wand import weights
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.folding import fold_batch_norms, round_weights
from polywand_zoo.wand.network import DISK_RADIUS, INPUT_SIZE, WandNetwork
from polywand_zoo.wand.prompts import FinePromptMaps, PromptMaps

Network = WandNetwork | FineNetwork

MAX_POINTS = 64
INPUTS = ("IMAGE", "POINTS", "PREV_MASK")
OUTPUT = "LOGITS"

GRAPH_TOLERANCE = 1e-3  # of a logit, between PyTorch and ONNX Runtime: two orders of the same float32 sums
ROUNDING_TOLERANCE = 2e-3  # of a probability, on average, by rounding the weights to half precision


@dataclass(frozen=True, slots=True)
class Export:
    """What an export has written and verified.

    size: of the file, in bytes.
    graph_difference: the largest between a logit of the graph and of the network with the same, rounded weights.
    rounding_difference: the mean one between a probability of that network and of the checkpoint's.
    """

    size: int
    graph_difference: float
    rounding_difference: float


@dataclass(frozen=True, slots=True)
class Request:
    """The inputs of one inference.

    image: [B, S, S, 3], uint8, RGB.
    points: [B, 64, 3], float32: x, y in pixels with centres at integers, and a `Label`.
    previous: [B, 1, S, S], float32, 0..1.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    previous: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """List the inputs in the order of `INPUTS`."""
        return self.image, self.points, self.previous

    def tensors(self) -> tuple[Tensor, ...]:
        """List the inputs in the order of `INPUTS`, for PyTorch."""
        return tuple(torch.from_numpy(array) for array in self.arrays())


class Interactor(nn.Module):
    """A network with the mathematics around it that clients need not know: what is exported."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        maps = FinePromptMaps if isinstance(network, FineNetwork) else PromptMaps
        self.maps = maps(INPUT_SIZE, DISK_RADIUS)
        self.network = network

    def forward(self, image: Tensor, points: Tensor, previous: Tensor) -> Tensor:
        """Map the tensors of a `Request` to logits [B, 1, S, S]."""
        logits: Tensor = self.network(image.permute(0, 3, 1, 2).float(), self.maps(points, previous))
        return logits


def export(checkpoint: Path, target: Path) -> Export:
    """Export a checkpoint of either generation to the file `target`, which appears whole and verified or not at all."""
    trained = weights.load(checkpoint)
    rounded = round_weights(fold_batch_norms(trained))
    data = build(rounded).SerializeToString(deterministic=True)

    requests = [random_request(seed) for seed in range(3)]
    graph_difference = max(_graph_difference(data, rounded, request) for request in requests)
    rounding_difference = max(_rounding_difference(trained, rounded, request) for request in requests)
    # Comparisons that are false for NaN must not let it pass.
    if not graph_difference <= GRAPH_TOLERANCE:
        raise ExportError(f"a logit of the graph differs from PyTorch's by {graph_difference:.2g}")
    if not rounding_difference <= ROUNDING_TOLERANCE:
        raise ExportError(f"rounding the weights changes probabilities by {rounding_difference:.2g} on average")

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, target)
    return Export(len(data), graph_difference, rounding_difference)


def build(network: Network) -> onnx.ModelProto:
    """Return the interactor as a checked ONNX model; the network's weights must have been rounded.

    IMAGE: UINT8 [batch, 384, 384, 3], RGB.
    POINTS: FP32 [batch, 64, 3], x, y, `Label`; pixel centres at integer coordinates.
    PREV_MASK: FP32 [batch, 1, 384, 384], probabilities; zeros at first.
    LOGITS: FP32 [batch, 1, 384, 384].
    """
    model = trace(Interactor(network).eval(), random_request(0).tensors(), INPUTS, OUTPUT)
    _store_weights_in_half(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def random_request(seed: int, batch: int = 2) -> Request:
    """Make up an image, points of all labels, some of them outside, a box for every other item, and a mask."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (batch, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    previous = random.random((batch, 1, INPUT_SIZE, INPUT_SIZE), dtype=np.float32)
    points = np.zeros((batch, MAX_POINTS, 3), np.float32)
    points[..., :2] = random.uniform(-10, INPUT_SIZE + 10, (*points.shape[:2], 2))
    points[..., 2] = random.choice([Label.PADDING, Label.NEGATIVE, Label.POSITIVE, Label.EXTREME], points.shape[:2])
    points[::2, 0] = (40.5, 60.25, Label.BOX_TOP_LEFT)
    points[::2, 1] = (300.75, 250.5, Label.BOX_BOTTOM_RIGHT)
    return Request(image, points, previous)


def _store_weights_in_half(graph: onnx.GraphProto) -> None:
    """Store the weights of convolutions in half precision; runtimes cast them once, when they load the graph."""
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in kernels:
            continue
        exact = numpy_helper.to_array(tensor)
        half = exact.astype(np.float16)
        if not np.array_equal(half, exact):
            raise ExportError(f"{tensor.name} holds numbers that half precision does not")
        stored = f"{tensor.name}/float16"
        casts.append(
            helper.make_node("Cast", [stored], [tensor.name], f"{tensor.name}/cast", to=onnx.TensorProto.FLOAT)
        )
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _graph_difference(model: bytes, network: Network, request: Request) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], dict(zip(INPUTS, request.arrays(), strict=True)))
    return float(np.abs(logits - _infer(network, request).numpy()).max())


def _rounding_difference(trained: Network, rounded: Network, request: Request) -> float:
    return float((_infer(trained, request).sigmoid() - _infer(rounded, request).sigmoid()).abs().mean())


def _infer(network: Network, request: Request) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = Interactor(network).eval()(*request.tensors())
        return logits
