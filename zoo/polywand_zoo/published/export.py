"""Export of a published network to an ONNX model under Polywand's contract, proven against PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from polywand_zoo.networks.dextr import Dextr
from polywand_zoo.networks.iog import Iog
from polywand_zoo.networks.ritm import Ritm
from polywand_zoo.onnx_export import Axes, ExportError, trace
from polywand_zoo.onnx_graph import BATCH
from polywand_zoo.onnx_half import compute_in_half
from polywand_zoo.points import Label
from polywand_zoo.published.folding import fold
from polywand_zoo.published.interactors import (
    DextrInteractor,
    FbrsInteractor,
    Interactor,
    IogInteractor,
    RitmInteractor,
)

OUTPUT = "LOGITS"
NETWORK_SCOPE = "/network/"  # of the names of its nodes
GATHER_SCOPE = "/ocr_gather_head/"
VARIABLE_SIZE: Axes = {
    "IMAGE": {1: "height", 2: "width"},
    "PREV_MASK": {2: "height", 3: "width"},
    OUTPUT: {2: "height", 3: "width"},
}
EXAMPLE_SIZE = (96, 128)  # of the trace of a network without a fixed input size
CHECKED_SIZES = ((192, 160), (97, 131))  # of those networks; batches of two, then of one


class Precision(StrEnum):
    """What a graph computes in."""

    FP32 = "fp32"
    FP16 = "fp16"  # the network alone; prompt maps and logits stay in single precision


# Of the logits' standard deviation. Single precision: the largest difference, by two orders of the same sums.
GRAPH_TOLERANCE = 1e-3
# Half precision: the mean difference from the network in single precision.
HALF_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True)
class Export:
    """A proven graph.

    data: the ONNX file. prompts: how many random ones it was compared on.
    difference: from the network in PyTorch, in deviations of its logits; the largest in single, the mean one in half
        precision.
    """

    data: bytes
    precision: Precision
    prompts: int
    difference: float


@dataclass(frozen=True, slots=True)
class Request:
    """The inputs of one inference.

    image: [B, H, W, 3], uint8, RGB.
    points: [B, N, 3], float32: x, y in pixels with centres at integers, and a `Label`.
    previous: [B, 1, H, W], float32, 0..1.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    previous: NDArray[np.float32]

    def feeds(self, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
        """Return the inputs with these names, in their order."""
        arrays: dict[str, NDArray[np.generic]] = {
            "IMAGE": self.image,
            "POINTS": self.points,
            "PREV_MASK": self.previous,
        }
        return {name: arrays[name] for name in names}

    def tensors(self, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Return the inputs with these names, in their order, for PyTorch."""
        return tuple(torch.from_numpy(array) for array in self.feeds(names).values())


def interactor(network: nn.Module) -> Interactor:
    """Put a network under the contract."""
    match network:
        case Dextr():
            return DextrInteractor(network).eval()
        case Iog():
            return IogInteractor(network).eval()
        case Ritm():
            return RitmInteractor(network).eval()
        case _:
            return FbrsInteractor(network).eval()


def export(network: nn.Module, precision: Precision = Precision.FP32, **metadata: str) -> Export:
    """Export a network and compare the graph with it on random prompts; metadata: to be written into the file.

    Raises:
        ExportError: they do not give the same.
    """
    exact = interactor(network)
    data = build(network, precision, **metadata)
    session = onnxruntime.InferenceSession(data, _quiet(), providers=["CPUExecutionProvider"])
    prompts, worst = 0, 0.0
    for request in checked_requests(exact):
        with torch.inference_mode():
            expected = exact(*request.tensors(exact.INPUTS)).numpy()
        (logits,) = session.run([OUTPUT], request.feeds(exact.INPUTS))
        differences = np.abs(logits - expected) / expected.std()
        worst = np.maximum(worst, differences.max() if precision is Precision.FP32 else differences.mean())
        prompts += len(expected)
    tolerance = GRAPH_TOLERANCE if precision is Precision.FP32 else HALF_TOLERANCE
    if not worst <= tolerance:  # false for NaN, too
        raise ExportError(
            f"the {precision} graph differs from PyTorch's network by {worst:.2g} deviations of the logits, "
            f"and {tolerance:g} are allowed"
        )
    return Export(data, precision, prompts, float(worst))


def build(network: nn.Module, precision: Precision = Precision.FP32, **metadata: str) -> bytes:
    """Return a network under the contract as a checked ONNX file (see `interactors` for its tensors)."""
    wrapped = interactor(fold(network))
    inputs = random_request(wrapped, seed=0, size=wrapped.SIZE or EXAMPLE_SIZE, batch=1).tensors(wrapped.INPUTS)
    with torch.inference_mode():
        model = trace(wrapped, inputs, wrapped.INPUTS, OUTPUT, variable=None if wrapped.SIZE else VARIABLE_SIZE)
    _describe_output(model, wrapped.SIZE or ("height", "width"))
    if precision is Precision.FP16:
        model = compute_in_half(model, in_half)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def add_metadata(data: bytes, **metadata: str) -> bytes:
    """Return an ONNX file with some metadata more."""
    model = onnx.load_from_string(data)
    helper.set_model_props(model, {prop.key: prop.value for prop in model.metadata_props} | metadata)
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def _describe_output(model: onnx.ModelProto, size: tuple[int | str, int | str]) -> None:
    """State the output's shape, which the exporter loses on its way."""
    (output,) = model.graph.output
    output.CopyFrom(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, [BATCH, 1, *size]))


def checked_requests(wrapped: Interactor) -> Iterator[Request]:
    """Make up the requests that a graph is compared on."""
    sizes = [wrapped.SIZE] if wrapped.SIZE else CHECKED_SIZES
    for seed, size in enumerate(sizes):
        yield random_request(wrapped, seed=seed + 1, size=size, batch=2 - seed)


def random_request(wrapped: Interactor, *, seed: int, size: tuple[int, int], batch: int) -> Request:
    """Make up an image, points of all labels, some of them outside, a box, and a mask."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    previous = random.random((batch, 1, *size), dtype=np.float32)
    points = np.zeros((batch, wrapped.POINTS, 3), np.float32)
    points[..., :2] = random.uniform(-10, np.array(size[::-1]) + 10, (*points.shape[:2], 2))
    points[..., 2] = random.choice([Label.PADDING, Label.NEGATIVE, Label.POSITIVE, Label.EXTREME], points.shape[:2])
    points[:, 0] = (0.2 * size[1], 0.3 * size[0], Label.BOX_TOP_LEFT)
    points[:, 1] = (0.7 * size[1], 0.9 * size[0], Label.BOX_BOTTOM_RIGHT)
    return Request(image, points, previous)


def in_half(node: onnx.NodeProto) -> bool:
    """Half precision is for the network, but not for sums over a whole image: their weights are too small for it."""
    return node.name.startswith(NETWORK_SCOPE) and GATHER_SCOPE not in node.name


def _quiet() -> onnxruntime.SessionOptions:
    """Leave out warnings about what is merely slow: half precision has no kernels on processors."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
